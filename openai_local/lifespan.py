"""ASGI's lifespan messages: ours opens before a host's and closes after it. Knows no models."""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

COMPLETE: Message = {"type": "lifespan.shutdown.complete"}


async def run(
    ours: AbstractAsyncContextManager[None],
    scope: Scope,
    receive: Receive,
    send: Send,
    host: ASGIApp | None = None,
) -> None:
    """Answer the server for ``ours`` and for ``host``, which may know no lifespan."""
    startup = await receive()
    try:
        await ours.__aenter__()
    except Exception as error:
        logger.debug("startup failed", exc_info=True)
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    last = COMPLETE
    try:
        last = await _Host(startup, receive, send).run(host, scope)
    finally:
        await ours.__aexit__(None, None, None)
    await send(last)


class _Host:
    """The host's side of one lifespan. Its last message waits until ours has closed."""

    def __init__(self, startup: Message, receive: Receive, send: Send) -> None:
        self._startup: Message | None = startup
        self._receive = receive
        self._send = send
        self._started = False
        self._told_to_stop = False
        self._last: Message | None = None

    async def run(self, host: ASGIApp | None, scope: Scope) -> Message:
        """What to tell the server at the end, which this returns at."""
        failure: Exception | None = None
        try:
            if host is not None:
                await host(scope, self._hear, self._say)
        except Exception as error:
            failure = error
        if self._last is not None:
            return self._last
        if not self._started:
            # What ASGI has servers do: an application without a lifespan is served all the same.
            if failure is not None:
                logger.info("the host has no lifespan: %s", failure)
            await self._send({"type": "lifespan.startup.complete"})
        elif failure is not None:
            logger.error("the host's lifespan failed", exc_info=failure)
        if not self._told_to_stop:
            await self._receive()
        if self._started and failure is not None:
            return {"type": "lifespan.shutdown.failed", "message": str(failure)}
        return COMPLETE

    async def _hear(self) -> Message:
        if self._startup is not None:
            startup, self._startup = self._startup, None
            return startup
        message = await self._receive()
        self._told_to_stop = True
        return message

    async def _say(self, message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            self._started = True
            await self._send(message)
        else:
            self._last = message
