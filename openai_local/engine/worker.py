"""One named thread with an inbox. It does not know what the work is."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

logger = logging.getLogger(__name__)

Message = TypeVar("Message")


class Work(Protocol[Message]):
    """What the thread does. All methods are called on it."""

    def step(self, messages: list[Message]) -> bool:
        """Take the messages and do a bounded piece of work; False when there is nothing to do."""
        ...

    def wake_in_s(self) -> float | None:
        """After how long to take a step though no message came; None: never."""
        ...

    def close(self, messages: list[Message]) -> None:
        """Free everything; ``messages`` came too late to be worked on. Must not raise."""
        ...


class Worker(Generic[Message]):
    """Runs ``open()`` on a thread of its own, then the work's steps, until it is stopped."""

    def __init__(self, name: str, open: Callable[[], Work[Message]]) -> None:
        """``open`` may raise: it must have told those who wait before it does."""
        self._name = name
        self._open: Callable[[], Work[Message]] | None = open
        self._condition = threading.Condition()
        self._inbox: deque[Message] = deque()
        self._stopping = False
        self._finished = False
        self._thread: threading.Thread | None = None
        self._pid: int | None = None
        self.died: Future[bool] = Future()  # at the thread's end: whether nobody asked for it

    def start(self) -> None:
        # A daemon, so that the interpreter's exit reaches the handler that stops it.
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._pid = os.getpid()
        thread.start()
        self._thread = thread

    @property
    def forked(self) -> bool:
        """Whether the thread was left in a parent process, as may be a lock of it, held."""
        return self._pid is not None and self._pid != os.getpid()

    def post(self, message: Message) -> bool:
        """Leave a message, from any thread; False if the thread will not read it any more."""
        if self.forked:
            return False
        with self._condition:
            if self._stopping or self._finished:
                return False
            self._inbox.append(message)
            self._condition.notify()
            return True

    def take(self) -> list[Message]:
        """The messages that came in since the last look. For the work itself, within a step."""
        if not self._inbox:
            return []
        with self._condition:
            messages = list(self._inbox)
            self._inbox.clear()
            return messages

    def stop(self) -> None:
        """Ask the thread to end after its present step. Does not wait."""
        if self.forked:
            return
        with self._condition:
            self._stopping = True
            self._condition.notify()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; False if it did not come in time."""
        thread = self._thread
        if thread is None or thread is threading.current_thread() or self.forked:
            return True
        thread.join(timeout_s)
        return not thread.is_alive()

    @property
    def stopping(self) -> bool:
        return self._stopping

    @property
    def alive(self) -> bool:
        thread = self._thread
        return thread is not None and thread.is_alive() and not self._finished and not self.forked

    def _run(self) -> None:
        open, self._open = self._open, None  # what it holds is not for the thread to keep
        assert open is not None, "a worker is started once"
        try:
            work = open()
            del open
        except Exception:
            logger.debug("%s did not open", self._name, exc_info=True)
            self._finish()
            self.died.set_result(False)
            return
        died = True
        try:
            busy = True
            while True:
                with self._condition:
                    # Nothing to do burns no CPU.
                    while not busy and not self._inbox and not self._stopping:
                        busy = not self._condition.wait(work.wake_in_s())
                    if self._stopping:
                        break
                busy = work.step(self.take())
            died = False
        except Exception:
            logger.exception("%s died", self._name)
        try:
            work.close(self._finish())
        except Exception:
            logger.exception("%s did not close", self._name)
        del work  # whoever is told of the end finds all of it gone
        self.died.set_result(died)

    def _finish(self) -> list[Message]:
        with self._condition:
            self._finished = True
            messages = list(self._inbox)
            self._inbox.clear()
            return messages
