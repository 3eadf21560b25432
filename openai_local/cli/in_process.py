"""An ASGI application under a synchronous client, in this process and without a socket."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
from anyio.from_thread import BlockingPortal

# What a body's iterator finds at its end.
_END = None


class InProcessTransport(httpx.BaseTransport):
    """Hands requests to ``app`` in the portal's event loop; parts of answers come as they are."""

    def __init__(self, app: Any, portal: BlockingPortal) -> None:
        self._app = app
        self._portal = portal

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        exchange = _Exchange(self._app, self._portal, request)
        status, headers = exchange.start()
        return httpx.Response(status, headers=headers, stream=exchange)


class _Exchange(httpx.SyncByteStream):
    """One request and its answer. The application's messages come through a queue."""

    def __init__(self, app: Any, portal: BlockingPortal, request: httpx.Request) -> None:
        self._app = app
        self._portal = portal
        self._body = request.read()
        self._messages: queue.SimpleQueue[dict[str, Any] | BaseException | None]
        self._messages = queue.SimpleQueue()
        self._asked = False
        self._left = portal.call(anyio.Event)
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path,
            "query_string": request.url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": None,
            "server": (request.url.host, request.url.port),
        }

    def start(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Wait for the answer's status and headers."""
        self._task = self._portal.start_task_soon(self._run)
        try:
            message = self._next()
        except BaseException:
            self.close()
            raise
        assert message is not None, "an application answers"
        return message["status"], list(message.get("headers", ()))

    def __iter__(self) -> Iterator[bytes]:
        while (message := self._next()) is not _END:
            yield message.get("body", b"")

    def close(self) -> None:
        """Whoever waits no longer has left, as with a connection that is closed."""
        self._portal.call(self._left.set)

    def _next(self) -> dict[str, Any] | None:
        message = self._messages.get()
        if isinstance(message, BaseException):
            raise message
        return message

    async def _run(self) -> None:
        async def send(message: Any) -> None:
            self._messages.put(message)

        try:
            await self._app(self._scope, self._receive, send)
        except Exception as error:
            self._messages.put(error)
        self._messages.put(_END)

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}
