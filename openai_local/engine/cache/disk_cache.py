"""States of sequences kept in a directory over restarts. Knows no llama.cpp and no event loop.

The engine thread asks the index, which is in memory, and leaves what is to be read and written; a
thread of this cache's own does all that touches the disk, what is to be read first.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from openai_local.engine.backend import State
from openai_local.engine.cache.disk_index import IN_MEMORY, DiskEntry, DiskIndex, Match
from openai_local.engine.cache.state_directory import StateDirectory
from openai_local.engine.cache.state_file import Key, digest, file_size, pack

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class DiskMetrics:
    """``n_bytes`` counts against the cap, with other models' files; ``n_entries`` can be matched.

    The totals are this cache's own. Dropped are states that were put and not written.
    """

    n_bytes: int
    n_entries: int
    n_evicted_total: int
    n_dropped_total: int


class _OutOfTime(Exception):
    """The cache was closed, and what is going on must end."""


class DiskCache:
    """Owned by the engine thread. No method but ``close`` ever waits for the disk."""

    def __init__(
        self,
        directory: Path,
        max_bytes: int,
        fingerprint: str,
        *,
        n_tokens_max: int,
        can_drop: bool = True,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        """Starts a thread which first looks into the directory, and makes it where it is missing.
        Where it cannot, it warns, and tries again with every state that is put.

        ``fingerprint`` tells the model, the settings and the llama.cpp that a state depends on;
        files of another one, and of more than ``n_tokens_max`` tokens, are left alone unless the
        cap needs room. ``max_bytes`` is the cap on all files together. ``can_drop``: whether a part
        of a state can be used by itself. ``max_waiting_bytes`` bounds the memory of states yet to
        be written, of which one may always wait.
        """
        self._max_bytes = max_bytes
        self._max_waiting_bytes = max_waiting_bytes
        self._fingerprint = digest(fingerprint)
        self._can_drop = can_drop
        self._index = DiskIndex()
        self._directory = StateDirectory(
            directory,
            max_bytes,
            self._fingerprint,
            self._index,
            n_tokens_max=n_tokens_max,
            can_drop=can_drop,
            between=self._breathe,
        )
        # Shared, under the lock, which is never held during disk access.
        self._changed = threading.Condition()
        self._fetches: deque[tuple[DiskEntry, Future[State]]] = deque()
        self._used: deque[str] = deque()
        self._writes: deque[tuple[Key, State]] = deque()  # the first is being written
        self._n_waiting_bytes = 0
        self._n_dropped = 0
        self._deadline: float | None = None
        self._ended = False
        self._warned = False  # the disk thread's own
        self._thread = threading.Thread(target=self._run, name="openai-local-disk", daemon=True)
        self._thread.start()

    def match(self, prompt: Sequence[int], salt: str) -> Match:
        """The entry with the longest usable prefix of ``prompt``, and how many tokens of it;
        (None, 0) if there is none.

        The last prompt token is left out: its logits start the answer.
        """
        if not len(self._index):
            return None, 0
        return self._index.match(pack(prompt)[:-4], digest(salt), whole=not self._can_drop)

    def fetch(self, entry: DiskEntry) -> Future[State]:
        """Read and verify a state, ahead of all that is to be written.

        The future may be cancelled while it waits. It fails with DamagedEntry, or with OSError:
        the file is gone or cannot be read, there is no memory for it, or the cache is closed.
        Its callbacks run on the disk's thread.
        """
        future: Future[State] = Future()
        with self._changed:
            closed = self._closed
            if not closed:
                self._fetches.append((entry, future))
                self._changed.notify()
        if closed:
            future.set_exception(_closed_error())
        return future

    def reject(self, tokens: Sequence[int], salt: str) -> None:
        """The state of these tokens is of no use after all: it matches no more."""
        entry = self._index.find(pack(tokens), digest(salt))
        if entry is not None:
            self._index.remove(entry)

    def put(self, tokens: Sequence[int], salt: str, state: State) -> None:
        """Write ``state``, of shape (n_bytes,), later; it must not be changed any more.

        If what it gives is there already only its use is noted. Dropped, and counted as such, when
        too much waits to be written, when it exceeds the cap alone, and when the cache is closed.
        What is only for the memory is not for here.
        """
        assert len(tokens) > 0 and state.size > 0, "there is something to keep"
        if salt.startswith(IN_MEMORY):
            return
        key = Key(self._fingerprint, digest(salt), pack(tokens))
        known = self._directory.find(key)
        dropped = ""
        with self._changed:
            n_waiting = self._n_waiting_bytes
            if self._closed:
                dropped = "the cache is closed"
            elif known is not None:
                self._used.append(known.path.name)
            elif any(key == waiting for waiting, _ in self._writes):
                return
            elif file_size(len(tokens), state.size) > self._max_bytes:
                dropped = "it is larger than the cache"
            elif n_waiting and n_waiting + state.size > self._max_waiting_bytes:
                dropped = "too much waits to be written"
            else:
                self._writes.append((key, state))
                self._n_waiting_bytes += state.size
            self._n_dropped += bool(dropped)
            self._changed.notify()
        if dropped:
            logger.debug("a state is not written to %s: %s", self._directory.path, dropped)

    def metrics(self) -> DiskMetrics:
        """The present numbers, for any thread."""
        directory = self._directory
        return DiskMetrics(
            directory.n_bytes, len(self._index), directory.n_evicted, self._n_dropped
        )

    def close(self, timeout_s: float) -> None:
        """Write what waits as far as the time goes, and end the thread. Safe to call twice.

        Nothing is read any more. What is being written when the time is over is given up.
        """
        with self._changed:
            if self._deadline is None:
                self._deadline = time.monotonic() + timeout_s
            self._changed.notify()
        self._thread.join(timeout_s)

    @property
    def _closed(self) -> bool:
        return self._deadline is not None or self._ended

    # The disk's thread, from here on.

    def _run(self) -> None:
        try:
            try:
                self._directory.tidy()
            except OSError as error:
                self._warn(error)
            while self._wait():
                self._breathe()
                if self._writes:
                    self._write(*self._writes[0])
        except _OutOfTime:
            pass
        except Exception:
            logger.exception("the cache in %s is out of order", self._directory.path)
        finally:
            self._end()

    def _wait(self) -> bool:
        """Until there is something to do; False at the end."""
        with self._changed:
            while not (self._writes or self._fetches or self._used or self._closed):
                self._changed.wait()
            return not self._closed or bool(self._writes)

    def _breathe(self) -> None:
        """Between two pieces of any work: a request waits for what is to be read.

        Raises _OutOfTime.
        """
        while self._fetches and not self._closed:
            self._read(*self._fetches.popleft())
        while self._used:
            self._directory.touch(self._used.popleft())
        deadline = self._deadline
        if deadline is not None and (not self._writes or time.monotonic() >= deadline):
            raise _OutOfTime

    def _read(self, entry: DiskEntry, future: Future[State]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            state = self._directory.read(entry)
        except Exception as error:
            logger.debug("a state of %d tokens is not read: %s", entry.n_tokens, error)
            future.set_exception(error)
        else:
            future.set_result(state)

    def _write(self, key: Key, state: State) -> None:
        n_dropped = 0
        try:
            self._directory.write(key, state)
            self._warned = False
        except OSError as error:
            n_dropped = 1
            self._warn(error)
        with self._changed:
            self._writes.popleft()
            self._n_waiting_bytes -= state.size
            self._n_dropped += n_dropped

    def _warn(self, error: OSError) -> None:
        """Once, until the disk has recovered."""
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        logger.log(level, "cannot keep states in %s: %s", self._directory.path, error)

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._n_dropped += len(self._writes)
            self._writes.clear()
            fetches = list(self._fetches)
            self._fetches.clear()
        for _, future in fetches:
            if future.set_running_or_notify_cancel():
                future.set_exception(_closed_error())


def _closed_error() -> OSError:
    return OSError(errno.ECANCELED, "the cache is closed")
