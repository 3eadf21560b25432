"""Talks to an ASGI application without a socket."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
from fakes import FakeBackend, fake_app

from openai_local.application import Application

MODEL = "fake"
MESSAGES = [{"role": "user", "content": "hello"}]


@asynccontextmanager
async def client_of(app: Any, prefix: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """An httpx client of ``app``. Its transport hands bodies over whole, streams included."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://test{prefix}") as client:
        yield client


@asynccontextmanager
async def serving(
    backend: FakeBackend | None = None, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a fake application, which is closed at the end."""
    app = fake_app(backend, **options)
    async with client_of(app) as client:
        try:
            yield client
        finally:
            await app.aclose()


def events_of(response: httpx.Response) -> list[Any]:
    """The data of a whole event stream; the last must be [DONE], which is left out."""
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block[6:]) for block in blocks]


def n_cancelled(app: Application) -> int:
    """How many generations of the model were given up, if it is loaded."""
    loaded = app.registry.loaded(MODEL)
    return 0 if loaded is None else loaded.engine.metrics().requests_cancelled_total


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


async def until_async(condition: Callable[[], bool]) -> None:
    """The same in a loop, which goes on meanwhile."""
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.001)


class OpenRequest:
    """One request over plain ASGI, whose messages are seen as they are sent."""

    def __init__(self, app: Application, path: str, body: dict[str, Any]) -> None:
        self.messages: list[Any] = []
        self.ended = anyio.Event()
        self.leave = anyio.Event()
        self._app = app
        self._body: bytes | None = json.dumps(body).encode()
        self._arrived = anyio.Event()
        self.scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "headers": [], "client": ("test", 1), "server": ("test", 80),
        }  # fmt: skip

    async def run(self) -> None:
        await self._app(self.scope, self._receive, self._send)
        self.ended.set()

    async def until(self, text: bytes) -> None:
        """Wait until ``text`` was sent."""
        with anyio.fail_after(10):
            while text not in self.body:
                self._arrived = anyio.Event()
                await self._arrived.wait()

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.messages.append(message)
        self._arrived.set()
