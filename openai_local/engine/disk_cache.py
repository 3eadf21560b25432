"""States of sequences kept in a directory over restarts. Knows no llama.cpp and no event loop.

The engine thread asks the index, which is in memory; a thread of its own does all that touches
the disk. Several caches, also of other models and processes, may share a directory: files appear
whole under their names, and one that has disappeared was evicted by somebody else.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import numpy as np

from openai_local.engine.backend import State
from openai_local.engine.state_file import (
    PARTIAL,
    DamagedEntry,
    ForeignFile,
    Key,
    OtherVersion,
    digest,
    file_size,
    is_name,
    open_file,
    pack,
    read_header,
    read_key,
    read_state,
    write_state,
)

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES = 1 << 30
STALE_PARTIAL_S = 3600.0


@dataclass(frozen=True, slots=True)
class DiskEntry:
    """A state on the disk, of ``n_bytes``."""

    path: Path
    salt: bytes  # its digest
    tokens: bytes = field(repr=False)  # int32, little-endian
    n_bytes: int

    @property
    def n_tokens(self) -> int:
        return len(self.tokens) // 4


@dataclass(frozen=True, slots=True)
class DiskMetrics:
    """``n_bytes`` counts against the cap, with other models' files; ``n_entries`` can be matched.

    The totals are this cache's own. Dropped are states that were put and not written.
    """

    n_bytes: int
    n_entries: int
    n_evicted_total: int
    n_dropped_total: int


@dataclass(slots=True)
class _File:
    """What the disk's thread knows of a file. ``entry`` is None for those not read here."""

    identity: tuple[int, int]  # inode, size
    used_at: float  # seconds since the epoch
    n_bytes: int = 0  # zero for what is not ours, and so neither counted nor evicted
    n_tokens: int = 0
    entry: DiskEntry | None = None


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
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        """Starts a thread which first scans the directory, and makes it where it is missing.

        ``fingerprint`` tells the model, the settings and the llama.cpp that a state depends on;
        files of another one are left alone unless the cap needs room. ``max_bytes`` is the cap on
        all files together; ``max_waiting_bytes`` bounds the memory of states yet to be written,
        of which one may always wait.
        """
        self._directory = directory
        self._max_bytes = max_bytes
        self._max_waiting_bytes = max_waiting_bytes
        self._fingerprint = digest(fingerprint)
        # Shared, under the lock, which is never held during disk access.
        self._changed = threading.Condition()
        self._index: dict[bytes, list[DiskEntry]] = {}  # by salt, sorted by the tokens' bytes
        self._fetches: deque[tuple[DiskEntry, Future[State]]] = deque()
        self._used: deque[str] = deque()
        self._writes: deque[tuple[Key, State]] = deque()  # the first is being written
        self._n_waiting_bytes = 0
        self._n_dropped = 0
        self._deadline: float | None = None
        self._ended = False
        # The disk thread's own.
        self._files: dict[str, _File] = {}
        self._n_bytes = 0
        self._n_evicted = 0
        self._warned = False
        self._thread = threading.Thread(target=self._run, name="openai-local-disk", daemon=True)
        self._thread.start()

    def match(
        self, prompt: Sequence[int], salt: str, *, whole: bool
    ) -> tuple[DiskEntry | None, int]:
        """The entry with the longest prefix of ``prompt``, and how many tokens of it; or (None, 0).

        The last prompt token is left out: its logits start the answer. ``whole``: only entries
        count all of whose tokens are that prefix, as a state that cannot be cut needs.
        """
        salt_digest = digest(salt)
        with self._changed:
            if salt_digest not in self._index:
                return None, 0
        wanted = pack(prompt)[:-4]
        with self._changed:
            entries = self._index.get(salt_digest, [])
            return _longest_whole(entries, wanted) if whole else _longest(entries, wanted)

    def fetch(self, entry: DiskEntry) -> Future[State]:
        """Read and verify a state, ahead of all that is to be written.

        The future may be cancelled while it waits. It fails with DamagedEntry, or with OSError:
        the file is gone or cannot be read, there is no memory for it, or the cache is closed.
        After a failure the entry matches no more. Its callbacks run on the disk's thread.
        """
        future: Future[State] = Future()
        with self._changed:
            closed = self._deadline is not None or self._ended
            if not closed:
                self._fetches.append((entry, future))
                self._changed.notify()
        if closed:
            future.set_exception(_closed())
        return future

    def put(self, tokens: Sequence[int], salt: str, state: State) -> None:
        """Write ``state``, of shape (n_bytes,), later; it must not be changed any more.

        If it is there already only its use is noted. Dropped, and counted as such, when too much
        waits to be written, when it exceeds the cap alone, and when the cache is closed.
        """
        assert len(tokens) > 0 and state.size > 0, "there is something to keep"
        key = Key(self._fingerprint, digest(salt), pack(tokens))
        with self._changed:
            known = self._find(key)
            n_waiting = self._n_waiting_bytes
            if known is not None:
                self._used.append(known.path.name)
            elif any(key == waiting for waiting, _ in self._writes):
                return
            elif self._deadline is not None or self._ended:
                self._drop("the cache is closed")
            elif file_size(len(tokens), state.size) > self._max_bytes:
                self._drop("it is larger than the cache")
            elif n_waiting and n_waiting + state.size > self._max_waiting_bytes:
                self._drop("too much waits to be written")
            else:
                self._writes.append((key, state))
                self._n_waiting_bytes += state.size
            self._changed.notify()

    def metrics(self) -> DiskMetrics:
        """The present numbers, for any thread."""
        with self._changed:
            n_entries = sum(len(entries) for entries in self._index.values())
            return DiskMetrics(self._n_bytes, n_entries, self._n_evicted, self._n_dropped)

    def close(self, timeout_s: float) -> None:
        """Write what waits as far as the time goes, and end the thread. Safe to call twice.

        Nothing is read any more. What is being written when the time is over is given up.
        """
        with self._changed:
            if self._deadline is None:
                self._deadline = time.monotonic() + timeout_s
            self._changed.notify()
        self._thread.join(timeout_s)

    # The index.

    def _find(self, key: Key) -> DiskEntry | None:
        entries = self._index.get(key.salt, [])
        i = bisect_left(entries, key.tokens, key=_tokens_of)
        return entries[i] if i < len(entries) and entries[i].tokens == key.tokens else None

    def _remember(self, name: str, file: _File) -> None:
        self._forget(name)
        self._files[name] = file
        with self._changed:
            self._n_bytes += file.n_bytes
            if file.entry is not None:
                entries = self._index.setdefault(file.entry.salt, [])
                entries.insert(bisect_left(entries, file.entry.tokens, key=_tokens_of), file.entry)

    def _forget(self, name: str) -> None:
        file = self._files.pop(name, None)
        if file is None:
            return
        with self._changed:
            self._n_bytes -= file.n_bytes
            if file.entry is not None:
                entries = self._index[file.entry.salt]
                del entries[bisect_left(entries, file.entry.tokens, key=_tokens_of)]
                if not entries:
                    del self._index[file.entry.salt]

    def _drop(self, reason: str) -> None:
        self._n_dropped += 1
        logger.debug("a state is not written to %s: %s", self._directory, reason)

    # The disk's thread, from here on.

    def _run(self) -> None:
        try:
            try:
                self._make_room(0)
            except OSError as error:
                self._warn(error)
            while self._wait():
                self._breathe()
                if self._writes:
                    self._write(*self._writes[0])
        except _OutOfTime:
            pass
        except Exception:
            logger.exception("the cache in %s is out of order", self._directory)
        finally:
            with self._changed:
                self._ended = True
                self._n_dropped += len(self._writes)
                self._writes.clear()
                fetches = list(self._fetches)
            for _, future in fetches:
                if future.set_running_or_notify_cancel():
                    future.set_exception(_closed())

    def _wait(self) -> bool:
        """Until there is something to do; False at the end."""
        with self._changed:
            while not (self._writes or self._fetches or self._used or self._deadline is not None):
                self._changed.wait()
            return self._deadline is None or bool(self._writes)

    def _breathe(self) -> None:
        """Between two pieces of any work: a request waits for what is to be read.

        Raises _OutOfTime.
        """
        while self._deadline is None and self._fetches:
            self._read(*self._fetches.popleft())
        while self._used:
            self._touch(self._used.popleft())
        deadline = self._deadline
        if deadline is not None and (not self._writes or time.monotonic() >= deadline):
            raise _OutOfTime

    def _read(self, entry: DiskEntry, future: Future[State]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            state = read_state(entry.path)
        except Exception as error:
            self._forget(entry.path.name)
            if isinstance(error, DamagedEntry) and not isinstance(error, ForeignFile):
                self._remove_damaged(error)
            elif isinstance(error, MemoryError):
                error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(entry.path))
            future.set_exception(error)
        else:
            self._touch(entry.path.name)
            future.set_result(state)

    def _touch(self, name: str) -> None:
        """Note a use where other processes and later runs see it."""
        file = self._files.get(name)
        if file is not None:
            file.used_at = time.time()
            try:
                os.utime(self._directory / name)
            except FileNotFoundError:
                self._forget(name)
            except OSError as error:
                logger.debug("%s", error)

    def _write(self, key: Key, state: State) -> None:
        n_bytes = file_size(len(key.tokens) // 4, state.size)
        try:
            if not self._make_room(n_bytes):
                raise OSError(errno.ENOSPC, "no room can be made", str(self._directory))
            if self._find(key) is not None:
                self._touch(key.file_name)  # another process was faster
            else:
                write_state(self._directory, key, state, between=self._breathe)
                self._make_room(0)  # which finds it, and what others wrote meanwhile
            self._warned = False
        except OSError as error:
            with self._changed:
                self._n_dropped += 1
            self._warn(error)
        with self._changed:
            self._writes.popleft()
            self._n_waiting_bytes -= state.size

    def _warn(self, error: OSError) -> None:
        """Once, until the disk has recovered."""
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        logger.log(level, "cannot keep states in %s: %s", self._directory, error)

    def _make_room(self, n_bytes: int) -> bool:
        """Evict what is worth least, of whatever model, until ``n_bytes`` fit under the cap.

        Raises OSError, _OutOfTime.
        """
        self._survey()
        now = time.time()

        def value(name: str) -> float:
            """As in prefix_cache.py, but the age is in seconds."""
            file = self._files[name]
            return file.n_tokens / (1 + max(0.0, now - file.used_at))

        ours = [name for name, file in self._files.items() if file.n_bytes]
        for name in sorted(ours, key=value):
            if self._n_bytes + n_bytes <= self._max_bytes:
                break
            try:
                (self._directory / name).unlink()
            except FileNotFoundError:
                pass
            except OSError as error:
                logger.debug("%s", error)
                continue
            else:
                self._n_evicted += 1
            self._forget(name)
        return self._n_bytes + n_bytes <= self._max_bytes

    def _survey(self) -> None:
        """See what is in the directory by now. Raises OSError, _OutOfTime."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = os.listdir(self._directory)
        for name in self._files.keys() - set(names):
            self._forget(name)
        for name in names:
            self._breathe()
            path = self._directory / name
            try:
                self._look(path)
            except FileNotFoundError:
                self._forget(name)
            except OSError as error:
                logger.debug("%s", error)

    def _look(self, path: Path) -> None:
        """Learn of a file what is not known yet. Raises OSError."""
        status = path.lstat()
        if path.name.startswith(PARTIAL) and path.suffix == ".partial":
            if time.time() - status.st_mtime > STALE_PARTIAL_S:
                logger.debug("%s: left by a process that ended", path)
                path.unlink()
            return
        identity = (status.st_ino, status.st_size)
        known = self._files.get(path.name)
        if known is not None and known.identity == identity:
            known.used_at = status.st_mtime
            return
        file = _File(identity, status.st_mtime)
        try:
            if not (is_name(path.name) and path.is_file() and not path.is_symlink()):
                raise ForeignFile(path, "no file of ours")
            with open_file(path) as stream:
                header = read_header(stream, path)
                if header.fingerprint == self._fingerprint:
                    key = read_key(stream, path, header)
                    file.entry = DiskEntry(path, key.salt, key.tokens, header.n_bytes)
            file.n_tokens, file.n_bytes = header.n_tokens, status.st_size
        except OtherVersion as error:
            logger.debug("%s", error)
            file.n_bytes = status.st_size  # and worth nothing, so it is the first to be evicted
        except (ForeignFile, PermissionError) as error:
            logger.debug("%s", error)
        except DamagedEntry as error:
            self._remove_damaged(error)
            return
        self._remember(path.name, file)

    def _remove_damaged(self, error: DamagedEntry) -> None:
        logger.warning("%s; it is removed", error)
        try:
            error.path.unlink(missing_ok=True)
        except OSError as failure:
            logger.debug("%s", failure)


_tokens_of = attrgetter("tokens")


def _longest(entries: list[DiskEntry], wanted: bytes) -> tuple[DiskEntry | None, int]:
    """In sorted order what shares most with ``wanted`` stands beside its place."""
    i = bisect_left(entries, wanted, key=_tokens_of)
    n = max((_common_prefix(e.tokens, wanted) for e in entries[max(i - 1, 0) : i + 1]), default=0)
    if n == 0:
        return None, 0
    # The shortest of those that share as much is the quickest to read; at times it is the first.
    first = bisect_left(entries, wanted[: 4 * n], key=_tokens_of)
    near = {first, i - 1, i} & set(range(first, len(entries)))
    best = min(
        (entries[j] for j in near if entries[j].tokens.startswith(wanted[: 4 * n])),
        key=attrgetter("n_bytes"),
    )
    return best, n


def _longest_whole(entries: list[DiskEntry], wanted: bytes) -> tuple[DiskEntry | None, int]:
    """A prefix of ``wanted`` stands before it, with only what it is also a prefix of between."""
    while wanted:
        i = bisect_right(entries, wanted, key=_tokens_of)
        if i == 0:
            break
        before = entries[i - 1]
        n = _common_prefix(before.tokens, wanted)
        if n == before.n_tokens:
            return before, n
        wanted = wanted[: 4 * n]
    return None, 0


def _common_prefix(a: bytes, b: bytes) -> int:
    """In tokens."""
    n = min(len(a), len(b)) // 4
    differ = np.frombuffer(a, "<i4", n) != np.frombuffer(b, "<i4", n)
    return int(differ.argmax()) if differ.any() else n


def _closed() -> OSError:
    return OSError(errno.ECANCELED, "the cache is closed")
