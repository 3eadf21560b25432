"""What the slots hold, and the tiers below: carries out what the prefix cache plans.

Device cells, then RAM, then disk. Knows no requests. Engine thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np

from openai_local.engine.backend import Backend, Batch, Floats
from openai_local.engine.cells import CellLedger
from openai_local.engine.host_cache import HostCache, HostEntry
from openai_local.engine.metrics import EngineMetrics
from openai_local.engine.prefix_cache import Copy, Placement, PrefixCache, Save, Step

logger = logging.getLogger(__name__)


class KvMemory:
    """The backend's memory with the host cache below it."""

    def __init__(self, backend: Backend, host: HostCache | None) -> None:
        self._backend = backend
        self._host = host
        n_ctx = backend.info.n_ctx
        self.cells = CellLedger(backend.n_cells, backend.n_slots, shared=backend.unified)
        self.cache = PrefixCache(
            backend.n_slots,
            n_ctx,
            n_drop_max=backend.n_drop_max,
            unified=backend.unified,
            host=host,
        )
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

    def decode(self, batch: Batch) -> Floats:
        """Raises DecodeFailed."""
        rows = self._backend.decode(batch)
        counts = np.bincount(batch.slots)
        for slot in np.flatnonzero(counts).tolist():
            self.cells.grow(slot, int(counts[slot]))
        return rows

    def place(self, placement: Placement) -> int:
        """Returns how many tokens the slot really holds afterwards, all of them valid."""
        self.do(placement.steps)
        kept = self.truncate(placement.slot, placement.n_reused)
        return placement.n_reused if kept else 0

    def do(self, steps: Iterable[Step]) -> None:
        for step in steps:
            if isinstance(step, Copy):
                self._backend.copy(step.source, step.target)
                self.cells.copy(step.source, step.target)
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
        try:
            state = self._backend.save(slot)
        except MemoryError:
            logger.warning("no memory to save a state of %d tokens", len(tokens))
            return
        if state is not None:
            self._host.put(tokens, salt, state)
            self.n_saved += 1

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

    def _load(self, slot: int, entry: HostEntry) -> None:
        assert self._host is not None, "an entry is of a host cache"
        self.cells.resize(slot, 0)  # it takes cells of its own
        if self._backend.load(slot, entry.state):
            self._host.touch(entry)
            self.cells.resize(slot, len(entry.tokens))
        else:
            logger.warning("a saved state of %d tokens cannot be read", len(entry.tokens))
