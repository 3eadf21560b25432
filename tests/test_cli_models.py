"""``models``: from a server on the loopback to a cache of the test's own, and away again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest
from assets.tiny import llama
from hub_server import HubServer, Repository, sha256
from terminal import CTRL_C, terminal
from test_cli import line_of, run


@pytest.fixture
def server() -> Iterator[HubServer]:
    with hub_server.serve() as server:
        yield server


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    """A small model."""
    path = tmp_path / "tiny.gguf"
    llama(path)
    return path.read_bytes()


@pytest.fixture
def variables(tmp_path: Path, server: HubServer) -> dict[str, str]:
    """Caches of the test's own, and the server as the hub."""
    return {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_ENDPOINT": server.url,
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def test_a_model_of_the_hub_comes_is_shown_and_goes(
    server: HubServer, data: bytes, variables: dict[str, str], tmp_path: Path
) -> None:
    server.repositories["org/tiny-GGUF"] = Repository({"tiny-Q8_0.gguf": data})

    def models(*args: str) -> str:
        command = [sys.executable, "-m", "openai_local", "models", *args]
        done = subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    path = Path(models("pull", "hf:org/tiny-GGUF").strip())
    assert path.read_bytes() == data
    listed = json.loads(models("list", "--json"))
    (entry,) = (entry for entry in listed if entry["place"] == "downloaded")
    assert entry["name"] == "hf:org/tiny-GGUF:tiny-Q8_0.gguf"
    assert entry["n_bytes"] == len(data)
    shown = json.loads(models("show", "hf:org/tiny-GGUF", "--json", "--n-ctx", "64"))
    assert (shown["architecture"], shown["n_ctx"]) == ("llama", 64)
    assert "free again" in models("rm", entry["name"])
    assert "hf:org" not in models("list")


def test_a_model_of_a_url_comes_and_goes(
    server: HubServer, data: bytes, variables: dict[str, str]
) -> None:
    server.plain["m.gguf"] = data
    url = f"{server.url}/plain/m.gguf#sha256={sha256(data)}"
    pulled = run("models", "pull", url, **variables)
    assert (pulled.exit_code, pulled.stderr) == (0, "")
    assert Path(pulled.stdout.strip()).read_bytes() == data
    listed = run("models", "list", **variables).stdout
    assert f"{url} " in listed
    assert run("models", "rm", url, **variables).exit_code == 0
    assert "nothing of" in line_of(run("models", "rm", url, **variables), 1)
    assert "not in the cache" in line_of(run("models", "show", url, **variables), 1)


def test_a_terminal_sees_how_far_a_download_is(
    server: HubServer, data: bytes, variables: dict[str, str]
) -> None:
    server.plain["m.gguf"] = data
    url = f"{server.url}/plain/m.gguf#sha256={sha256(data)}"
    with terminal(["-m", "openai_local", "models", "pull", url], variables) as screen:
        assert screen.end() == 0
    assert "KiB" in screen.text or "bytes" in screen.text
    assert screen.text.splitlines()[-1].endswith("/m.gguf")


def test_models_are_named_by_the_settings(
    data: bytes, variables: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    text = 'n_ctx = 128\n[models]\nmissing = "none.gguf"\n[models.mine]\npath = "tiny.gguf"\n'
    file.write_text(text + "n_ctx = 64\n")
    known = ("--config", str(file))
    listed = json.loads(run("models", "list", "--json", *known, **variables).stdout)
    sizes = {entry["name"]: entry["n_bytes"] for entry in listed if entry["place"] == "settings"}
    assert sizes == {"missing": None, "mine": len(data)}
    shown = run("models", "show", "mine", *known, **variables).stdout
    assert "n_ctx:            64\n" in shown
    assert "no such file" in line_of(run("models", "show", "missing", *known, **variables), 1)
    assert run("models", "pull", "mine", *known, **variables).stdout == f"{tmp_path}/tiny.gguf\n"
    folder = run("models", "list", "--models-dir", str(tmp_path), **variables).stdout
    assert "models_dir" in folder


def test_a_download_that_is_interrupted_goes_on_and_can_be_removed(
    server: HubServer, variables: dict[str, str], tmp_path: Path
) -> None:
    large = os.urandom(4 << 20)
    server.repositories["org/large-GGUF"] = Repository({"large-Q8_0.gguf": large})
    server.gate = threading.Event()
    models = ["-m", "openai_local", "models"]
    for _ in range(2):
        with terminal([*models, "pull", "hf:org/large-GGUF"], variables) as screen:
            screen.until("/4.0 MiB")
            screen.press(CTRL_C)
            assert screen.end() == 130
        assert "the same command goes on" in screen.text
        assert "Traceback" not in screen.text
    assert [transfer.get("range", "")[:6] for transfer in server.transfers()] == ["", "bytes="]
    with terminal([*models, "pull", "hf:org/large-GGUF"], variables) as screen:
        screen.until("/4.0 MiB")
        with terminal([*models, "rm", "hf:org/large-GGUF"], variables) as other:
            assert (other.end(), "nothing of" in other.text) == (1, True), "it is in use"
        screen.press(CTRL_C)
        assert screen.end() == 130
    with terminal([*models, "rm", "hf:org/large-GGUF"], variables) as screen:
        assert (screen.end(), "MiB are free again" in screen.text) == (0, True)
    assert not any((tmp_path / "hub" / "models--org--large-GGUF" / "blobs").iterdir())


def test_what_is_here_already_shows_no_bar(
    server: HubServer, data: bytes, variables: dict[str, str]
) -> None:
    server.plain["m.gguf"] = data
    url = f"{server.url}/plain/m.gguf#sha256={sha256(data)}"
    path = run("models", "pull", url, **variables).stdout
    with terminal(["-m", "openai_local", "models", "pull", url], variables) as screen:
        assert screen.end() == 0
    assert screen.text.strip() == path.strip()


def test_what_is_neither_here_nor_can_be_downloaded_is_told(variables: dict[str, str]) -> None:
    for command in ("pull", "rm"):
        told = line_of(run("models", command, "ftp://host/x.gguf", **variables), 1)
        assert "hf:owner/repo or https://" in told
    packaged = run("models", "pull", "smollm2-135m-instruct", **variables)
    assert Path(packaged.stdout.strip()).is_file()
    kept = line_of(run("models", "rm", "smollm2-135m-instruct", **variables), 1)
    assert kept == f"{packaged.stdout.strip()} was not downloaded: yours to delete"


def test_in_a_terminal_a_name_is_whole(
    server: HubServer, data: bytes, variables: dict[str, str]
) -> None:
    server.plain["m.gguf"] = data
    url = f"{server.url}/plain/m.gguf#sha256={sha256(data)}"
    assert run("models", "pull", url, **variables).exit_code == 0
    with terminal(["-m", "openai_local", "models", "list"], variables) as screen:
        assert screen.end() == 0
    assert f"  downloaded  {url}\n" in screen.text
    assert " packaged    smollm2-135m-instruct\n" in screen.text


def test_a_file_of_ones_own_is_shown_and_not_removed(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    assert "architecture:     llama\n" in run("models", "show", str(path)).stdout
    assert "yours to delete" in line_of(run("models", "rm", str(path)), 1)
    path.write_bytes(data[:500])
    assert str(path) in line_of(run("models", "show", str(path)), 1)
    assert "no model" in line_of(run("models", "pull", "hf:nothing"), 1)
