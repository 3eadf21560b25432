"""Which states are on the disk, by their tokens. In memory: it touches no disk."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import numpy as np

# Before the salt of what is never to be written.
IN_MEMORY = "\0in memory\0"

Match = tuple["DiskEntry | None", int]


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


class DiskIndex:
    """Safe from any thread. All tokens are bytes as in a DiskEntry."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_salt: dict[bytes, list[DiskEntry]] = {}  # sorted by the tokens' bytes
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def add(self, entry: DiskEntry) -> None:
        with self._lock:
            entries = self._by_salt.setdefault(entry.salt, [])
            entries.insert(bisect_left(entries, entry.tokens, key=_tokens_of), entry)
            self._n += 1

    def remove(self, entry: DiskEntry) -> None:
        """Nothing, if it is not there."""
        with self._lock:
            entries = self._by_salt.get(entry.salt, [])
            i = bisect_left(entries, entry.tokens, key=_tokens_of)
            if i < len(entries) and entries[i] == entry:
                del entries[i]
                self._n -= 1
                if not entries:
                    del self._by_salt[entry.salt]

    def find(self, tokens: bytes, salt: bytes) -> DiskEntry | None:
        """The entry of exactly these tokens."""
        entry = self.covering(tokens, salt)
        return entry if entry is not None and entry.tokens == tokens else None

    def covering(self, tokens: bytes, salt: bytes) -> DiskEntry | None:
        """The shortest entry that begins with ``tokens``, or is just them."""
        with self._lock:
            entries = self._by_salt.get(salt, [])
            i = bisect_left(entries, tokens, key=_tokens_of)
            there = i < len(entries) and entries[i].tokens.startswith(tokens)
            return entries[i] if there else None

    def prefixes(self, tokens: bytes, salt: bytes) -> list[DiskEntry]:
        """All entries that are less than ``tokens`` and their beginning, the longest first."""
        with self._lock:
            return list(_prefixes(self._by_salt.get(salt, []), tokens[:-4]))

    def match(self, wanted: bytes, salt: bytes, *, whole: bool) -> Match:
        """The entry that shares the longest prefix with ``wanted``, and how many tokens of it.

        ``whole``: only entries count all of whose tokens are that prefix.
        """
        with self._lock:
            entries = self._by_salt.get(salt, [])
            if whole:
                entry = next(_prefixes(entries, wanted), None)
                return entry, 0 if entry is None else entry.n_tokens
            return _longest(entries, wanted)


_tokens_of = attrgetter("tokens")


def _longest(entries: list[DiskEntry], wanted: bytes) -> Match:
    """In sorted order what shares most with ``wanted`` stands beside its place."""
    i = bisect_left(entries, wanted, key=_tokens_of)
    n = max((_common_prefix(e.tokens, wanted) for e in entries[max(i - 1, 0) : i + 1]), default=0)
    if n == 0:
        return None, 0
    # The smallest of those that share as much is the quickest to read; often it is the first.
    first = bisect_left(entries, wanted[: 4 * n], key=_tokens_of)
    near = {first, i - 1, i} & set(range(first, len(entries)))
    sharing = (entries[j] for j in near if entries[j].tokens.startswith(wanted[: 4 * n]))
    return min(sharing, key=attrgetter("n_bytes")), n


def _prefixes(entries: list[DiskEntry], wanted: bytes) -> Iterator[DiskEntry]:
    """A prefix of ``wanted`` stands before it, with only what it is also a prefix of between."""
    while wanted:
        i = bisect_right(entries, wanted, key=_tokens_of)
        if i == 0:
            return
        before = entries[i - 1]
        n = _common_prefix(before.tokens, wanted)
        if n == before.n_tokens:
            yield before
            n -= 1
        wanted = wanted[: 4 * n]


def _common_prefix(a: bytes, b: bytes) -> int:
    """In tokens."""
    n = min(len(a), len(b)) // 4
    differ = np.frombuffer(a, "<i4", n) != np.frombuffer(b, "<i4", n)
    return int(differ.argmax()) if differ.any() else n
