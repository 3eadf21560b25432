"""Server-sent events over plain ASGI: data lines, keep-alive comments, an end when left."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import anyio
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from openai_local.engine import EngineError, EngineStopped
from openai_local.routes.errors import shape
from openai_local.routes.host import STOP_POLL_S, client_left, stopping

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 10.0
LAST_SEND_S = 5.0
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold the events back
)


def event(data: Any) -> bytes:
    """One ``data:`` line and the empty line that ends the event."""
    return b"data: %b\n\n" % to_json(data)


class _Body:
    """A response's body: pieces in order, and comments while there are none."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._sent_at = time.monotonic()
        self._writing = False
        self._comment_sent: anyio.Event | None = None

    async def write(self, piece: bytes) -> None:
        # Not a lock: nearly always nobody else writes, and a lock was a tenth of the loop's work.
        if self._comment_sent is not None:
            await self._comment_sent.wait()
        self._writing = True
        await self._put(piece)
        self._writing = False

    async def keep_alive(self) -> None:
        while True:
            await anyio.sleep(STOP_POLL_S)
            if not self._writing and time.monotonic() - self._sent_at >= KEEP_ALIVE_S:
                self._comment_sent = anyio.Event()
                await self._put(KEEP_ALIVE)
                self._comment_sent.set()
                self._comment_sent = None

    async def end(self, last: bytes) -> None:
        with anyio.move_on_after(LAST_SEND_S):
            await self._put(last, more=False)

    async def _put(self, piece: bytes, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": more})
        self._sent_at = time.monotonic()


class EventStream:
    """An ASGI response of events; ``release`` is called at its end, however it comes.

    It ends as soon as the client goes away, or the server is told to stop. An error becomes one
    in-stream ``error`` event, since the status has left, and no ``[DONE]`` follows. ``done`` is
    what follows else.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        release: Callable[[], None],
        done: bytes = DONE,
    ) -> None:
        self._events = events
        self._release = release
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            await self._run(receive, send)
        except OSError:
            pass  # How a server says that the client has gone.
        finally:
            self._release()
            with anyio.CancelScope(shield=True):
                await self._events.aclose()

    async def _run(self, receive: Receive, send: Send) -> None:
        gone = False
        error: Exception | None = None
        body = _Body(send)

        async with anyio.create_task_group() as group:

            async def until_end(work: Callable[[], Awaitable[None]]) -> None:
                nonlocal error, gone
                try:
                    await work()
                except OSError:  # How a server says that the client has gone.
                    gone = True
                except Exception as raised:  # a task group would wrap it
                    error = raised
                group.cancel_scope.cancel()

            async def watch_client() -> None:
                nonlocal gone
                await client_left(receive)
                gone = True

            # It never writes: a client that does not read must not hold up the shutdown.
            async def watch_server() -> None:
                while not stopping():
                    await anyio.sleep(STOP_POLL_S)
                raise EngineStopped

            async def write_all() -> None:
                async for piece in self._events:
                    await body.write(piece)

            for watch in (watch_client, watch_server, body.keep_alive):
                group.start_soon(until_end, watch)
            await until_end(write_all)
        if not gone:
            await body.end(self._done if error is None else self._error(error))

    def _error(self, error: Exception) -> bytes:
        if not isinstance(error, EngineError):
            logger.error("a stream failed", exc_info=error)
        return event(shape(error).body())
