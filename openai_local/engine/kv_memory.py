"""What the slots hold, and the tiers below: carries out what the prefix cache plans.

Device cells, then RAM, then disk. Knows no requests. Engine thread only.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from openai_local.engine.backend import Backend, Batch, Floats, State
from openai_local.engine.cache.disk_cache import MAX_WAITING_BYTES, DiskCache
from openai_local.engine.cache.fetches import Fetches
from openai_local.engine.cache.host_cache import HostCache, HostEntry
from openai_local.engine.cache.prefix_cache import Copy, Load, Placement, PrefixCache, Save, Step
from openai_local.engine.cells import CellLedger
from openai_local.engine.config import EngineConfig
from openai_local.engine.machine import free_memory
from openai_local.engine.memory import CACHE_RAM_SHARE
from openai_local.engine.metrics import EngineMetrics

logger = logging.getLogger(__name__)

Tier = Literal["slot", "ram", "disk"]
# Containers are given ten seconds to stop, by default.
CLOSE_TIMEOUT_S = 5.0


class KvMemory:
    """The backend's memory with the host cache below it."""

    def __init__(
        self, backend: Backend, host: HostCache | None, disk: DiskCache | None = None
    ) -> None:
        """What ``host`` gives up is for it to hand to ``disk``."""
        self._backend = backend
        self._host = host
        self._disk = disk
        n_ctx = backend.info.n_ctx
        self.cells = CellLedger(backend.n_cells, backend.n_slots, shared=backend.shares_cells)
        self.cache = PrefixCache(
            backend.n_slots,
            n_ctx,
            n_drop_max=backend.n_drop_max,
            unified=backend.unified,
            shares_cells=backend.shares_cells,
            host=host,
        )
        self.fetches: Fetches | None = None
        if disk is not None and host is not None:
            self.fetches = Fetches(disk, host, self.cache)
        self._copying: set[int] = set()  # slots of copies that the next decode does
        self.n_saved = 0
        self.n_evicted = 0

    @property
    def bounded(self) -> bool:
        """Whether slots compete for cells."""
        return self._backend.unified

    @property
    def can_cut(self) -> bool:
        """Whether any part of a slot can be dropped."""
        return self._backend.n_drop_max >= self._backend.info.n_ctx

    @property
    def can_drop_last(self) -> bool:
        """Whether a slot's last token can be dropped."""
        return self._backend.n_drop_max > 0

    @property
    def asynchronous(self) -> bool:
        """Whether there is time between :meth:`start` and :meth:`rows`."""
        return self._backend.asynchronous

    def start(self, batch: Batch) -> None:
        """As the backend's. What has begun holds its cells, however it ends."""
        self._backend.start(batch)
        self._copying.clear()
        for slot, n in Counter(batch.slots.tolist()).items():
            self.cells.grow(slot, n)

    def rows(self) -> Floats:
        return self._backend.rows()

    def place(self, placement: Placement) -> tuple[int, Tier]:
        """Returns how many tokens the slot really holds afterwards, all of them valid, and where
        they were."""
        last = placement.steps[-1] if placement.steps else None
        tier: Tier = "slot"
        if isinstance(last, Load):
            tier = "disk" if last.entry.from_disk else "ram"
        self.do(placement.steps)
        kept = self.truncate(placement.slot, placement.n_reused)
        return placement.n_reused if kept else 0, tier

    def do(self, steps: Iterable[Step]) -> None:
        for step in steps:
            if isinstance(step, Copy):
                self._backend.copy(step.source, step.target)
                self.cells.copy(step.source, step.target)
                if not self.bounded:
                    self._copying |= {step.source, step.target}
            elif isinstance(step, Save):
                self.save(step.slot, step.tokens, step.salt)
            else:
                self._load(step.slot, step.entry)

    def truncate(self, slot: int, n_keep: int) -> bool:
        """Keep the first tokens of a slot; False where that cannot be: then it is empty."""
        kept = self._backend.truncate(slot, n_keep)
        self.cells.resize(slot, n_keep if kept else 0)
        return kept

    def save(self, slot: int, tokens: Sequence[int], salt: str) -> None:
        """Keep what the slot holds, these tokens, in RAM."""
        if self._host is None:
            return
        state = self._state(slot, len(tokens))
        if state is not None:
            self._host.put(tokens, salt, state)
            self.n_saved += 1

    def close(self, *, sound: bool) -> None:
        """What is worth keeping goes to the disk, as far as the time allows; nothing, if the
        engine is not ``sound``: then slots may hold something else than they should."""
        if self._host is None:
            return
        if self._disk is None:
            self._host.clear()
            return
        try:
            if sound:
                for save in self.cache.save_idle():
                    state = self._state(save.slot, len(save.tokens))
                    if state is not None:
                        self._disk.put(save.tokens, save.salt, state)
                for entry in self._host.by_value():
                    self._disk.put(entry.tokens, entry.salt, entry.state)
        finally:
            self._disk.close(CLOSE_TIMEOUT_S)
            self._host.clear()  # others may have the memory, whoever still knows this engine

    def evict(self, keep: int = -1) -> bool:
        """Empty the idle slot that is worth least; False if there is none."""
        plan = self.cache.evict(keep)
        if plan is None:
            return False
        slot, steps = plan
        self.do(steps)
        self.truncate(slot, 0)
        self.n_evicted += 1
        return True

    def measure(self, metrics: EngineMetrics) -> None:
        """Fill in what is known here; safe from any thread."""
        metrics.evictions_total = self.n_evicted
        metrics.states_saved_total = self.n_saved
        metrics.cells_used = self.cells.n_used
        metrics.cells_total = self.cells.n_cells
        if self._host is not None:
            metrics.ram_bytes = self._host.n_bytes
            metrics.ram_evictions_total = self._host.n_evicted
        if self._disk is not None:
            disk = self._disk.metrics()
            metrics.disk_bytes = disk.n_bytes
            metrics.disk_evictions_total = disk.n_evicted_total
            metrics.disk_dropped_total = disk.n_dropped_total

    def _state(self, slot: int, n_tokens: int) -> State | None:
        try:
            return self._backend.save(slot)
        except MemoryError:
            logger.warning("no memory to save a state of %d tokens", n_tokens)
            return None

    def _load(self, slot: int, entry: HostEntry) -> None:
        assert self._host is not None, "an entry is of a host cache"
        if slot in self._copying:
            # What another placement of this step still copies from or to here may not be loaded
            # over; the state is as good as before.
            self.truncate(slot, 0)
            return
        self.cells.resize(slot, 0)  # it takes cells of its own
        entry.from_disk = False
        if self._backend.load(slot, entry.state):
            self._host.touch(entry)
            self.cells.resize(slot, len(entry.tokens))
            return
        # It would fail the next one, too; and what is computed instead is saved in its place.
        logger.warning("a saved state of %d tokens cannot be loaded", len(entry.tokens))
        self._host.remove(entry)
        if self._disk is not None:
            self._disk.reject(entry.tokens, entry.salt)


def open_memory(backend: Backend, config: EngineConfig) -> KvMemory:
    """With the tiers that the settings ask for."""
    n_bytes = config.cache_ram
    if n_bytes is None:
        free = free_memory() if config.memory is None else config.memory
        n_bytes = int(free * CACHE_RAM_SHARE)
    if n_bytes == 0 or not backend.info.can_generate:
        return KvMemory(backend, None)
    logger.info("up to %.0f MiB of RAM for the states of earlier prompts", n_bytes / 2**20)
    can_cut = backend.n_drop_max >= backend.info.n_ctx
    if config.cache_dir is None:
        return KvMemory(backend, HostCache(n_bytes, can_drop=can_cut))
    disk = DiskCache(
        config.cache_dir,
        config.cache_disk,
        backend.fingerprint,
        n_tokens_max=backend.info.n_ctx,
        can_drop=can_cut,
        max_waiting_bytes=min(MAX_WAITING_BYTES, n_bytes),
    )
    host = HostCache(
        n_bytes,
        can_drop=can_cut,
        spill=lambda entry: disk.put(entry.tokens, entry.salt, entry.state),
    )
    return KvMemory(backend, host, disk)
