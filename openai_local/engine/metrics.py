"""Counters of the engine, kept by its thread and read as snapshots by anybody."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EngineMetrics:
    """Totals since the engine started, and the present numbers of sequences."""

    requests_submitted_total: int = 0
    requests_finished_total: int = 0
    requests_cancelled_total: int = 0
    requests_failed_total: int = 0
    prompt_tokens_computed_total: int = 0
    prompt_tokens_reused_total: int = 0
    completion_tokens_total: int = 0
    embedding_tokens_total: int = 0
    decode_steps_total: int = 0
    decode_seconds_total: float = 0.0
    prefill_steps_total: int = 0
    prefill_seconds_total: float = 0.0
    sequences_running: int = 0
    sequences_waiting: int = 0

    @property
    def requests_ended_total(self) -> int:
        return (
            self.requests_finished_total
            + self.requests_cancelled_total
            + self.requests_failed_total
        )
