"""An event loop on a thread of its own, for code that has none. One thread for all calls."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

STOP_TIMEOUT_S = 5.0


class ClosableIterator(Protocol[T_co]):
    """What can be iterated in a loop, and closed early."""

    def __aiter__(self) -> AsyncIterator[T_co]: ...

    async def aclose(self) -> None: ...


class Portal:
    """Runs coroutines for other threads. The loop starts at the first call, and again in a process
    that was forked."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._thread: _LoopThread | None = None
        self._finalizer: weakref.finalize[..., Portal] | None = None

    def call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of ``work()``. An interrupt of the caller cancels it."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Start ``work()`` in the caller's context; cancelling the future cancels it."""
        thread = self._started()
        if thread.is_current():
            raise RuntimeError("a synchronous call from within its own event loop waits for ever")
        return asyncio.run_coroutine_threadsafe(work(), thread.loop)

    def iterate(self, items: ClosableIterator[T]) -> ItemIterator[T]:
        """``items``, which are iterated in the loop once the first is asked for."""
        return ItemIterator(self, items)

    def close(self) -> None:
        """Cancel what runs, and end the thread. Safe to repeat."""
        with self._lock:
            finalizer, thread = self._finalizer, self._thread
            self._finalizer = self._thread = None
        if finalizer is not None and thread is not None:
            finalizer.detach()
            thread.stop()

    def _started(self) -> _LoopThread:
        with self._lock:
            if self._thread is None or self._thread.pid != os.getpid():
                if self._finalizer is not None:
                    self._finalizer.detach()
                self._thread = _LoopThread(self._name)
                # At the interpreter's exit, too. The thread knows nothing of who uses it.
                self._finalizer = weakref.finalize(self, self._thread.abandon)
            return self._thread


class _LoopThread:
    """asyncio.run on a daemon thread, until it is stopped."""

    def __init__(self, name: str) -> None:
        self.pid = os.getpid()
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

        async def main() -> None:
            stop = asyncio.Event()
            started.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()

        self._thread = threading.Thread(target=lambda: asyncio.run(main()), name=name, daemon=True)
        self._thread.start()
        self.loop, self._stop = started.result()

    def is_current(self) -> bool:
        return self._thread is threading.current_thread()

    def abandon(self) -> None:
        """Of a portal that nobody has any more, on any thread; or at the interpreter's exit."""
        self.stop(wait=not threading.main_thread().is_alive())

    def stop(self, wait: bool = True) -> None:
        if self.pid != os.getpid():
            return
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._stop.set)
        if wait and not self.is_current():
            self._thread.join(STOP_TIMEOUT_S)


class _End:
    """What comes behind the last item: the error that ended it, if one did."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class ItemIterator(Generic[T]):
    """Items that a loop's task makes, for any thread, one at a time.

    Leaving ``with``, :meth:`close`, an interrupt, or dropping it cancels the task.
    """

    def __init__(self, portal: Portal, items: ClosableIterator[T]) -> None:
        self._portal = portal
        self._items: ClosableIterator[T] | None = items
        self._queue: SimpleQueue[T | _End] = SimpleQueue()
        self._task: Future[None] | None = None

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._items is not None:
            items, queue, self._items = self._items, self._queue, None
            self._task = self._portal.submit(lambda: _pump(items, queue))
        if self._task is None:
            raise StopIteration
        try:
            item = self._queue.get()
            if isinstance(item, _End):
                raise item.error or StopIteration
            return item
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ItemIterator[T]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End it; then it has no more items. Safe to repeat."""
        self._items = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def __del__(self) -> None:
        self.close()


async def _pump(items: ClosableIterator[T], queue: SimpleQueue[T | _End]) -> None:
    error: BaseException | None = None
    try:
        async for item in items:
            queue.put(item)
    except Exception as raised:
        error = raised
    except BaseException:
        error = RuntimeError("the iteration was cancelled")
        raise
    finally:
        queue.put(_End(error))
        await items.aclose()
