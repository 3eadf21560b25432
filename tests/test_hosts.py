"""The application on real sockets: mounted in hosts, and by itself under every server."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from servers import (
    MODEL,
    SMALL,
    client_at,
    engine_threads,
    environment,
    process,
    serve,
    server_process,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import openai_local
from openai_local.application import Application

pytestmark = pytest.mark.model

PREFIXES = ("/v1", "/some/deep/prefix")
CHAT = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"},
    ],
    "temperature": 0,
    "max_tokens": 12,
}

SERVERS = {
    "uvicorn's factory": "uvicorn openai_local:app --factory --port {port}",
    "uvicorn": "uvicorn openai_local:app --port {port}",
    "hypercorn": "hypercorn openai_local.asgi:app --bind 127.0.0.1:{port}",
    "granian": "granian openai_local.asgi:app --interface asgi --port {port}",
    "daphne": "daphne openai_local.asgi:app --port {port}",
}


def check(url: str, model: str = MODEL, headers: Mapping[str, str] | None = None) -> None:
    """The OpenAI routes at ``url`` list, answer, stream and refuse."""
    body = {**CHAT, "model": model}
    with client_at(url) as client:
        client.headers.update(headers or {})
        listed = client.get("/models")
        assert listed.status_code == 200
        assert [entry["id"] for entry in listed.json()["data"]] == [model]

        whole = client.post("/chat/completions", json=body)
        assert whole.status_code == 200, whole.text
        assert whole.json()["object"] == "chat.completion"
        text = whole.json()["choices"][0]["message"]["content"]
        assert "Paris" in text

        with client.stream("POST", "/chat/completions", json={**body, "stream": True}) as response:
            assert response.status_code == 200
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            data = list(data_of(response.iter_lines()))
        assert data.pop() == "[DONE]"
        chunks = [json.loads(piece) for piece in data]
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"

        missing = client.get("/nothing")
        assert missing.status_code == 404
        assert missing.json()["error"].keys() == {"message", "type", "param", "code"}
        assert missing.json()["error"]["code"] == "unknown_url"


def data_of(lines: Iterable[str]) -> Iterator[str]:
    """The data of an event stream's lines, without comments."""
    for line in lines:
        if line and not line.startswith(":"):
            assert line.startswith("data: "), line
            yield line.removeprefix("data: ")


def fastapi_host(local: Application, with_lifespan: bool) -> FastAPI:
    host = FastAPI(lifespan=local.lifespan if with_lifespan else None)

    @host.get("/own")
    async def own() -> dict[str, str]:
        return {"from": "the host"}

    for prefix in PREFIXES:
        host.mount(prefix, local)
    return host


def starlette_host(local: Application, with_lifespan: bool) -> Starlette:
    async def own(request: Request) -> PlainTextResponse:
        return PlainTextResponse("the host's")

    routes = [Route("/own", own), *(Mount(prefix, local) for prefix in PREFIXES)]
    return Starlette(routes=routes, lifespan=local.lifespan if with_lifespan else None)


@pytest.mark.parametrize("make_host", [fastapi_host, starlette_host])
@pytest.mark.parametrize("with_lifespan", [True, False])
def test_it_answers_in_a_host_at_any_prefix_loaded_before_or_on_use(
    make_host: Callable[[Application, bool], Any], with_lifespan: bool
) -> None:
    local = openai_local.app(**SMALL)
    before = engine_threads()
    with serve(make_host(local, with_lifespan)) as url:
        assert len(engine_threads() - before) == with_lifespan
        for prefix in PREFIXES:
            check(url + prefix)
        assert len(engine_threads() - before) == 1
    anyio.run(local.aclose)
    assert not engine_threads() - before


def test_what_is_the_hosts_stays_the_hosts() -> None:
    local = openai_local.app(**SMALL)
    with serve(fastapi_host(local, False)) as url, client_at(url) as client:
        own = client.get("/own")
        missing = client.get("/v2/models")
        described = client.get("/openapi.json")
        documented = client.get("/docs")
    assert own.json() == {"from": "the host"}
    assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})
    assert described.status_code == documented.status_code == 200
    assert list(described.json()["paths"]) == ["/own"]
    with serve(starlette_host(local, False)) as url, client_at(url) as client:
        own = client.get("/own")
        missing = client.get("/v2/models")
    assert own.text == "the host's"
    assert (missing.status_code, missing.text) == (404, "Not Found")


def test_two_applications_in_one_host_keep_their_settings() -> None:
    small = openai_local.app(**{**SMALL, "n_ctx": 256}, model_id="small")
    large = openai_local.app(**SMALL, model_id="large", api_key="secret")

    @asynccontextmanager
    async def lifespan(host: Starlette) -> AsyncIterator[None]:
        async with small.lifespan(), large.lifespan():
            yield

    host = Starlette(routes=[Mount("/small", small), Mount("/large", large)], lifespan=lifespan)
    long = {"prompt": [100] * 300, "max_tokens": 1}
    key = {"authorization": "Bearer secret"}
    with serve(host) as url, client_at(url) as client:
        check(f"{url}/small", "small")
        check(f"{url}/large", "large", key)
        too_long = client.post("/small/completions", json={**long, "model": "small"})
        fits = client.post("/large/completions", json={**long, "model": "large"}, headers=key)
        keyless = client.get("/large/models")
        other = client.post("/small/chat/completions", json={**CHAT, "model": "large"})
    assert too_long.json()["error"]["code"] == "context_length_exceeded"
    assert fits.json()["usage"]["prompt_tokens"] == 300
    assert keyless.status_code == 401
    assert other.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("server", SERVERS)
def test_it_answers_by_itself_under(server: str) -> None:
    command = ["-m", *SERVERS[server].split()]
    one_long = environment(n_ctx=8192, n_parallel=1)
    with server_process(command, one_long) as running:
        # The only place is taken for minutes if the server holds chunks or the leaving back.
        endless = {**CHAT, "max_tokens": None, "ignore_eos": True, "stream": True}
        with (
            client_at(running.url) as client,
            client.stream("POST", "/v1/chat/completions", json=endless) as response,
        ):
            data = data_of(response.iter_lines())
            assert [next(data) for _ in range(3)]
        check(f"{running.url}/v1")
        check(running.url)
        running.process.send_signal(signal.SIGINT)
        running.wait(10)
        assert "Traceback" not in running.output


def test_the_command_line_says_where_it_serves_and_ends_at_ctrl_c() -> None:
    with process(["-m", "openai_local", "serve", "--port", "0"]) as running:
        running.wait_until(lambda: "client.chat" in running.output, "the URL")
        url = re.findall(r"^Serving (\S+) on (http://127\.0\.0\.1:\d+)$", running.output, re.M)
        assert [model for model, _ in url] == [MODEL]
        check(f"{url[0][1]}/v1")
        running.process.send_signal(signal.SIGINT)
        running.wait(10)
        assert "Traceback" not in running.output
