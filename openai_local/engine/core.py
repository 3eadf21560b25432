"""The engine thread's work, step by step: take, admit, decode, sample, deliver. No loops, no files.

Each is a room of its own; this one puts them together and says in which order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from openai_local.engine.admission import Admission
from openai_local.engine.backend import Backend
from openai_local.engine.cache.disk_waits import DiskWaits
from openai_local.engine.computing import Computing
from openai_local.engine.config import EngineConfig
from openai_local.engine.deliveries import Deliver, Deliveries
from openai_local.engine.embedder import Embedder, EmbeddingJob
from openai_local.engine.errors import EngineStopped, StepFailed
from openai_local.engine.intake import Fetched, Intake, Message, Submit
from openai_local.engine.kv_memory import open_memory
from openai_local.engine.metrics import EngineMetrics
from openai_local.engine.results import Results
from openai_local.engine.scheduler import PrefillBudget, Scheduler

logger = logging.getLogger(__name__)


class EngineCore:
    """Owns the backend, the scheduler and all sequences. Touched by the engine thread only."""

    def __init__(
        self,
        backend: Backend,
        config: EngineConfig,
        take: Callable[[], list[Message]],
        deliver: Deliver,
        post: Callable[[Message], object],
    ) -> None:
        """``take`` gives messages that came in during a step; ``deliver`` must not block, and
        returns the sinks that nobody reads any more; ``post`` leaves a message for a later step,
        from any thread."""
        self._backend = backend
        self._take = take
        self._timeout_s = config.request_timeout_s
        self._counters = counters = EngineMetrics()
        self._memory = memory = open_memory(backend, config)
        self._scheduler = scheduler = Scheduler(
            memory.cache,
            PrefillBudget(backend.n_batch, config.target_itl_ms / 1000),
            backend.info.n_parallel,
        )
        self._waits = DiskWaits(
            memory.fetches, scheduler.budget, self._timeout_s, lambda s: post(Fetched(s))
        )
        self._embedder = Embedder(backend.open_embedding)
        self._deliveries = deliveries = Deliveries(scheduler, self._waits, counters, deliver)
        self._intake = Intake(backend, scheduler, self._waits, deliveries, self._embedder, counters)
        self._admission = Admission(scheduler, memory, deliveries, counters)
        results = Results(backend.vocabulary, memory, deliveries, counters)
        self._computing = Computing(
            backend.info, scheduler, memory, self._admission, deliveries, results, counters
        )
        self._embed_turn = False
        self._sound = True  # False while a step is taken, and so after one that raised

    def metrics(self) -> EngineMetrics:
        """A snapshot; safe from any thread."""
        metrics = self._counters.snapshot()
        metrics.sequences_running = self._scheduler.n_running
        metrics.sequences_waiting = self._scheduler.n_waiting
        self._memory.measure(metrics)
        return metrics

    @property
    def n_ended(self) -> int:
        """How many generations have ended, however; safe from any thread."""
        return self._counters.requests_ended_total

    def step(self, messages: list[Message]) -> bool:
        """One token for every running sequence, then prompt tokens or embeddings."""
        self._sound = False
        self._intake.take(messages)
        self._intake.fail_late(self._timeout_s)
        self._waits.end_late()
        self._admission.admit()
        n_generating = self._computing.decode()
        if n_generating:
            self._deliver()
            # A client that left does not wait for the chunk.
            self._intake.take(self._take())
            self._admission.admit()
        # Prompts and embeddings take turns within one budget.
        if not self._embedder.idle and (self._embed_turn or not self._scheduler.has_prompts):
            self._embed_turn = False
            self._deliveries.flush()
            self._embed(self._scheduler.budget.tokens(n_generating))
        else:
            self._embed_turn = True
            self._computing.prefill(n_generating)
        self._deliver()
        self._sound = True
        return not (self._scheduler.idle and self._embedder.idle)

    def wake_in_s(self) -> float | None:
        """How long those who wait for the disk go on waiting; None if nobody does."""
        return self._waits.wake_in_s()

    def close(self, messages: list[Message]) -> None:
        """Everybody gets an answer; everything is freed."""
        error = EngineStopped()
        for message in messages:
            if isinstance(message, Submit):
                self._counters.requests_submitted_total += 1
                self._deliveries.refuse(message.sink, error)
            elif isinstance(message, EmbeddingJob):
                message.fail(error)
        for sequence in self._scheduler.sequences():
            self._deliveries.fail(sequence, error)
        self._deliveries.flush()
        self._embedder.fail(error)
        self._embedder.close()
        try:
            self._memory.close(sound=self._sound)
        finally:
            self._backend.close()

    def _deliver(self) -> None:
        """What was made, at once; or while the next decode runs, where that costs nothing."""
        if self._backend.asynchronous and self._scheduler.n_running:
            self._deliveries.end_gone()
        else:
            self._deliveries.flush()

    def _embed(self, n_tokens: int) -> None:
        try:
            self._counters.embedding_tokens_total += self._embedder.step(n_tokens)
        except Exception as failure:
            logger.exception("an embedding step failed")
            self._embedder.fail(StepFailed(str(failure)))
