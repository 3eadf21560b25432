"""Models that are downloaded when they are asked for, in an application."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest
from clients import MESSAGES, client_of
from hub_server import HubServer, Repository, serve, sha256
from shelf import Shelf

from openai_local.config import ConfigError, load_settings
from openai_local.models.catalog import Catalog
from openai_local.models.sources import HubSource, WebSource

pytestmark = pytest.mark.anyio

DATA = b"GGUF, as far as anybody here knows" * 100_000


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    import huggingface_hub.constants as hub

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with serve() as server:
        monkeypatch.setattr(hub, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(hub, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        server.plain = {"a.gguf": DATA}
        server.repositories["owner/name"] = Repository({"b-Q4_K_M.gguf": DATA})
        yield server


async def ask(client: httpx.AsyncClient, model: str) -> httpx.Response:
    body = {"model": model, "messages": MESSAGES, "max_tokens": 2}
    return await client.post("/chat/completions", json=body)


async def until(condition: object) -> None:
    assert callable(condition)
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.01)


async def test_the_first_request_waits_for_the_download_and_its_progress_is_shown(
    server: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.gate = threading.Event()
    app = Shelf({"a": 1}).app(models={"mine": f"{server.url}/plain/a.gguf#sha256={sha256(DATA)}"})
    answers = []
    with caplog.at_level(logging.INFO, "openai_local"):
        async with client_of(app, "/v1") as client, anyio.create_task_group() as group:

            async def first() -> None:
                answers.append(await ask(client, "mine"))

            group.start_soon(first)
            await until(lambda: app.registry.state("mine").progress > 0.2)
            status = (await client.get("/models/mine")).json()["status"]
            assert (await client.get("/models")).status_code == 200
            server.gate.set()
    assert status["value"] == "downloading" and 0.2 < status["progress"] < 0.8
    assert answers[0].status_code == 200 and answers[0].json()["model"] == "mine"
    assert "downloading http" in caplog.text and "100 % of" in caplog.text
    await app.aclose()


async def test_a_model_of_the_hub_is_served_by_its_repositorys_name(server: HubServer) -> None:
    app = Shelf({"b-Q4_K_M": 1}).app(models={}, model="hf:owner/name")
    async with client_of(app, "/v1") as client:
        assert [m["id"] for m in (await client.get("/models")).json()["data"]] == ["name"]
        assert server.requests == []
        assert (await ask(client, "name")).status_code == 200
    await app.aclose()


async def test_a_download_that_fails_is_told_to_who_asked_and_tried_again(
    server: HubServer,
) -> None:
    del server.plain["a.gguf"]
    app = Shelf({"a": 1}).app(models={"mine": f"{server.url}/plain/a.gguf"})
    async with client_of(app, "/v1") as client:
        refused = await ask(client, "mine")
        assert refused.status_code == 503
        message = refused.json()["error"]["message"]
        assert "cannot get http" in message and "there is no such file (404)" in message
        server.plain["a.gguf"] = DATA
        assert (await ask(client, "mine")).status_code == 200
    await app.aclose()


async def test_closing_gives_a_download_up_and_the_next_goes_on(server: HubServer) -> None:
    server.gate = threading.Event()
    options = {"models": {"mine": f"{server.url}/plain/a.gguf#sha256={sha256(DATA)}"}}
    app = Shelf({"a": 1}).app(**options)
    async with client_of(app, "/v1") as client, anyio.create_task_group() as group:
        group.start_soon(ask, client, "mine")
        await until(lambda: app.registry.state("mine").progress > 0.2)
        threading.Timer(0.2, server.gate.set).start()
        await app.aclose()
    server.gate = None
    again = Shelf({"a": 1}).app(**options)
    async with client_of(again, "/v1") as client:
        assert (await ask(client, "mine")).status_code == 200
    assert "range" in server.transfers()[-1]
    await again.aclose()


async def test_offline_is_a_setting(server: HubServer) -> None:
    app = Shelf({"b": 1}).app(models={"mine": "hf:owner/name"}, offline=True)
    async with client_of(app, "/v1") as client:
        refused = await ask(client, "mine")
    assert "this is offline, and it is not in the cache" in refused.json()["error"]["message"]
    assert server.requests == []
    await app.aclose()


def test_settings_say_where_models_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        'model = "hf:owner/name:Q8_0"\nembedding_model = "mini.gguf"\n'
        '[models]\nweb = "https://models.example/w.gguf"\n[models.hub]\npath = "hf:o/n@v1"\n'
    )
    settings = load_settings(config=file)
    assert settings.model == HubSource("owner/name", None, "Q8_0")
    assert settings.embedding_model == tmp_path / "mini.gguf"
    assert settings.models["web"].path == WebSource("https://models.example/w.gguf")
    assert settings.models["hub"].path == HubSource("o/n", "v1")
    assert [spec.id for spec in Catalog(settings).list()] == ["name", "mini", "web", "hub"]
    monkeypatch.setenv("OPENAI_LOCAL_MODEL", "hf:owner/name")
    assert load_settings().model == HubSource("owner/name")
    monkeypatch.setenv("OPENAI_LOCAL_MODEL", "hf:name")
    with pytest.raises(ConfigError, match="OPENAI_LOCAL_MODEL: hf: is followed by owner/repo"):
        load_settings()
    with pytest.raises(ConfigError, match="models.a.path: a file may be changed on its way"):
        load_settings(model="m.gguf", models={"a": "http://models.example/w.gguf"})
