"""The engine thread's work: drain the inbox, schedule, decode, sample, emit. No loops, no files."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from openai_local.engine.backend import Backend, Batch, DecodeFailed, Floats
from openai_local.engine.config import EngineConfig
from openai_local.engine.embedder import Embedder, EmbeddingJob
from openai_local.engine.errors import (
    DeadlineExceeded,
    EngineError,
    EngineStopped,
    StepFailed,
)
from openai_local.engine.messages import Event, Failed, Finished, GenerationRequest, TextDelta
from openai_local.engine.metrics import EngineMetrics
from openai_local.engine.prefix_cache import PrefixCache
from openai_local.engine.sampling import Sampler
from openai_local.engine.scheduler import Chunk, PrefillBudget, Scheduler
from openai_local.engine.sequence import Sequence, Status

logger = logging.getLogger(__name__)

# Gaps times steps until running sequences are moved together: a move copies a slot's whole memory,
# and most gaps are filled by the next request before.
GAP_STEPS = 16
# What an idle slot computes so that there is no gap; dropped at once.
FILLER_TOKEN = 0

# LLAMA_DEFAULT_SEED: to llama.cpp it means a random one.
RANDOM_SEED = 0xFFFFFFFF
# Dividing logits by less overflows.
GREEDY_BELOW = 1e-6


@dataclass(frozen=True, slots=True)
class Submit:
    """``sink`` is whom the events are for; the engine only hands it back."""

    sink: Any
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    sink: Any


Message = Submit | Cancel | EmbeddingJob
Deliver = Callable[[list[tuple[Any, Event]]], list[Any]]


class EngineCore:
    """Owns the backend, the scheduler and all sequences. Touched by the engine thread only."""

    def __init__(
        self,
        backend: Backend,
        config: EngineConfig,
        take: Callable[[], list[Message]],
        deliver: Deliver,
    ) -> None:
        """``take`` gives messages that came in during a step; ``deliver`` must not block, and
        returns the sinks that nobody reads any more."""
        self._backend = backend
        self._take = take
        self._deliver = deliver
        self._cache = PrefixCache(backend.n_slots, backend.can_drop)
        self._scheduler = Scheduler(
            self._cache, PrefillBudget(backend.n_batch, config.target_itl_ms / 1000)
        )
        self._timeout_s = config.request_timeout_s
        self._embedder: Embedder | None = None
        self._by_sink: dict[int, Sequence] = {}
        self._outbox: list[tuple[Any, Event]] = []
        self._gap_steps = 0
        self._embed_turn = False
        self._counters = EngineMetrics()

    def metrics(self) -> EngineMetrics:
        """A snapshot; safe from any thread."""
        return replace(
            self._counters,
            sequences_running=self._scheduler.n_running,
            sequences_waiting=self._scheduler.n_waiting,
        )

    def step(self, messages: list[Message]) -> bool:
        """One token for every running sequence, then prompt tokens or embeddings."""
        self._handle(messages)
        self._fail_late()
        self._admit()
        decoding = self._scheduler.decodes()
        n_generating = sum(sequence.status is Status.DECODE for sequence in decoding)
        if decoding:
            self._decode(self._without_gaps(decoding))
            self._flush()
            # A client that left does not wait for the chunk.
            self._handle(self._take())
            self._admit()
        self._compute_prompts(n_generating)
        self._flush()
        return not (self._scheduler.idle and (self._embedder is None or self._embedder.idle))

    def close(self, messages: list[Message]) -> None:
        """Everybody gets an answer; everything is freed."""
        error = EngineStopped()
        for message in messages:
            if isinstance(message, Submit):
                self._outbox.append((message.sink, Failed(error)))
            elif isinstance(message, EmbeddingJob):
                _fail(message, error)
        for sequence in self._scheduler.sequences():
            self._fail(sequence, error)
        self._flush()
        if self._embedder is not None:
            self._embedder.fail(error)
            self._embedder.close()
        self._backend.close()

    # Messages

    def _handle(self, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, Submit):
                try:
                    self._submit(message)
                except Exception as failure:
                    logger.exception("a request could not be taken")
                    self._refuse(message.sink, StepFailed(repr(failure)))
            elif isinstance(message, Cancel):
                sequence = self._by_sink.get(id(message.sink))
                if sequence is not None:
                    self._counters.requests_cancelled_total += 1
                    self._end(sequence)
            else:
                self._submit_embedding(message)

    def _refuse(self, sink: Any, error: EngineError) -> None:
        sequence = self._by_sink.get(id(sink))
        if sequence is not None:
            self._fail(sequence, error)
        else:
            self._counters.requests_failed_total += 1
            self._outbox.append((sink, Failed(error)))

    def _submit(self, message: Submit) -> None:
        request = message.request
        self._counters.requests_submitted_total += 1
        sampling = request.sampling
        seed = secrets.randbits(32) if sampling.seed is None else sampling.seed & 0xFFFFFFFF
        if seed == RANDOM_SEED:
            seed = 0
        draw = self._backend.draw(sampling, seed) if sampling.temperature > GREEDY_BELOW else None
        eog = self._backend.vocabulary.eog_tokens()
        sampler = Sampler(sampling, request.prompt_tokens, eog, draw)
        sequence = Sequence(request, sampler, self._backend.info.n_ctx, message.sink)
        self._by_sink[id(message.sink)] = sequence
        if sequence.n_limit <= sequence.n_prompt:
            self._finish(sequence, "length")
        else:
            self._scheduler.submit(sequence)

    def _submit_embedding(self, job: EmbeddingJob) -> None:
        if self._embedder is None:
            try:
                self._embedder = Embedder(self._backend.open_embedding())
            except Exception as error:
                _fail(job, error if isinstance(error, EngineError) else StepFailed(str(error)))
                return
        self._embedder.submit(job)

    def _fail_late(self) -> None:
        if self._timeout_s is not None:
            for sequence in self._scheduler.submitted_before(time.monotonic() - self._timeout_s):
                self._fail(sequence, DeadlineExceeded(self._timeout_s), valid=True)

    # Placement

    def _admit(self) -> None:
        while (admitted := self._scheduler.admit()) is not None:
            sequence, placement = admitted
            for source, target in placement.copies:
                self._backend.copy(source, target)
            kept = self._backend.truncate(sequence.slot, placement.n_reused)
            sequence.n_computed = placement.n_reused if kept else 0
            sequence.n_cached = sequence.n_computed
            self._counters.prompt_tokens_reused_total += sequence.n_cached

    def _without_gaps(self, decoding: list[Sequence]) -> list[Sequence]:
        """What decodes once running sequences were moved together, where gaps have cost enough."""
        n_gaps = decoding[-1].slot - decoding[0].slot + 1 - len(decoding)
        self._gap_steps = self._gap_steps + n_gaps if n_gaps else 0
        if self._gap_steps < GAP_STEPS:
            return decoding
        self._gap_steps = 0
        while (plan := self._cache.compact()) is not None:
            (source, target), copies = plan
            for copy in copies:
                self._backend.copy(*copy)
            self._backend.truncate(source, 0)
            self._scheduler.move(source, target)
        return self._scheduler.decodes()  # a prompt may have come between them

    # Computing

    def _decode(self, decoding: list[Sequence]) -> None:
        entries = [
            (s.slot, s.n_computed, s.tokens[s.n_computed], s.n_to_compute == 1) for s in decoding
        ]
        fillers = self._fillers(decoding)
        entries += [(slot, n_held, FILLER_TOKEN, False) for slot, n_held in fillers]
        entries.sort()
        slots, positions, tokens, outputs = zip(*entries, strict=True)
        batch = Batch(
            tokens=np.array(tokens, np.int32),
            positions=np.array(positions, np.int32),
            slots=np.array(slots, np.int32),
            outputs=np.array(outputs, np.int8),
        )
        started = time.perf_counter()
        rows = self._run(batch, decoding)
        for slot, n_held in fillers:
            if rows is None or not self._backend.truncate(slot, n_held):
                self._backend.truncate(slot, 0)
                self._cache.forget(slot)
        if rows is None:
            return
        seconds = time.perf_counter() - started
        self._scheduler.budget.observe_decode(seconds)
        self._counters.decode_steps_total += 1
        self._counters.decode_seconds_total += seconds
        row = 0
        for sequence in decoding:
            sequence.n_computed += 1
            if sequence.status is Status.PREFILL:
                self._counters.prompt_tokens_computed_total += 1
            if sequence.n_to_compute == 0:
                sequence.status = Status.DECODE
                self._sample(sequence, rows[row])
                row += 1

    def _fillers(self, decoding: list[Sequence]) -> list[tuple[int, int]]:
        if not self._backend.can_drop:
            return []
        n_ctx = self._backend.info.n_ctx
        return [idle for idle in self._scheduler.fillers(decoding) if idle[1] < n_ctx]

    def _compute_prompts(self, n_decoding: int) -> None:
        embedder = self._embedder
        has_embeddings = embedder is not None and not embedder.idle
        chunks = self._scheduler.chunks(n_decoding)
        # Prompts and embeddings take turns within one budget.
        if embedder is not None and has_embeddings and (self._embed_turn or not chunks):
            self._embed_turn = False
            self._embed(embedder, self._scheduler.budget.tokens(n_decoding))
        elif chunks:
            self._embed_turn = True
            self._prefill(chunks)

    def _prefill(self, chunks: list[Chunk]) -> None:
        n = sum(chunk.n_tokens for chunk in chunks)
        batch = Batch(
            tokens=np.empty(n, np.int32),
            positions=np.empty(n, np.int32),
            slots=np.empty(n, np.int32),
            outputs=np.zeros(n, np.int8),
        )
        finished: list[Sequence] = []
        at = 0
        for chunk in chunks:
            sequence, start, end = chunk.sequence, chunk.sequence.n_computed, at + chunk.n_tokens
            batch.tokens[at:end] = sequence.tokens[start : start + chunk.n_tokens]
            batch.positions[at:end] = np.arange(start, start + chunk.n_tokens)
            batch.slots[at:end] = sequence.slot
            if chunk.n_tokens == sequence.n_to_compute:
                batch.outputs[end - 1] = 1
                finished.append(sequence)
            at = end
        started = time.perf_counter()
        rows = self._run(batch, [chunk.sequence for chunk in chunks])
        if rows is None:
            return
        seconds = time.perf_counter() - started
        self._scheduler.budget.observe_prefill(n, seconds)
        self._counters.prefill_steps_total += 1
        self._counters.prefill_seconds_total += seconds
        self._counters.prompt_tokens_computed_total += n
        for chunk in chunks:
            chunk.sequence.n_computed += chunk.n_tokens
        for row, sequence in zip(rows, finished, strict=True):
            sequence.status = Status.DECODE
            self._sample(sequence, row)

    def _run(self, batch: Batch, sequences: Seq[Sequence]) -> Floats | None:
        """Decode; a failure fails the sequences in the batch, and only them."""
        try:
            return self._backend.decode(batch)
        except DecodeFailed as failure:
            logger.error("a step of %d tokens failed: %s", len(batch), failure)
            error = StepFailed(str(failure))
        except Exception as failure:
            logger.exception("a step of %d tokens failed", len(batch))
            error = StepFailed(repr(failure))
        for sequence in sequences:
            self._backend.truncate(sequence.slot, 0)
            self._fail(sequence, error)
        return None

    def _embed(self, embedder: Embedder, n_tokens: int) -> None:
        try:
            self._counters.embedding_tokens_total += embedder.step(n_tokens)
        except Exception as failure:
            logger.exception("an embedding step failed")
            embedder.fail(StepFailed(str(failure)))

    # Results

    def _sample(self, sequence: Sequence, row: Floats) -> None:
        vocabulary = self._backend.vocabulary
        try:
            token = sequence.sampler.sample(row)
            text, reason = sequence.accept(token, vocabulary.piece(token), vocabulary.is_eog(token))
        except Exception as failure:
            logger.exception("sampling failed")
            self._fail(sequence, StepFailed(repr(failure)))
            return
        self._counters.completion_tokens_total += 1
        if text:
            self._outbox.append((sequence.sink, TextDelta(text)))
        if reason is not None:
            self._finish(sequence, reason)

    def _finish(self, sequence: Sequence, reason: Any) -> None:
        self._counters.requests_finished_total += 1
        self._outbox.append((sequence.sink, Finished(reason, sequence.usage())))
        self._end(sequence)

    def _fail(self, sequence: Sequence, error: EngineError, *, valid: bool = False) -> None:
        self._counters.requests_failed_total += 1
        self._outbox.append((sequence.sink, Failed(error)))
        self._end(sequence, valid=valid)

    def _end(self, sequence: Sequence, *, valid: bool = True) -> None:
        del self._by_sink[id(sequence.sink)]
        if self._scheduler.has(sequence):
            self._scheduler.remove(sequence, valid=valid)
        sequence.sampler.close()

    def _flush(self) -> None:
        if not self._outbox:
            return
        outbox, self._outbox = self._outbox, []
        for sink in self._deliver(outbox):
            sequence = self._by_sink.get(id(sink))
            if sequence is not None:
                self._counters.requests_cancelled_total += 1
                self._end(sequence)


def _fail(job: EmbeddingJob, error: Exception) -> None:
    if not job.future.done() and job.future.set_running_or_notify_cancel():
        job.future.set_exception(error)
