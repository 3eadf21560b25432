"""OpenAI's own clients on an application in this process, asyncio's, trio's and the plain one."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from typing import Any

import anyio
import httpx
import openai
import pytest
from clients import MESSAGES, MODEL, n_cancelled, until, until_async
from fakes import FakeBackend, fake_app, spelling
from openai.types.chat import ChatCompletionMessageParam
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

import openai_local
from openai_local.inprocess.transports import async_transport

CHAT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


def hello() -> FakeBackend:
    return FakeBackend(next_token=spelling("hello"), step_s=0.002)


# Of the client's own generators, which it leaves behind [DONE]: trio warns about such.
@pytest.mark.filterwarnings("ignore:.*async_generator:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.anyio
async def test_the_async_client_gets_answers_whole_and_streamed() -> None:
    app = fake_app(hello())
    async with openai_local.client(app) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=CHAT, temperature=0)
        assert answer.choices[0].message.content == "hello"
        stream = await client.chat.completions.create(
            model=MODEL, messages=CHAT, temperature=0, stream=True
        )
        async with stream:
            texts = [chunk.choices[0].delta.content async for chunk in stream]
        assert "".join(text or "" for text in texts) == "hello"
        assert [model.id async for model in client.models.list()] == [MODEL]
        vectors = await client.embeddings.create(model=MODEL, input=["ab", "cd"])
        assert len(vectors.data) == 2
    assert app.registry.loaded(MODEL) is not None, "it belongs to somebody else"
    await app.aclose()


@pytest.mark.anyio
async def test_pieces_come_when_they_are_made() -> None:
    release = anyio.Event()

    async def slow(request: Request) -> StreamingResponse:
        async def pieces() -> Any:
            yield "one"
            await release.wait()
            yield "two"

        return StreamingResponse(pieces())

    host = Starlette(routes=[Route("/slow", slow)])

    async def close() -> None: ...

    transport = async_transport(httpx, host, close)
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        with anyio.fail_after(10):
            async with client.stream("GET", "/slow") as response:
                pieces = response.aiter_text()
                assert await anext(pieces) == "one"
                release.set()
                assert await anext(pieces) == "two"
                assert [piece async for piece in pieces] == []


@pytest.mark.anyio
async def test_leaving_a_stream_frees_its_place() -> None:
    app = fake_app(FakeBackend(n_ctx=4096, step_s=0.01))
    async with openai_local.client(app) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=CHAT, stream=True)
        async with stream:
            await anext(stream)
        await until_async(lambda: n_cancelled(app) == 1)
        with anyio.move_on_after(0.1):
            await client.chat.completions.create(model=MODEL, messages=CHAT)
        await until_async(lambda: n_cancelled(app) == 2)
    await app.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio warns about what is dropped
async def test_dropping_a_stream_frees_its_place(anyio_backend: str) -> None:
    app = fake_app(FakeBackend(n_ctx=4096, step_s=0.01))
    client = openai_local.client(app)
    async for _ in await client.chat.completions.create(model=MODEL, messages=CHAT, stream=True):
        break
    # The client's generators, its response and its stream know each other, and end by turns.
    await until_async(lambda: gc.collect() >= 0 and n_cancelled(app) == 1)
    await app.aclose()


@pytest.mark.anyio
async def test_errors_are_the_clients_own() -> None:
    app = fake_app(FakeBackend(n_ctx=4096, step_s=0.05), api_key="secret")
    async with openai_local.client(app, max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="other", messages=CHAT)
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=MODEL, messages=CHAT, store=True)
        assert refused.value.param == "store"
        await client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=1)
        with pytest.raises(openai.APITimeoutError):
            await client.with_options(timeout=0.3).chat.completions.create(
                model=MODEL, messages=CHAT
            )
        await until_async(lambda: n_cancelled(app) == 1)
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="wrong").models.list()
    await app.aclose()


@pytest.mark.anyio
async def test_the_host_answers_in_front_and_its_failures_are_errors_too() -> None:
    local = fake_app(hello())

    async def fails(request: Request) -> PlainTextResponse:
        raise LookupError("the host's")

    async def breaks(request: Request) -> StreamingResponse:
        async def pieces() -> Any:
            yield "data: {}\n\n"
            raise LookupError("the host's")

        return StreamingResponse(pieces(), media_type="text/event-stream")

    routes = [
        Route("/bad/models", fails),
        Route("/torn/chat/completions", breaks, methods=["POST"]),
        Mount("/ai/v1", local),
    ]
    host = Starlette(routes=routes)
    async with openai_local.client(host, prefix="/ai/v1", max_retries=0) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=CHAT)
        assert answer.model == MODEL
    async with openai_local.client(host, prefix="/bad", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError):
            await client.models.list()
    async with openai_local.client(host, prefix="/torn", max_retries=0) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=CHAT, stream=True)
        with pytest.raises(openai.APIConnectionError):
            async with stream:
                async for _ in stream:
                    pass
    await local.aclose()


def test_an_application_that_says_nothing_is_a_server_error() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None: ...

    with openai_local.sync_client(silent, max_retries=0) as client:
        with pytest.raises(openai.InternalServerError, match="the application failed"):
            client.models.list()


def test_the_plain_client_streams_from_any_thread_and_frees_what_it_leaves() -> None:
    app = fake_app(FakeBackend(n_ctx=4096, step_s=0.01))
    with openai_local.sync_client(app, max_retries=0) as client:
        answer = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=3)
        assert answer.usage is not None and answer.usage.completion_tokens == 3
        chunks = list(
            client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=3, stream=True)
        )
        assert len(chunks) == 5
        with client.chat.completions.create(model=MODEL, messages=CHAT, stream=True) as stream:
            next(stream)
        until(lambda: n_cancelled(app) == 1)
        for _ in client.chat.completions.create(model=MODEL, messages=CHAT, stream=True):
            break
        gc.collect()  # httpx's response and its stream know each other
        until(lambda: n_cancelled(app) == 2)
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.1).chat.completions.create(model=MODEL, messages=CHAT)
        until(lambda: n_cancelled(app) == 3)
    until(lambda: all(t.name != "openai_local sync client" for t in threading.enumerate()))
    anyio.run(app.aclose)


def test_a_client_of_a_file_frees_its_model_when_it_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = FakeBackend()
    made = fake_app(backend)
    monkeypatch.setattr("openai_local.inprocess.clients.own_application", lambda model: made)
    with openai_local.sync_client("fake.gguf") as client:
        assert client.models.list().data[0].id == MODEL
        client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=1)
    assert backend.closed


@pytest.mark.anyio
async def test_what_a_request_is_to_the_application() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, await receive()))
        await send({"type": "http.response.start", "status": 204, "headers": [(b"x-a", b"1")]})
        await send({"type": "http.response.body"})

    async def close() -> None:
        seen.append("closed")

    transport = async_transport(httpx, app, close)
    async with httpx.AsyncClient(transport=transport, base_url="http://host:81/v1") as client:
        response = await client.post("/a%20b/c?d=%20e", content=b"body", headers={"X-B": "2"})
    (scope, message), closed = seen
    assert closed == "closed"
    assert (response.status_code, response.headers["x-a"]) == (204, "1")
    assert message == {"type": "http.request", "body": b"body", "more_body": False}
    assert (scope["path"], scope["raw_path"]) == ("/v1/a b/c", b"/v1/a%20b/c")
    assert scope["query_string"] == b"d=%20e"
    assert (scope["method"], scope["server"]) == ("POST", ("host", 81))
    assert (b"x-b", b"2") in scope["headers"]


def test_without_openais_package_one_line_says_so() -> None:
    script = """
import sys
sys.modules["openai"] = None
import openai_local
local = openai_local.app("m.gguf")
try:
    openai_local.client(local)
except ImportError as error:
    assert "pip install openai" in str(error), error
else:
    raise SystemExit(1)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


def test_the_messages_of_these_tests_are_those_of_the_others() -> None:
    assert CHAT == MESSAGES
