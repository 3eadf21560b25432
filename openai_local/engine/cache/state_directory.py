"""The directory of state files: what is in it, and what goes when it is full. Knows no threads.

Several caches, also of other models and processes, may share it: files appear whole under their
names, and one that has disappeared was evicted by somebody else.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from openai_local.engine.backend import State
from openai_local.engine.cache.disk_index import DiskEntry, DiskIndex
from openai_local.engine.cache.state_file import (
    DamagedEntry,
    ForeignFile,
    Key,
    OtherVersion,
    file_size,
    is_name,
    is_partial,
    open_file,
    read_header,
    read_key,
    read_state,
    write_state,
)

logger = logging.getLogger(__name__)

# A file that is being written grows all the time; one that does not was left by a crash.
STALE_PARTIAL_S = 600.0
# Of the file system, for others: a guest does not fill its host's disk.
MIN_FREE_BYTES = 256 << 20
# These say nothing of the file.
_PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@dataclass(slots=True)
class _File:
    """``entry`` is None for what is not to be read here."""

    identity: tuple[int, int]  # inode, size
    used_at: float  # seconds since the epoch
    n_bytes: int = 0  # that count against the cap
    n_tokens: int = 0
    evictable: bool = False
    entry: DiskEntry | None = None


class StateDirectory:
    """For one thread. Keeps ``index`` true: what it holds can be read."""

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        fingerprint: bytes,
        index: DiskIndex,
        *,
        n_tokens_max: int,
        can_drop: bool,
        between: Callable[[], None],
    ) -> None:
        """See DiskCache. ``between`` is called between two pieces of any work; it may call
        :meth:`read` and :meth:`touch`, and what it raises ends the work."""
        self.path = path
        self.n_bytes = 0
        self.n_evicted = 0
        self._max_bytes = max_bytes
        self._fingerprint = fingerprint
        self._index = index
        self._n_tokens_max = n_tokens_max
        self._can_drop = can_drop
        self._between = between
        self._files: dict[str, _File] = {}
        self._owners: set[int] = set()

    def tidy(self) -> None:
        """Learn what is there by now, and evict what is too much. Raises OSError."""
        self._survey()
        self._make_room(0)

    def read(self, entry: DiskEntry) -> State:
        """The state, verified. Raises DamagedEntry, OSError; then the entry matches no more,
        unless that has passing reasons."""
        name = entry.path.name
        try:
            state = read_state(entry.path)
        except ForeignFile:
            self._disown(name)
            raise
        except DamagedEntry as error:
            self._remove(error)
            raise
        except FileNotFoundError:
            self._forget(name)
            raise
        except MemoryError:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(entry.path)) from None
        except OSError as error:
            if error.errno not in _PASSING:
                self._disown(name)
            raise
        self.touch(name)
        return state

    def touch(self, name: str) -> None:
        """Note a use where other processes and later runs see it."""
        file = self._files.get(name)
        if file is not None:
            file.used_at = time.time()
            try:
                os.utime(self.path / name)
            except FileNotFoundError:
                self._forget(name)
            except OSError as error:
                logger.debug("%s", error)

    def write(self, key: Key, state: State) -> None:
        """Nothing, where the state is there already. Raises OSError."""
        self._survey()
        known = self.find(key)
        if known is not None:  # another process was faster
            self.touch(known.path.name)
            return
        n_bytes = file_size(key.n_tokens, state.size)
        if not self._make_room(n_bytes):
            raise OSError(errno.ENOSPC, "no room can be made", str(self.path))
        if shutil.disk_usage(self.path).free < n_bytes + MIN_FREE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        write_state(self.path, key, state, between=self._between)
        self.tidy()  # which finds it, and what others wrote meanwhile
        if self._can_drop and self._index.find(key.tokens, key.salt) is not None:
            for shorter in self._index.prefixes(key.tokens, key.salt):
                self._unlink(shorter.path.name)

    def find(self, key: Key) -> DiskEntry | None:
        """An entry that gives what this state would. Safe from any thread."""
        find = self._index.covering if self._can_drop else self._index.find
        return find(key.tokens, key.salt)

    def _remember(self, name: str, file: _File) -> None:
        self._forget(name)
        self._files[name] = file
        if file.entry is not None:
            self._index.add(file.entry)
        self.n_bytes += file.n_bytes

    def _forget(self, name: str) -> None:
        self._disown(name)
        file = self._files.pop(name, None)
        if file is not None:
            self.n_bytes -= file.n_bytes

    def _disown(self, name: str) -> None:
        """It counts, but is not matched any more."""
        file = self._files.get(name)
        if file is not None and file.entry is not None:
            self._index.remove(file.entry)
            file.entry = None

    def _make_room(self, n_bytes: int) -> bool:
        """Evict what is worth least, of whatever model, until ``n_bytes`` fit under the cap."""
        if self.n_bytes + n_bytes <= self._max_bytes:
            return True
        now = time.time()

        def value(name: str) -> float:
            """As in prefix_cache.py, but the age is in seconds."""
            file = self._files[name]
            return file.n_tokens / (1 + max(0.0, now - file.used_at))

        ours = [name for name, file in self._files.items() if file.evictable]
        for name in sorted(ours, key=value):
            if self._unlink(name):
                self.n_evicted += 1
            if self.n_bytes + n_bytes <= self._max_bytes:
                return True
        return False

    def _unlink(self, name: str) -> bool:
        """Whether it was there and is not any more."""
        try:
            (self.path / name).unlink()
        except FileNotFoundError:
            self._forget(name)
            return False
        except OSError as error:
            logger.debug("%s", error)
            return False
        self._forget(name)
        return True

    def _survey(self) -> None:
        """See what is in the directory by now. Raises OSError."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._owners = {self.path.stat().st_uid, getattr(os, "geteuid", lambda: 0)()}
        with os.scandir(self.path) as found:
            ours = [file for file in found if is_name(file.name) or is_partial(file.name)]
        for name in self._files.keys() - {file.name for file in ours}:
            self._forget(name)
        for file in ours:
            self._between()
            try:
                self._look(self.path / file.name, file.stat(follow_symlinks=False))
            except FileNotFoundError:
                self._forget(file.name)
            except OSError as error:
                logger.debug("%s", error)

    def _look(self, path: Path, status: os.stat_result) -> None:
        """Learn of a file what is not known yet. Raises OSError."""
        ours = stat.S_ISREG(status.st_mode) and status.st_uid in self._owners
        identity = (status.st_ino, status.st_size)
        known = self._files.get(path.name)
        if ours and is_partial(path.name) and time.time() - status.st_mtime > STALE_PARTIAL_S:
            logger.debug("%s: left by a process that ended", path)
            self._unlink(path.name)
        elif known is not None and known.identity == identity:
            known.used_at = status.st_mtime
        elif not ours:
            # Nor is it read: whoever wrote it could have made it anything.
            logger.info("%s: not a file of this user; it is ignored", path)
            self._remember(path.name, _File(identity, status.st_mtime))
        elif is_partial(path.name):
            self._remember(path.name, _File(identity, status.st_mtime, status.st_size))
        else:
            self._learn(path, status)

    def _learn(self, path: Path, status: os.stat_result) -> None:
        """Raises FileNotFoundError."""
        file = _File((status.st_ino, status.st_size), status.st_mtime, status.st_size)
        try:
            with open_file(path) as stream:
                header = read_header(stream, path)
                file.n_tokens = header.n_tokens
                readable = header.n_tokens <= self._n_tokens_max
                if header.fingerprint == self._fingerprint and readable:
                    key = read_key(stream, path, header)
                    file.entry = DiskEntry(path, key.salt, key.tokens, header.n_bytes)
            file.evictable = True
        except OtherVersion as error:
            logger.info("%s; it is ignored", error)
            file.evictable = True  # and worth nothing, so it is the first to go
        except ForeignFile as error:
            logger.info("%s; it is ignored", error)
            file.n_bytes = 0
        except DamagedEntry as error:
            self._remember(path.name, file)
            self._remove(error)
            return
        except FileNotFoundError:
            raise
        except OSError as error:
            logger.info("%s; it is ignored", error)
        self._remember(path.name, file)

    def _remove(self, error: DamagedEntry) -> None:
        self._disown(error.path.name)
        gone = self._unlink(error.path.name)
        logger.warning("%s; it is %s", error, "removed" if gone else "ignored")
