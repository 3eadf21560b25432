"""What the host's server lets us see: a client that left, a shutdown that waits for us.

Knows no server by name and patches none.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
from starlette.types import Receive

from openai_local.engine import EngineStopped

T = TypeVar("T")

STOP_POLL_S = 0.5


class ClientLeft(Exception):
    """Nobody waits for the response any more."""


async def client_left(receive: Receive) -> None:
    """Returns when the client has closed the connection. The body must have been read."""
    if (await receive())["type"] != "http.disconnect":
        # A middleware that replays the body would do so for ever, without a pause.
        await anyio.sleep_forever()


def stopping() -> bool:
    """Whether the server was told to stop and waits for its responses to end.

    ASGI tells an application of a shutdown only after the last response, so one long stream would
    hold it up. Servers of uvicorn's kind handle signals in a method of an object that then says
    ``should_exit``; reading that costs nothing and touches nothing.
    """
    handler: Any = signal.getsignal(signal.SIGINT)
    return getattr(getattr(handler, "__self__", None), "should_exit", None) is True


async def unless_left(receive: Receive, work: Callable[[], Awaitable[T]]) -> T:
    """The result of ``work``, cancelled when the client goes away or the server stops.

    Raises ClientLeft, EngineStopped, and what ``work`` raises.
    """

    async def left() -> Exception:
        await client_left(receive)
        return ClientLeft()

    return await _unless(work, left, _stopped)


async def unless_stopping(work: Callable[[], Awaitable[T]]) -> T:
    """The result of ``work``, cancelled when the server stops.

    Raises EngineStopped, and what ``work`` raises.
    """
    return await _unless(work, _stopped)


async def _stopped() -> Exception:
    while not stopping():
        await anyio.sleep(STOP_POLL_S)
    return EngineStopped()


async def _unless(
    work: Callable[[], Awaitable[T]], *watches: Callable[[], Awaitable[Exception]]
) -> T:
    result: list[T] = []
    ended: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def watch(until: Callable[[], Awaitable[Exception]]) -> None:
            ended.append(await until())
            group.cancel_scope.cancel()

        for until in watches:
            group.start_soon(watch, until)
        try:
            result.append(await work())
        except Exception as error:  # a task group would wrap it
            ended.append(error)
        group.cancel_scope.cancel()
    if result:
        return result[0]
    raise ended[0]
