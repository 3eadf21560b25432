"""The application in front of another: whose request it is, and both lifespans through one door."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from clients import MESSAGES, MODEL, client_of
from fakes import FakeBackend, fake_app
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

import openai_local
from openai_local.engine import Engine

pytestmark = pytest.mark.anyio

CHAT = {"model": MODEL, "messages": MESSAGES, "max_tokens": 2}
COMPLETE = "lifespan.startup.complete"
STOPPED = "lifespan.shutdown.complete"


async def plain_host(scope: Any, receive: Any, send: Any) -> None:
    """Says what it was asked for; has no lifespan."""
    assert scope["type"] in ("http", "websocket"), f"unknown scope {scope['type']!r}"
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000, "reason": scope["path"]})
        return
    await JSONResponse({"host": scope["path"], "root": scope["root_path"]})(scope, receive, send)


def scope_of(path: str, root_path: str = "", kind: str = "http") -> dict[str, Any]:
    return {
        "type": kind, "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
        "root_path": root_path, "headers": [], "client": ("test", 1), "server": ("test", 80),
    }  # fmt: skip


class Messages:
    """Both sides of one ASGI call; what the application sends is kept."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.into, self._received = anyio.create_memory_object_stream[Any](9)

    async def receive(self) -> Any:
        return await self._received.receive()

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def types(self) -> list[str]:
        return [message["type"] for message in self.sent]

    async def until(self, n_sent: int) -> None:
        with anyio.fail_after(10):
            while len(self.sent) < n_sent:
                await anyio.sleep(0.001)

    def close(self) -> None:
        self.into.close()
        self._received.close()


@asynccontextmanager
async def server(app: Any) -> AsyncIterator[Messages]:
    """Runs the application's lifespan as a server does, to its startup and from its shutdown."""
    messages = Messages()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    try:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(app, scope, messages.receive, messages.send)
                await messages.into.send({"type": "lifespan.startup"})
                await messages.until(1)
                yield messages
                await messages.into.send({"type": "lifespan.shutdown"})
    finally:
        messages.close()


@pytest.mark.parametrize("prefix", ["/ai", "ai", "/ai/", "//ai//"])
async def test_what_is_below_the_prefix_is_ours_and_all_else_the_hosts(prefix: str) -> None:
    local = fake_app()
    app = openai_local.Middleware(plain_host, prefix, local=local)
    async with client_of(app) as client:
        chat = await client.post("/ai/chat/completions", json=CHAT)
        with_v1 = await client.get("/ai/v1/models")
        nothing = await client.get("/ai/nothing")
        alone = await client.get("/ai")
        slash = await client.get("/ai/")
        others = [await client.get(path) for path in ("/", "/aim/models", "/x/ai", "/AI/models")]
    await local.aclose()
    assert (chat.status_code, with_v1.status_code) == (200, 200)
    for missing in (nothing, alone, slash):
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_url")
    assert [o.json()["host"] for o in others] == ["/", "/aim/models", "/x/ai", "/AI/models"]


@pytest.mark.parametrize("in_path", [True, False])
async def test_a_prefix_that_a_proxy_cut_off_is_in_the_urls_that_we_emit(in_path: bool) -> None:
    local = fake_app()
    app = openai_local.Middleware(plain_host, "/ai", local=local)
    for path in ("/ai/openapi.json", "/ai/v1/openapi.json"):
        messages = Messages()
        scope = scope_of(("/proxied" if in_path else "") + path, "/proxied")
        before = dict(scope)
        await app(scope, messages.receive, messages.send)
        assert messages.sent[0]["status"] == 200
        server = path.removesuffix("/openapi.json")
        assert f'"servers":[{{"url":"/proxied{server}"}}]'.encode() in messages.sent[1]["body"]
        assert scope == before
        messages.close()


async def test_websockets_are_the_hosts_at_any_path() -> None:
    local = fake_app()
    messages = Messages()
    app = openai_local.Middleware(plain_host, "/v1", local=local)
    await app(scope_of("/v1/realtime", kind="websocket"), messages.receive, messages.send)
    messages.close()
    assert [message["reason"] for message in messages.sent] == ["/v1/realtime"]


async def test_two_of_them_stand_one_behind_the_other_and_below_a_mount() -> None:
    first, second = fake_app(model_id="first"), fake_app(model_id="second")
    inner = openai_local.Middleware(plain_host, "/second", local=second)
    app = Starlette(routes=[Mount("/ai", openai_local.Middleware(inner, "/first", local=first))])
    async with client_of(app) as client:
        listed = [await client.get(f"/ai/{name}/models") for name in ("first", "second")]
        other = await client.get("/ai/third/models")
    assert [each.json()["data"][0]["id"] for each in listed] == ["first", "second"]
    assert other.json() == {"host": "/ai/third/models", "root": "/ai"}


def test_settings_are_those_of_app_and_mistakes_are_named() -> None:
    assert openai_local.Middleware(plain_host, model="m.gguf", n_ctx=99).local.settings.n_ctx == 99
    with pytest.raises(openai_local.ConfigError, match="n_contxt"):
        openai_local.Middleware(plain_host, n_contxt=99)
    with pytest.raises(openai_local.ConfigError, match="prefix"):
        openai_local.Middleware(plain_host, "/")
    with pytest.raises(openai_local.ConfigError, match="n_ctx"):
        openai_local.Middleware(plain_host, local=fake_app(), n_ctx=99)


