"""What others leave in the inbox: requests become sequences that wait for a slot, or are refused.

Engine thread only; decodes nothing.
"""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass
from typing import Any

from openai_local.engine.backend import Backend
from openai_local.engine.cache.disk_waits import DiskWaits
from openai_local.engine.constraints.compiler import Compiled
from openai_local.engine.deliveries import Deliveries
from openai_local.engine.embedder import Embedder, EmbeddingJob
from openai_local.engine.errors import DeadlineExceeded, EngineError, StepFailed
from openai_local.engine.messages import GenerationRequest
from openai_local.engine.metrics import EngineMetrics
from openai_local.engine.sampler_steps import effective, is_greedy
from openai_local.engine.sampling import Sampler
from openai_local.engine.scheduler import Scheduler
from openai_local.engine.sequence import Sequence
from openai_local.engine.thought import ThoughtCloser

logger = logging.getLogger(__name__)

# LLAMA_DEFAULT_SEED: to llama.cpp it means a random one.
RANDOM_SEED = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Submit:
    """``sink`` is whom the events are for; the engine only hands it back."""

    sink: Any
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    sink: Any


@dataclass(frozen=True, slots=True)
class Fetched:
    """The disk has read, or failed to read, what ``sequence`` waits for."""

    sequence: Sequence


Message = Submit | Cancel | Fetched | EmbeddingJob


class Intake:
    """Takes messages, in their order."""

    def __init__(
        self,
        backend: Backend,
        scheduler: Scheduler,
        waits: DiskWaits,
        deliveries: Deliveries,
        embedder: Embedder,
        counters: EngineMetrics,
    ) -> None:
        self._backend = backend
        self._scheduler = scheduler
        self._waits = waits
        self._deliveries = deliveries
        self._embedder = embedder
        self._counters = counters

    def take(self, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, Submit):
                try:
                    self._submit(message)
                except Exception as failure:
                    logger.exception("a request could not be taken")
                    self._deliveries.refuse(message.sink, StepFailed(repr(failure)))
            elif isinstance(message, Cancel):
                sequence = self._deliveries.of(message.sink)
                if sequence is not None:
                    self._deliveries.cancel(sequence)
            elif isinstance(message, Fetched):
                self._waits.end(message.sequence)
            else:
                self._submit_embedding(message)

    def fail_late(self, timeout_s: float | None) -> None:
        """Those that were submitted so long ago, waiting or running."""
        if timeout_s is not None:
            for sequence in self._scheduler.submitted_before(time.monotonic() - timeout_s):
                self._deliveries.fail(sequence, DeadlineExceeded(timeout_s))

    def _submit(self, message: Submit) -> None:
        request = message.request
        self._counters.requests_submitted_total += 1
        sampler = self._sampler(request)
        try:
            sequence = Sequence(request, sampler, self._backend.info.n_ctx, message.sink)
        except Exception:
            sampler.close()
            raise
        self._deliveries.open(sequence)
        if sequence.n_limit <= sequence.n_prompt and not request.prompt_logprobs:
            self._deliveries.finish(sequence, "length")
        else:
            self._scheduler.submit(sequence)
            if sequence.n_reuse_max:
                self._waits.start(sequence)

    def _sampler(self, request: GenerationRequest) -> Sampler:
        sampling, prompt = effective(request.sampling), request.prompt_tokens
        seed = secrets.randbits(32) if sampling.seed is None else sampling.seed & 0xFFFFFFFF
        if seed == RANDOM_SEED:
            seed = 0
        draw = None if is_greedy(sampling) else self._backend.draw(sampling, seed, prompt)
        vocabulary, constraint = self._backend.vocabulary, request.constraint
        try:
            return Sampler(
                sampling, prompt, vocabulary.eog_tokens(), draw,
                stop_tokens=request.stop_tokens, never=vocabulary.suppressed_tokens(),
                guide=constraint.guide() if isinstance(constraint, Compiled) else None,
                closer=ThoughtCloser(request.thought, vocabulary) if request.thought else None,
            )  # fmt: skip
        except Exception:
            if draw is not None:
                draw.close()
            raise

    def _submit_embedding(self, job: EmbeddingJob) -> None:
        try:
            self._embedder.submit(job)
        except Exception as error:
            job.fail(error if isinstance(error, EngineError) else StepFailed(str(error)))
