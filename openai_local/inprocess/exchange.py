"""One request to an ASGI application in this process, and its response while it is sent.

The application runs in a task of its own, asyncio's or trio's, that outlives who began it: a
response is read wherever its client likes. It is told of a client that left as servers tell it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Scope

from openai_local.engine.bridge import Loop

logger = logging.getLogger(__name__)

# So many pieces may wait for the client; then the application does.
MAX_UNREAD = 64
BROKEN = (
    b'{"error":{"message":"the application failed","type":"server_error","param":null,"code":null}}'
)


class Broken(Exception):
    """The application ended before its response did."""


@dataclass(frozen=True, slots=True)
class Head:
    """How a response begins."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]


class _Server:
    """The application's side. It knows nothing of the client's, which may be dropped."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._left = anyio.Event()
        # Both ends are here, so that one is not dropped unclosed together with the client's side.
        self._send, self.sent = anyio.create_memory_object_stream[Message](MAX_UNREAD)

    def leave(self) -> None:
        """The client reads no more."""
        self._left.set()
        self.sent.close()

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._put)
        except OSError:
            logger.debug("a client left the application", exc_info=True)
        except Exception:
            logger.exception("the application failed")
        finally:
            self._send.close()

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _put(self, message: Message) -> None:
        try:
            await self._send.send(message)
        except anyio.BrokenResourceError:
            raise OSError("the client has left") from None


class Exchange:
    """Begun with :meth:`begin`, then iterated, and left with :meth:`leave`, or when it is
    dropped. For one event loop."""

    def __init__(self, timeout_s: float | None) -> None:
        """``timeout_s`` bounds the wait for the head, and for each piece."""
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        self._loop = Loop()
        self._failed = False
        self._server: _Server | None = None  # while there is something to read

    async def begin(self, app: ASGIApp, scope: Scope, body: bytes, tasks: set[Any]) -> Head:
        """Run the application until its response begins, in a task that ``tasks`` keep alive.

        Raises TimeoutError. An application that fails before has a response that says so.
        """
        self._server = server = _Server(body)
        _spawn(lambda: server.run(app, scope), tasks)
        try:
            with anyio.fail_after(self._timeout_s):
                start = await server.sent.receive()
        except anyio.EndOfStream:
            self.leave()
            self._failed = True
            return Head(500, [(b"content-type", b"application/json")])
        except BaseException:
            self.leave()
            raise
        return Head(start["status"], start.get("headers", ()))

    def __aiter__(self) -> Exchange:
        """The pieces of the response's body."""
        return self

    async def __anext__(self) -> bytes:
        """Raises TimeoutError, Broken."""
        while self._server is not None:
            try:
                with anyio.fail_after(self._timeout_s):
                    message = await self._server.sent.receive()
            except anyio.EndOfStream:
                raise Broken("the application ended before its response did") from None
            if not message.get("more_body", False):
                self.leave()
            piece: bytes = message.get("body", b"")
            if piece:
                return piece
        if self._failed:
            self._failed = False
            return BROKEN
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.leave()

    def leave(self) -> None:
        """Nobody reads any more. Safe to repeat."""
        server, self._server = self._server, None
        if server is not None:
            server.leave()

    def __del__(self) -> None:
        if self._server is not None:  # in whatever thread
            self._loop.post(self._server.leave)


def _spawn(work: Callable[[], Awaitable[None]], tasks: set[Any]) -> None:
    """Start a task that belongs to the loop alone; ``work`` raises nothing."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        import trio

        trio.lowlevel.spawn_system_task(work, context=contextvars.copy_context())
    else:
        task = asyncio.ensure_future(work())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
