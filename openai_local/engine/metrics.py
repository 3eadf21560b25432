"""Counters and histograms of the engine, kept by its thread and read as snapshots by anybody."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, fields, replace

# Upper bounds in seconds: of waiting for something, of the time between two tokens.
WAIT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
GAP_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """How many observations were at most each bound, as Prometheus counts them.

    ``counts`` has one more element than ``bounds``: what was above the last one.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def copy(self) -> Histogram:
        copy = Histogram(self.bounds)
        copy.counts = list(self.counts)
        copy.total = self.total
        return copy


def _waits() -> Histogram:
    return Histogram(WAIT_BUCKETS_S)


@dataclass(slots=True)
class EngineMetrics:
    """Totals since the engine started, and the present numbers.

    ``queue_seconds`` is from submission to a slot, ``first_token_seconds`` from submission to the
    first token, ``inter_token_seconds`` between two tokens of one generation, and
    ``request_seconds`` from submission to an end that was no failure. ``decode_batch_size`` is in
    sequences. Prompt tokens were computed, or reused from a slot, a state in RAM, or one that was
    read from the disk for them. ``evictions_total`` counts idle slots emptied for want of cells.
    ``disk_bytes`` are of all models that share the directory; ``disk_dropped_total`` counts states
    that were to be written and could not be.
    """

    requests_submitted_total: int = 0
    requests_finished_total: int = 0
    requests_cancelled_total: int = 0
    requests_failed_total: int = 0
    prompt_tokens_computed_total: int = 0
    prompt_tokens_reused_total: int = 0
    prompt_tokens_reused_ram_total: int = 0
    prompt_tokens_reused_disk_total: int = 0
    completion_tokens_total: int = 0
    completion_tokens_forced_total: int = 0
    embedding_tokens_total: int = 0
    decode_steps_total: int = 0
    decode_seconds_total: float = 0.0
    prefill_steps_total: int = 0
    prefill_seconds_total: float = 0.0
    preemptions_total: int = 0
    evictions_total: int = 0
    states_saved_total: int = 0
    ram_evictions_total: int = 0
    sequences_running: int = 0
    sequences_waiting: int = 0
    cells_used: int = 0
    cells_total: int = 0
    ram_bytes: int = 0
    disk_bytes: int = 0
    disk_evictions_total: int = 0
    disk_dropped_total: int = 0
    queue_seconds: Histogram = field(default_factory=_waits)
    first_token_seconds: Histogram = field(default_factory=_waits)
    request_seconds: Histogram = field(default_factory=_waits)
    inter_token_seconds: Histogram = field(default_factory=lambda: Histogram(GAP_BUCKETS_S))
    decode_batch_size: Histogram = field(default_factory=lambda: Histogram(BATCH_BUCKETS))

    @property
    def requests_ended_total(self) -> int:
        return (
            self.requests_finished_total
            + self.requests_cancelled_total
            + self.requests_failed_total
        )

    @property
    def prompt_tokens_reused_slot_total(self) -> int:
        below = self.prompt_tokens_reused_ram_total + self.prompt_tokens_reused_disk_total
        return self.prompt_tokens_reused_total - below

    def snapshot(self) -> EngineMetrics:
        """A copy that does not change any more."""
        copy = replace(self)
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if isinstance(value, Histogram):
                setattr(copy, field_.name, value.copy())
        return copy
