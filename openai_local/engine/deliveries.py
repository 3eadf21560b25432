"""Whom a step's events are for, and how generations end. Makes no text and sees no logits.

Engine thread only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from openai_local.engine.cache.disk_waits import DiskWaits
from openai_local.engine.errors import EngineError
from openai_local.engine.messages import Event, Failed, Finished, FinishReason, PromptProgress
from openai_local.engine.metrics import EngineMetrics
from openai_local.engine.scheduler import Scheduler
from openai_local.engine.sequence import Sequence

Deliver = Callable[[list[tuple[Any, Event]]], list[Any]]


class Deliveries:
    """All generations that have not ended, by their sink."""

    def __init__(
        self, scheduler: Scheduler, waits: DiskWaits, counters: EngineMetrics, deliver: Deliver
    ) -> None:
        """``deliver`` must not block, and returns the sinks that nobody reads any more."""
        self._scheduler = scheduler
        self._waits = waits
        self._counters = counters
        self._deliver = deliver
        self._by_sink: dict[int, Sequence] = {}
        self._outbox: list[tuple[Any, Event]] = []
        self._gone: list[Any] = []  # sinks that nobody reads any more

    def open(self, sequence: Sequence) -> None:
        self._by_sink[id(sequence.sink)] = sequence

    def of(self, sink: Any) -> Sequence | None:
        """What is generated for ``sink``, if that has not ended."""
        return self._by_sink.get(id(sink))

    def send(self, sequence: Sequence, event: Event) -> None:
        self._outbox.append((sequence.sink, event))

    def tell_progress(self, sequence: Sequence) -> None:
        if sequence.request.progress and sequence.n_completion == 0:
            seconds = time.monotonic() - (sequence.admitted_s or 0.0)
            progress = PromptProgress(
                sequence.n_prompt, sequence.n_cached, sequence.n_computed, seconds
            )
            self.send(sequence, progress)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self._counters.requests_finished_total += 1
        self._counters.request_seconds.observe(time.monotonic() - sequence.submitted_s)
        logprob = None if sequence.trail is None else sequence.trail.total
        self.send(sequence, Finished(reason, sequence.usage(), logprob, sequence.timings()))
        self._end(sequence)

    def fail(self, sequence: Sequence, error: EngineError, *, valid: bool = True) -> None:
        """``valid``: whether its slot still holds what it computed."""
        self._counters.requests_failed_total += 1
        self.send(sequence, Failed(error))
        self._end(sequence, valid=valid)

    def cancel(self, sequence: Sequence) -> None:
        self._counters.requests_cancelled_total += 1
        self._end(sequence)

    def refuse(self, sink: Any, error: EngineError) -> None:
        """What was submitted for ``sink`` fails, however far it has come."""
        sequence = self.of(sink)
        if sequence is not None:
            self.fail(sequence, error)
        else:
            self._counters.requests_failed_total += 1
            self._outbox.append((sink, Failed(error)))

    def flush(self) -> None:
        """Hand over what there is; what nobody reads any more ends."""
        self.hand_over()
        self.end_gone()

    def hand_over(self) -> None:
        """While a decode runs: nothing ends, since its slots may not be touched."""
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            self._gone += self._deliver(outbox)

    def end_gone(self) -> None:
        """What was handed over to nobody."""
        gone, self._gone = self._gone, []
        for sink in gone:
            sequence = self.of(sink)
            if sequence is not None:
                self.cancel(sequence)

    def _end(self, sequence: Sequence, *, valid: bool = True) -> None:
        del self._by_sink[id(sequence.sink)]
        self._waits.end(sequence)
        if self._scheduler.has(sequence):
            self._scheduler.remove(sequence, valid=valid)
        sequence.sampler.close()
