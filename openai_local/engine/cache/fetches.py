"""What the disk reads for prompts that wait for it. Engine thread only."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from openai_local.engine.backend import State
from openai_local.engine.cache.disk_cache import DiskCache
from openai_local.engine.cache.disk_index import DiskEntry
from openai_local.engine.cache.host_cache import HostCache
from openai_local.engine.cache.prefix_cache import MIN_SAVE_TOKENS, Owner, PrefixCache


@dataclass(slots=True)
class _Fetch:
    """All that wait for one entry have its salt."""

    future: Future[State]
    salt: str
    waiting: set[Owner] = field(default_factory=set)


class Fetches:
    """From the disk to the host cache, where prompts find it."""

    def __init__(self, disk: DiskCache, host: HostCache, cache: PrefixCache) -> None:
        self._disk = disk
        self._host = host
        self._cache = cache
        self._by_entry: dict[DiskEntry, _Fetch] = {}

    def start(self, sequence: Owner, done: Callable[[], object]) -> int:
        """Have the disk read what it holds of a prompt, if that is much more than is here.

        Returns how many tokens that saves, and ``sequence`` is to wait for it; 0 if it is not.
        ``done`` is called on any thread when it is time for :meth:`keep`.
        """
        entry, n = self._disk.match(sequence.tokens, sequence.cache_salt)
        if entry is None:
            return 0
        n_saved = n - self._cache.n_reusable(sequence)
        if n_saved < MIN_SAVE_TOKENS:
            return 0
        fetch = self._by_entry.get(entry)
        if fetch is None:
            if self._n_bytes + entry.n_bytes > self._host.max_bytes:
                return 0  # one would drive out the other before it is used
            fetch = _Fetch(self._disk.fetch(entry), sequence.cache_salt)
            self._by_entry[entry] = fetch
        fetch.waiting.add(sequence)
        fetch.future.add_done_callback(lambda _: done())
        return n_saved

    def keep(self) -> None:
        """Take what has been read into RAM."""
        for entry, fetch in list(self._by_entry.items()):
            if fetch.future.done():
                del self._by_entry[entry]
                if fetch.future.exception() is None:
                    tokens = np.frombuffer(entry.tokens, "<i4").tolist()
                    self._host.put(tokens, fetch.salt, fetch.future.result(), from_disk=True)

    def leave(self, sequence: Owner) -> None:
        """It waits no more; what nobody waits for is not read, if it is not being read."""
        for entry, fetch in list(self._by_entry.items()):
            if sequence in fetch.waiting:
                fetch.waiting.discard(sequence)
                if not fetch.waiting and fetch.future.cancel():
                    del self._by_entry[entry]

    @property
    def _n_bytes(self) -> int:
        return sum(entry.n_bytes for entry in self._by_entry)
