"""Server-sent events over plain ASGI: data lines, keep-alive comments, an end when left."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from typing import Any

import anyio
from starlette.types import Receive, Scope, Send

from openai_local.routes.errors import shape

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 10.0
DONE = b"data: [DONE]\n\n"


def event(data: Any) -> bytes:
    """One ``data:`` line and the empty line that ends the event."""
    return b"data: %s\n\n" % json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


class EventStream:
    """An ASGI response of events. Ends the generator as soon as the client goes away.

    An error of the generator becomes one in-stream ``error`` event: the status has left.
    """

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        lock = anyio.Lock()

        async def write(body: bytes, more: bool = True) -> None:
            async with lock:
                await send({"type": "http.response.body", "body": body, "more_body": more})

        async with anyio.create_task_group() as group:
            group.start_soon(_watch, receive, group.cancel_scope)
            group.start_soon(self._keep_alive, write)
            try:
                await self._write_all(write)
            except OSError:
                pass  # The server says so where the client has gone.
            group.cancel_scope.cancel()

    async def _write_all(self, write: Any) -> None:
        self._quiet = True
        try:
            async for body in self._events:
                self._quiet = False
                await write(body)
            await write(DONE)
        except OSError:
            raise
        except Exception as error:
            if not hasattr(error, "reason") and shape(error).status == 500:
                logger.exception("a stream failed")
            await write(event(shape(error).body()))
        finally:
            with anyio.CancelScope(shield=True):
                await self._events.aclose()
        await write(b"", False)

    async def _keep_alive(self, write: Any) -> None:
        while True:
            self._quiet = True
            await anyio.sleep(KEEP_ALIVE_S)
            if self._quiet:
                await write(b": keep-alive\n\n")


async def _watch(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