def logging_host(log: list[str], backend: FakeBackend) -> Starlette:
    """Starts and stops with a line in ``log`` that says whether the model is there."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, int]]:
        log.append("host starts" + " closed" * backend.closed)
        yield {"made": 42}
        log.append("host stops" + " closed" * backend.closed)

    async def own(request: Request) -> JSONResponse:
        return JSONResponse({})

    return Starlette(routes=[Route("/own", own)], lifespan=lifespan)


@pytest.mark.parametrize("warm", [True, False])
async def test_the_model_lives_around_the_hosts_lifespan(warm: bool) -> None:
    log: list[str] = []
    backend = FakeBackend()

    def open_backend(config: Any, stopping: Any) -> FakeBackend:
        log.append("loaded")
        return backend

    local = openai_local.Application(
        fake_app().settings, lambda config: Engine(config, open_backend=open_backend)
    )
    host = logging_host(log, backend)
    host.add_middleware(openai_local.Middleware, local=local, warm=warm)
    async with server(host) as messages:
        assert messages.types == [COMPLETE]
        async with client_of(host) as client:
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
            assert (await client.get("/own")).status_code == 200
    assert messages.types == [COMPLETE, STOPPED]
    assert backend.closed
    ours, theirs = ["loaded"], ["host starts"]
    assert log == [*(ours + theirs if warm else theirs + ours), "host stops"]


async def test_the_state_that_a_host_leaves_for_its_requests_arrives() -> None:
    local = fake_app()
    host = logging_host([], FakeBackend())
    messages = Messages()
    scope: dict[str, Any] = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    for kind in ("startup", "shutdown"):
        await messages.into.send({"type": f"lifespan.{kind}"})
    app = openai_local.Middleware(host, local=local)
    await app(scope, messages.receive, messages.send)
    messages.close()
    assert messages.types == [COMPLETE, STOPPED]
    assert scope["state"] == {"made": 42}


async def silent_host(scope: Any, receive: Any, send: Any) -> None:
    return


async def listening_host(scope: Any, receive: Any, send: Any) -> None:
    await receive()


@pytest.mark.parametrize("host", [plain_host, silent_host, listening_host])
async def test_a_host_without_a_lifespan_is_served_with_ours(host: Any) -> None:
    backend = FakeBackend()
    app = openai_local.Middleware(host, local=fake_app(backend))
    async with server(app) as messages:
        assert messages.types == [COMPLETE]
        assert not backend.closed
    assert messages.types == [COMPLETE, STOPPED]
    assert backend.closed


async def test_a_host_that_does_not_start_says_so_and_the_model_is_freed() -> None:
    backend = FakeBackend()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        assert not backend.closed
        raise ValueError("the host's own trouble")
        yield

    app = openai_local.Middleware(Starlette(lifespan=lifespan), local=fake_app(backend))
    async with server(app) as messages:
        assert messages.types == ["lifespan.startup.failed"]
        assert "the host's own trouble" in messages.sent[0]["message"]
        assert backend.closed


async def test_a_model_that_cannot_be_loaded_keeps_the_host_from_starting(tmp_path: Path) -> None:
    log: list[str] = []
    host = logging_host(log, FakeBackend())
    missing = tmp_path / "missing.gguf"
    app = openai_local.Middleware(host, model=missing)
    async with server(app) as messages:
        assert messages.types == ["lifespan.startup.failed"]
        assert str(missing) in messages.sent[0]["message"]
    assert log == []


async def test_a_host_that_fails_while_it_runs_or_stops_leaves_the_model_till_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        await send({"type": COMPLETE})
        raise ValueError("much later")

    backend = FakeBackend()
    with caplog.at_level(logging.ERROR, "openai_local"):
        async with server(openai_local.Middleware(failing, local=fake_app(backend))) as messages:
            assert not backend.closed
    assert messages.types == [COMPLETE, "lifespan.shutdown.failed"]
    assert messages.sent[1]["message"] == "much later"
    assert backend.closed
    assert "the host's lifespan failed" in caplog.text


@pytest.mark.parametrize("error", [None, ValueError("at the very end")])
async def test_a_host_that_ends_without_a_word_is_spoken_for(error: Exception | None) -> None:
    async def host(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": COMPLETE})
        assert (await receive())["type"] == "lifespan.shutdown"
        if error is not None:
            raise error

    backend = FakeBackend()
    async with server(openai_local.Middleware(host, local=fake_app(backend))) as messages:
        pass
    assert messages.types[1:] == [STOPPED if error is None else "lifespan.shutdown.failed"]
    assert backend.closed


@given(
    st.text("/av1", max_size=6), st.sampled_from(["", "/a", "/v1", "/a/v1", "/a/"]), st.text("/av1")
)
def test_every_path_is_either_ours_or_the_hosts_untouched(
    prefix: str, root: str, path: str
) -> None:
    if not prefix.strip("/"):
        return
    seen: list[Any] = []

    async def host(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    class Local:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope)

    app = openai_local.Middleware(host, prefix, local=Local())  # type: ignore[arg-type]
    scope = scope_of(root + "/" + path, root)
    anyio.run(app, scope, None, None)
    (given_on,) = seen
    inner = "/" + path
    at = "/" + prefix.strip("/")
    if inner == at or inner.startswith(at + "/"):
        above = root.rstrip("/")
        assert given_on["root_path"] == above + at
        assert given_on["path"] == above + inner
    else:
        assert given_on is scope
