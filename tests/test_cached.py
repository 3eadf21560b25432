from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from assets import tiny
from assets.edit import Type, edited
from hub_server import HubServer, Repository, serve, sha256

from openai_local.engine.errors import InvalidGguf
from openai_local.models.cached import describe, list_cached, remove
from openai_local.models.fetch import fetch
from openai_local.models.hub import Hub
from openai_local.models.sources import parse_source

FILES = {
    "m-Q8_0.gguf": b"GGUF" * 100,
    "m-Q4_0-00001-of-00002.gguf": b"one",
    "m-Q4_0-00002-of-00002.gguf": b"two",
}


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serve() as server:
        server.repositories["o/n"] = Repository(dict(FILES))
        server.plain = {"w.gguf": b"web"}
        yield server


def test_what_was_fetched_is_listed_and_can_be_removed(server: HubServer, tmp_path: Path) -> None:
    hub, web = Hub(server.url, tmp_path / "hub"), tmp_path / "web"
    assert list_cached(hub, web) == []
    paths = {
        text: fetch(parse_source(text), hub=hub, cache=web)
        for text in ("hf:o/n", "hf:o/n:Q4_0", f"{server.url}/plain/w.gguf")
    }
    listed = {model.source: model for model in list_cached(hub, web)}
    whole = f"{server.url}/plain/w.gguf#sha256={sha256(b'web')}"
    assert {source: model.n_bytes for source, model in listed.items()} == {
        "hf:o/n:m-Q8_0.gguf": 400,
        "hf:o/n:m-Q4_0-00001-of-00002.gguf": 6,
        whole: 3,
    }
    assert {model.path for model in listed.values()} == set(paths.values())
    for source in listed:  # what is listed can be fetched, and is there
        assert fetch(parse_source(source), hub=hub, cache=web) == listed[source].path
    assert remove(parse_source("hf:o/n:Q4_0"), hub, web) == 6
    assert remove(parse_source("hf:o/n:Q4_0"), hub, web) == 0
    assert [model.source for model in list_cached(hub, web)] == ["hf:o/n:m-Q8_0.gguf", whole]
    assert paths["hf:o/n"].read_bytes() == FILES["m-Q8_0.gguf"]
    assert remove(parse_source("hf:o/n"), hub, web) == 400
    assert not list((tmp_path / "hub").glob("models--*"))
    assert remove(parse_source(whole), hub, web) >= 3
    assert list_cached(hub, web) == []


def test_what_two_revisions_share_stays_for_the_other(server: HubServer, tmp_path: Path) -> None:
    hub = Hub(server.url, tmp_path / "hub")
    fetch(parse_source("hf:o/n"), hub=hub)
    server.repositories["o/n"].commit = "b" * 40
    kept = fetch(parse_source("hf:o/n@v1"), hub=hub)
    assert [m.source for m in list_cached(hub)] == ["hf:o/n:m-Q8_0.gguf", "hf:o/n@v1:m-Q8_0.gguf"]
    assert remove(parse_source("hf:o/n"), hub) == 0
    assert kept.read_bytes() == FILES["m-Q8_0.gguf"]


def test_ones_own_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match="yours to delete"):
        remove(path)
    assert path.exists()


def test_a_description_tells_what_a_template_can(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "source.gguf")
    plain = describe(tmp_path / "source.gguf")
    assert plain.abilities is None and plain.no_chat == "it has no chat template"
    assert plain.memory.n_weights == plain.header.n_weight_bytes

    def with_template(text: str) -> Path:
        return edited(
            tmp_path / "source.gguf",
            tmp_path / "model.gguf",
            lambda fields, tensors: fields.update(
                {"tokenizer.chat_template": (text, Type.STRING, None)}
            ),
        )

    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert describe(with_template(template)).abilities == ("system",)
    shown = describe(with_template(template + "{% if tools %}{{ tools | tojson }}{% endif %}"))
    assert shown.abilities == ("system", "tools")
    assert "fails" in describe(with_template("{% if")).no_chat
    with pytest.raises(InvalidGguf):
        describe(tmp_path)
