"""Who gets a slot, and whose cells are given up for it. Engine thread only; computes nothing."""

from __future__ import annotations

import time

from openai_local.engine.deliveries import Deliveries
from openai_local.engine.kv_memory import KvMemory
from openai_local.engine.metrics import EngineMetrics
from openai_local.engine.scheduler import Scheduler
from openai_local.engine.sequence import Sequence

# Gaps times steps until running sequences are moved together: a move copies a slot's whole memory,
# and most gaps are filled by the next request before.
GAP_STEPS = 16
# Cells that each running sequence finds free when another is admitted: its next tokens.
HEADROOM_TOKENS = 16


class Admission:
    """Moves sequences into slots, out of them, and together."""

    def __init__(
        self,
        scheduler: Scheduler,
        memory: KvMemory,
        deliveries: Deliveries,
        counters: EngineMetrics,
    ) -> None:
        self._scheduler = scheduler
        self._memory = memory
        self._deliveries = deliveries
        self._counters = counters
        self._gap_steps = 0

    def admit(self) -> None:
        """Waiting sequences, as long as there is a place for the next."""
        while (sequence := self._scheduler.next()) is not None and self._has_room(sequence):
            placement = self._scheduler.admit(sequence)
            sequence.n_computed, tier = self._memory.place(placement)
            if sequence.admitted_s is not None:
                continue  # it was preempted; what it computes again is no prompt's
            sequence.admitted_s = time.monotonic()
            self._counters.queue_seconds.observe(sequence.admitted_s - sequence.submitted_s)
            sequence.n_cached = sequence.n_computed
            self._counters.prompt_tokens_reused_total += sequence.n_cached
            self._deliveries.tell_progress(sequence)
            if tier == "disk":
                self._counters.prompt_tokens_reused_disk_total += sequence.n_cached
            elif tier == "ram":
                self._counters.prompt_tokens_reused_ram_total += sequence.n_cached

    def make_room(self, n_tokens: int) -> bool:
        """Free cells for the next decode; whether sequences were preempted for it."""
        memory, preempted = self._memory, False
        while memory.bounded and memory.cells.n_free < n_tokens:
            if not memory.evict():
                if not self._preempt():
                    break
                preempted = True
        return preempted

    def give_up(self) -> bool:
        """Cells of somebody's, idle or running; False if there are none to give up."""
        return self._memory.evict() or self._preempt()

    def without_gaps(self, decoding: list[Sequence]) -> list[Sequence]:
        """What decodes once running sequences were moved together, where gaps have cost enough."""
        if self._memory.bounded:
            return decoding  # one pool has no gaps
        n_gaps = decoding[-1].slot - decoding[0].slot + 1 - len(decoding)
        self._gap_steps = self._gap_steps + n_gaps if n_gaps else 0
        if self._gap_steps < GAP_STEPS:
            return decoding
        self._gap_steps = 0
        while (plan := self._memory.cache.compact()) is not None:
            (source, target), steps = plan
            self._memory.do(steps)
            self._memory.truncate(source, 0)
            self._scheduler.move(source, target)
        return self._scheduler.decodes()  # a prompt may have come between them

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether its tokens fit beside those of the running ones, idle ones given up for it."""
        memory, scheduler = self._memory, self._scheduler
        if not memory.bounded:
            return True
        n_needed, source = memory.cache.n_cells_wanted(sequence)
        n_needed += scheduler.n_reserved
        n_needed += HEADROOM_TOKENS * (scheduler.n_running + 1)
        if scheduler.n_running == 0:
            n_needed = min(n_needed, memory.cells.n_cells)
        elif memory.cells.n_free + memory.cache.n_idle_tokens < n_needed:
            return False
        while memory.cells.n_free < n_needed and memory.evict(keep=source):
            pass
        return memory.cells.n_free >= n_needed or scheduler.n_running == 0

    def _preempt(self) -> bool:
        victim = self._scheduler.victim()
        if victim is None:
            return False
        self._scheduler.preempt(victim)
        self._counters.preemptions_total += 1
        return True
