from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from openai_local.config import ConfigError, load_settings, setting_origins
from openai_local.models.catalog import Catalog
from openai_local.models.sources import HubSource

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_LOCAL_N_CTX", "512")
    monkeypatch.setenv("OPENAI_LOCAL_N_PARALLEL", "3")
    settings = load_settings(n_ctx=1024)
    assert (settings.n_ctx, settings.n_parallel) == (1024, 3)
    assert settings.engine(Path("m.gguf")).n_parallel == 3


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="'n_contxt'.*'n_ctx'|'n_contxt'"):
        load_settings(n_contxt=1)


def test_an_unknown_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_LOCAL_N_PARALEL", "3")
    with pytest.raises(ConfigError, match="OPENAI_LOCAL_N_PARALEL.*n_parallel"):
        load_settings()


def test_an_ill_typed_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="n_ctx.*'many'"):
        load_settings(n_ctx="many")
    monkeypatch.setenv("OPENAI_LOCAL_N_CTX", "few")
    with pytest.raises(ConfigError, match="OPENAI_LOCAL_N_CTX.*'few'"):
        load_settings()


def test_the_disk_tier_needs_the_one_in_ram() -> None:
    with pytest.raises(ConfigError, match="^cache_dir needs cache_ram"):
        load_settings(cache_dir="states", cache_ram=0)


FILE = """
n_ctx = 512
models_memory = "3GiB"

[models.small]
path = "small.gguf"
alias = "gpt-4o-mini"
n_ctx = 1024
cache_dir = "states"

[models.remote]
path = "hf:owner/repo"
use = "embedding"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(FILE)
    return path


def test_arguments_win_over_the_environment_and_that_over_the_file_option_by_option(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_LOCAL_CONFIG", str(file))
    monkeypatch.setenv("OPENAI_LOCAL_N_PARALLEL", "3")
    monkeypatch.setenv("OPENAI_LOCAL_N_CTX", "600")
    monkeypatch.setenv("OPENAI_LOCAL_MODELS", '{"small": {"pinned": true}, "third": "third.gguf"}')
    settings = load_settings(n_parallel=5, models={"small": {"n_ctx": 2048}})
    small, remote, third = (settings.models[id] for id in ("small", "remote", "third"))
    assert (settings.n_ctx, settings.n_parallel, settings.models_memory) == (600, 5, 3 << 30)
    assert (small.n_ctx, small.pinned, small.alias) == (2048, True, ("gpt-4o-mini",))
    assert settings.engine(small.path, small).n_ctx == 2048
    assert settings.engine(remote.path, remote).n_ctx == 600
    assert third.path == Path("third.gguf")


def test_relative_paths_of_a_file_are_those_of_its_folder(file: Path) -> None:
    models = load_settings(config=file).models
    assert models["small"].path == file.parent / "small.gguf"
    assert models["small"].cache_dir == file.parent / "states"
    assert models["remote"].path == HubSource("owner/repo")
    assert load_settings(models={"a": "a.gguf"}).models["a"].path == Path("a.gguf")


def test_a_path_in_place_of_a_table_is_that_of_the_files_folder_too(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[models]\none = "one.gguf"\npath = "hf:owner/repo"\n')
    models = load_settings(config=file).models
    assert models["one"].path == tmp_path / "one.gguf"
    assert models["path"].path == HubSource("owner/repo")


def test_it_is_told_where_each_setting_comes_from(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_LOCAL_N_PARALLEL", "3")
    origins = setting_origins(config=str(file), models={"small": {"n_ctx": 2048}})
    assert origins == {
        "config": "argument",
        "n_parallel": "OPENAI_LOCAL_N_PARALLEL",
        "n_ctx": str(file),
        "models_memory": str(file),
        "models.small.path": str(file),
        "models.small.alias": str(file),
        "models.small.n_ctx": "argument",
        "models.small.cache_dir": str(file),
        "models.remote.path": str(file),
        "models.remote.use": str(file),
    }


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("n_contxt = 3", "unknown setting '{file}: n_contxt'; did you mean 'n_ctx'"),
        ("[modls.a]\npath = 'a'", "unknown setting '{file}: modls'; did you mean 'models'"),
        (
            "[models.a]\npath = 'a'\nn_contxt = 3",
            "unknown setting '{file}: models.a.n_contxt'; did you mean 'n_ctx'",
        ),
        ("[models.a]\npath = 'a'\nmodel = 'b'", "unknown setting '{file}: models.a.model'"),
        ("[models.a]\nn_ctx = 64", "{file}: models.a.path is missing"),
        ("[models.a]\npath = 'a'\nn_ctx = 3", "{file}: models.a.n_ctx: .*, not 3"),
        ("[models.a]\npath = 'a'\nuse = 'talk'", "{file}: models.a.use: .*, not 'talk'"),
        ("[models]\na = 3", "{file}: models.a: .*, not 3"),
        ("n_ctx = 'many'", "{file}: n_ctx: .*, not 'many'"),
        ("config = 'other.toml'", "{file}: a settings file cannot name another"),
        ("n_ctx =", "config: cannot read {file}: "),
        ("cache_ram = 0\n[models.a]\npath = 'a'\ncache_dir = 'd'", "models.a: cache_dir needs"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(text: str, match: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=match.format(file=re.escape(str(file)))):
        load_settings(config=file)


def test_a_file_that_is_not_there_or_models_that_are_no_json_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="config: cannot read /nowhere.toml: "):
        load_settings(config="/nowhere.toml")
    with pytest.raises(ConfigError, match="^config: .*, not 3"):
        load_settings(config=3)
    monkeypatch.setenv("OPENAI_LOCAL_MODELS", '{"a": {"path": "x", "n_ctx": "few"}}')
    with pytest.raises(ConfigError, match="OPENAI_LOCAL_MODELS.a.n_ctx: .*'few'"):
        load_settings()
    monkeypatch.setenv("OPENAI_LOCAL_MODELS", "a=b")
    with pytest.raises(ConfigError, match="OPENAI_LOCAL_MODELS: it must be a JSON object"):
        load_settings()


def test_the_readmes_file_is_one() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    values = tomllib.loads(example)
    settings = load_settings(**values)
    assert settings.models.keys() == values["models"].keys()
    assert Catalog(settings.model_copy(update={"models_dir": None})).default_id == "qwen"
