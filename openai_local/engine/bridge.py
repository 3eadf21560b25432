"""The engine's side of an event loop: the only asyncio or trio here.

The engine thread must never wait for a loop: it posts one callback a step to each loop, which
puts everything that the step made into the generations' queues.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from openai_local.engine.messages import Event, Failed, Finished, Output

T = TypeVar("T")


class Loop:
    """A running event loop, asyncio's or trio's, to which other threads can post."""

    __slots__ = ("_key", "_post")

    def __init__(self) -> None:
        """Of the calling task."""
        if _in_trio():
            import trio

            token = trio.lowlevel.current_trio_token()
            self._key: object = token
            self._post: Callable[..., object] = token.run_sync_soon
        else:
            loop = asyncio.get_running_loop()
            self._key = loop
            self._post = loop.call_soon_threadsafe

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loop) and self._key is other._key

    def __hash__(self) -> int:
        return id(self._key)

    def post(self, callback: Callable[..., object], *args: object) -> bool:
        """Run ``callback`` in the loop soon; False if the loop is gone."""
        try:
            self._post(callback, *args)
        except RuntimeError:  # trio.RunFinishedError is one
            return False
        return True


def _in_trio() -> bool:
    if "trio" not in sys.modules:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


class Signal:
    """Something has arrived. Set and waited for in one loop, by one task at a time, ever again.

    An anyio.Event serves once, and making one for every token was a tenth of the loop's work.
    """

    __slots__ = ("_event",)

    def __init__(self) -> None:
        """For the calling task's loop."""
        self._event: Any = _new_event()

    def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        """Until it is set, which is then forgotten."""
        await self._event.wait()
        if isinstance(self._event, asyncio.Event):
            self._event.clear()
        else:
            self._event = _new_event()  # trio's serves once, and costs little


def _new_event() -> Any:
    if _in_trio():
        import trio

        return trio.Event()
    return asyncio.Event()


class Generation:
    """One generation being made: an async iterator of events, ended by Finished.

    Raises the EngineError that ended it, if one did. Whoever stops reading early must call
    :meth:`cancel`; ``async with`` does.
    """

    def __init__(self, cancel: Callable[[Generation], None]) -> None:
        self.loop = Loop()
        self._cancel = cancel
        self._events: deque[Event] = deque()
        self._arrived = Signal()
        self._ended = False

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Output:
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            try:
                await self._arrived.wait()
            except BaseException:
                self.cancel()
                raise
        return self._pop()

    def take(self) -> list[Output]:
        """The events that are here, without waiting. Raises the error that ended it, alone."""
        taken: list[Output] = []
        while self._events and not (taken and isinstance(self._events[0], Failed)):
            taken.append(self._pop())
        return taken

    @property
    def waiting(self) -> bool:
        """Whether events are here that were not taken."""
        return bool(self._events)

    def on_arrival(self, signal: Signal) -> None:
        """Set ``signal`` whenever events arrive, and now if some are here."""
        self._arrived = signal
        if self._events:
            signal.set()

    def _pop(self) -> Output:
        event = self._events.popleft()
        if isinstance(event, Failed):
            self._ended = True
            raise event.error
        if isinstance(event, Finished):
            self._ended = True
        return event

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Free the generation's place before the next decode. After its end, does nothing."""
        if not self._ended:
            self._ended = True
            self._cancel(self)
            self.loop.post(self._arrived.set)  # a reader elsewhere waits no longer

    def _put(self, event: Event) -> None:
        self._events.append(event)
        self._arrived.set()


def deliver(events: Iterable[tuple[Generation, Event]]) -> list[Generation]:
    """Post a step's events, one callback a loop; returns the generations whose loop is gone."""
    per_loop: dict[Loop, list[tuple[Generation, Event]]] = {}
    for generation, event in events:
        per_loop.setdefault(generation.loop, []).append((generation, event))
    lost: list[Generation] = []
    for loop, batch in per_loop.items():
        if not loop.post(_put_all, batch):
            lost += [generation for generation, _ in batch]
    return lost


def _put_all(batch: list[tuple[Generation, Event]]) -> None:
    for generation, event in batch:
        generation._put(event)


async def in_thread(work: Callable[[], None]) -> None:
    """Run blocking ``work`` to its end, even where the caller is cancelled."""
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(work)


async def wait(future: Future[T], timeout_s: float | None = None) -> T:
    """The result of a future that another thread completes. Cancelling leaves the future be.

    Raises TimeoutError where it takes longer than ``timeout_s``.
    """
    if not future.done():
        loop = Loop()
        done = anyio.Event()
        future.add_done_callback(lambda _: loop.post(done.set))
        with anyio.fail_after(timeout_s):
            await done.wait()
    try:
        return future.result(0)
    except CancelledError:
        raise RuntimeError("the work was cancelled by somebody else") from None
