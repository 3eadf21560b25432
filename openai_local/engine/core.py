"""The engine thread's work: drain the inbox, schedule, decode, sample, emit. No loops, no files."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from openai_local.engine.backend import ABORTED, NO_PLACE, Backend, Batch, DecodeFailed, Floats
from openai_local.engine.batches import decode_batch, prompt_batch
from openai_local.engine.config import EngineConfig
from openai_local.engine.constraints import Compiled
from openai_local.engine.embedder import Embedder, EmbeddingJob
from openai_local.engine.errors import (
    DeadlineExceeded,
    EngineError,
    EngineStopped,
    StepFailed,
)
from openai_local.engine.kv_memory import open_memory
from openai_local.engine.logprobs import LogprobReader, n_rows_at_once
from openai_local.engine.messages import (
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    PromptLogprobs,
    PromptProgress,
    TextDelta,
)
from openai_local.engine.metrics import EngineMetrics
from openai_local.engine.sampler_steps import effective, is_greedy
from openai_local.engine.sampling import Sampler
from openai_local.engine.scheduler import Chunk, PrefillBudget, Scheduler
from openai_local.engine.sequence import Sequence, Status
from openai_local.engine.thought import ThoughtCloser

logger = logging.getLogger(__name__)

# Gaps times steps until running sequences are moved together: a move copies a slot's whole memory,
# and most gaps are filled by the next request before.
GAP_STEPS = 16
# Cells that each running sequence finds free when another is admitted: its next tokens.
HEADROOM_TOKENS = 16
# A prompt waits for the disk no longer than computing it takes, if that is known, and never less.
FETCH_TIMEOUT_S = 30.0
MIN_FETCH_TIMEOUT_S = 1.0
# So many steps in a row that found no place, or were aborted, are tried again.
MAX_RETRIES = 20

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
Deliver = Callable[[list[tuple[Any, Event]]], list[Any]]


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
        self._deliver = deliver
        self._post = post
        self._memory = open_memory(backend, config)
        self._cache = self._memory.cache
        self._scheduler = Scheduler(
            self._cache,
            PrefillBudget(backend.n_batch, config.target_itl_ms / 1000),
            backend.info.n_parallel,
        )
        self._timeout_s = config.request_timeout_s
        self._logprobs = LogprobReader(backend.vocabulary)
        self._n_rows_max = n_rows_at_once(backend.info.n_vocab)
        self._embedder: Embedder | None = None
        self._by_sink: dict[int, Sequence] = {}
        self._fetching: dict[Sequence, float] = {}  # and until when they wait for the disk
        self._sound = True  # False while a step is taken, and so after one that raised
        self._outbox: list[tuple[Any, Event]] = []
        self._gap_steps = 0
        self._n_retries = 0
        self._embed_turn = False
        self._counters = EngineMetrics()

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
        self._handle(messages)
        self._fail_late()
        self._end_fetches()
        self._admit()
        decoding = self._scheduler.decodes()
        if self._make_room(sum(self._scheduler.run_lengths(decoding))):
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
        self._sound = True
        return not (self._scheduler.idle and (self._embedder is None or self._embedder.idle))

    def wake_in_s(self) -> float | None:
        """How long those who wait for the disk go on waiting; None if nobody does."""
        if not self._fetching:
            return None
        return max(0.0, min(self._fetching.values()) - time.monotonic())

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
        try:
            self._memory.close(sound=self._sound)
        finally:
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
            elif isinstance(message, Fetched):
                self._end_fetch(message.sequence)
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
        sampling, prompt = effective(request.sampling), request.prompt_tokens
        seed = secrets.randbits(32) if sampling.seed is None else sampling.seed & 0xFFFFFFFF
        if seed == RANDOM_SEED:
            seed = 0
        draw = None if is_greedy(sampling) else self._backend.draw(sampling, seed, prompt)
        vocabulary = self._backend.vocabulary
        try:
            constraint = request.constraint
            sampler = Sampler(
                sampling, prompt, vocabulary.eog_tokens(), draw,
                stop_tokens=request.stop_tokens, never=vocabulary.suppressed_tokens(),
                guide=constraint.guide() if isinstance(constraint, Compiled) else None,
                closer=ThoughtCloser(request.thought, vocabulary) if request.thought else None,
            )  # fmt: skip
        except Exception:
            if draw is not None:
                draw.close()
            raise
        sequence = Sequence(request, sampler, self._backend.info.n_ctx, message.sink)
        self._by_sink[id(message.sink)] = sequence
        if sequence.trail is not None and request.prompt_logprobs:
            sequence.trail.prompt.append(self._logprobs.unknown(prompt[0]))
        if sequence.n_limit <= sequence.n_prompt and not request.prompt_logprobs:
            self._finish(sequence, "length")
        else:
            self._scheduler.submit(sequence)
            if sequence.n_reuse_max:
                self._start_fetch(sequence)

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
                self._fail(sequence, DeadlineExceeded(self._timeout_s))

    # The disk

    def _start_fetch(self, sequence: Sequence) -> None:
        fetches, fetched = self._memory.fetches, Fetched(sequence)
        n_saved = fetches.start(sequence, lambda: self._post(fetched)) if fetches else 0
        if n_saved:
            token_s = self._scheduler.budget.token_s
            most = FETCH_TIMEOUT_S if token_s is None else n_saved * token_s
            until = time.monotonic() + max(most, MIN_FETCH_TIMEOUT_S)
            if self._timeout_s is not None:
                until = min(until, sequence.submitted_s + self._timeout_s)
            self._fetching[sequence] = until
            sequence.fetching = True

    def _end_fetches(self) -> None:
        """Those who have waited too long compute what the disk does not give them."""
        if self._fetching:
            now = time.monotonic()
            for sequence in [s for s, until in self._fetching.items() if until <= now]:
                logger.warning("the disk takes too long: a prompt is computed instead")
                self._end_fetch(sequence)

    def _end_fetch(self, sequence: Sequence) -> None:
        """It waits for the disk no more, whatever came of it."""
        if self._memory.fetches is not None:
            self._memory.fetches.keep()
        if self._fetching.pop(sequence, None) is not None:
            assert self._memory.fetches is not None, "something is fetched"
            self._memory.fetches.leave(sequence)
            sequence.fetching = False

    # Placement

    def _admit(self) -> None:
        while (sequence := self._scheduler.next()) is not None and self._has_room(sequence):
            placement = self._scheduler.admit(sequence)
            sequence.n_computed, tier = self._memory.place(placement)
            if sequence.admitted_s is not None:
                continue  # it was preempted; what it computes again is no prompt's
            sequence.admitted_s = time.monotonic()
            self._counters.queue_seconds.observe(sequence.admitted_s - sequence.submitted_s)
            sequence.n_cached = sequence.n_computed
            self._counters.prompt_tokens_reused_total += sequence.n_cached
            self._tell_progress(sequence)
            if tier == "disk":
                self._counters.prompt_tokens_reused_disk_total += sequence.n_cached
            elif tier == "ram":
                self._counters.prompt_tokens_reused_ram_total += sequence.n_cached

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether its tokens fit beside those of the running ones, idle ones given up for it."""
        memory, scheduler = self._memory, self._scheduler
        if not memory.bounded:
            return True
        n_needed, source = self._cache.n_cells_wanted(sequence)
        n_needed += scheduler.n_reserved
        n_needed += HEADROOM_TOKENS * (scheduler.n_running + 1)
        if scheduler.n_running == 0:
            n_needed = min(n_needed, memory.cells.n_cells)
        elif memory.cells.n_free + self._cache.n_idle_tokens < n_needed:
            return False
        while memory.cells.n_free < n_needed and memory.evict(keep=source):
            pass
        return memory.cells.n_free >= n_needed or scheduler.n_running == 0

    def _make_room(self, n_tokens: int) -> bool:
        """Free cells for the next decode; whether sequences were preempted for it."""
        memory, preempted = self._memory, False
        while memory.bounded and memory.cells.n_free < n_tokens:
            if not memory.evict():
                if not self._preempt():
                    break
                preempted = True
        return preempted

    def _preempt(self) -> bool:
        victim = self._scheduler.victim()
        if victim is None:
            return False
        self._scheduler.preempt(victim)
        self._counters.preemptions_total += 1
        return True

    def _without_gaps(self, decoding: list[Sequence]) -> list[Sequence]:
        """What decodes once running sequences were moved together, where gaps have cost enough."""
        if self._memory.bounded:
            return decoding  # one pool has no gaps
        n_gaps = decoding[-1].slot - decoding[0].slot + 1 - len(decoding)
        self._gap_steps = self._gap_steps + n_gaps if n_gaps else 0
        if self._gap_steps < GAP_STEPS:
            return decoding
        self._gap_steps = 0
        while (plan := self._cache.compact()) is not None:
            (source, target), steps = plan
            self._memory.do(steps)
            self._memory.truncate(source, 0)
            self._scheduler.move(source, target)
        return self._scheduler.decodes()  # a prompt may have come between them

    # Computing

    def _decode(self, decoding: list[Sequence]) -> None:
        fillers = self._fillers(decoding)
        n_tokens = self._scheduler.run_lengths(decoding)
        batch = decode_batch(decoding, n_tokens, fillers)
        started = time.perf_counter()
        rows = self._run(batch, decoding)
        for slot, n_held in fillers:
            if rows is None or not self._memory.truncate(slot, n_held):
                self._memory.truncate(slot, 0)
                self._cache.forget(slot)
        if rows is None:
            return
        seconds = time.perf_counter() - started
        self._scheduler.budget.observe_decode(seconds)
        self._counters.decode_steps_total += 1
        self._counters.decode_seconds_total += seconds
        self._counters.decode_batch_size.observe(len(decoding))
        n_prompt = sum(sequence.status is Status.PREFILL for sequence in decoding)
        self._counters.prompt_tokens_computed_total += n_prompt
        self._advance(decoding, n_tokens, rows)

    def _advance(self, sequences: list[Sequence], n_tokens: list[int], rows: Floats) -> None:
        """So many tokens of each were computed; whose last one was among them gets the next."""
        row = 0
        for sequence, n in zip(sequences, n_tokens, strict=True):
            n_rows = n if sequence.reads_prompt else int(sequence.n_to_compute == n)
            own, row = rows[row : row + n_rows], row + n_rows
            if sequence.reads_prompt and not self._read_prompt(sequence, own):
                continue
            sequence.n_computed += n
            if sequence.status is Status.PREFILL:
                self._tell_progress(sequence)
            if sequence.n_to_compute == 0:
                self._start(sequence)
                if sequence.n_limit > sequence.n_prompt:
                    self._sample(sequence, own[-1])
                else:
                    self._finish(sequence, "length")
            elif sequence.n_computed in sequence.checkpoints:
                sequence.checkpoints.discard(sequence.n_computed)
                computed = sequence.tokens[: sequence.n_computed]
                self._memory.save(sequence.slot, computed, sequence.cache_salt)

    def _fillers(self, decoding: list[Sequence]) -> list[tuple[int, int]]:
        if self._memory.bounded or not self._memory.can_drop_last:
            return []
        n_ctx = self._backend.info.n_ctx
        return [idle for idle in self._scheduler.fillers(decoding) if idle[1] < n_ctx]

    def _compute_prompts(self, n_decoding: int) -> None:
        embedder = self._embedder
        has_embeddings = embedder is not None and not embedder.idle
        chunks = self._scheduler.chunks(n_decoding)
        while self._make_room(sum(chunk.n_tokens for chunk in chunks)):
            chunks = self._scheduler.chunks(n_decoding)
        # Prompts and embeddings take turns within one budget.
        if embedder is not None and has_embeddings and (self._embed_turn or not chunks):
            self._embed_turn = False
            self._embed(embedder, self._scheduler.budget.tokens(n_decoding))
        elif chunks:
            self._embed_turn = True
            self._prefill(self._within_rows(chunks))

    def _within_rows(self, chunks: list[Chunk]) -> list[Chunk]:
        """So that prompts whose logprobs are wanted make no more logits than memory is for."""
        left, within = self._n_rows_max, []
        for chunk in chunks:
            if not chunk.sequence.reads_prompt:
                within.append(chunk)
            elif left > 0:
                within.append(Chunk(chunk.sequence, min(chunk.n_tokens, left)))
                left -= within[-1].n_tokens
        return within

    def _prefill(self, chunks: list[Chunk]) -> None:
        batch = prompt_batch(chunks)
        sequences = [chunk.sequence for chunk in chunks]
        started = time.perf_counter()
        rows = self._run(batch, sequences)
        if rows is None:
            return
        seconds = time.perf_counter() - started
        self._scheduler.budget.observe_prefill(len(batch), seconds)
        self._counters.prefill_steps_total += 1
        self._counters.prefill_seconds_total += seconds
        self._counters.prompt_tokens_computed_total += len(batch)
        self._advance(sequences, [chunk.n_tokens for chunk in chunks], rows)

    def _run(self, batch: Batch, sequences: Seq[Sequence]) -> Floats | None:
        """Decode. None where that failed: then the sequences in the batch, and only they, have
        failed, or try again in the next step."""
        try:
            rows = self._memory.decode(batch)
        except DecodeFailed as failure:
            if self._can_retry(failure.code, sequences):
                return None
            logger.error("a step of %d tokens failed: %s", len(batch), failure)
            error = StepFailed(str(failure))
        except Exception as failure:
            logger.exception("a step of %d tokens failed", len(batch))
            error = StepFailed(repr(failure))
        else:
            self._n_retries = 0
            return rows
        for sequence in sequences:
            self._memory.truncate(sequence.slot, 0)
            self._fail(sequence, error, valid=False)
        return None

    def _can_retry(self, code: int, sequences: Seq[Sequence]) -> bool:
        """Whether the sequences of a failed step are in a state to try again."""
        self._n_retries += 1
        if self._n_retries > MAX_RETRIES:
            self._n_retries = 0
            return False
        if code == ABORTED:
            self._roll_back(sequences)
            return True
        return code == NO_PLACE and (self._memory.evict() or self._preempt())

    def _roll_back(self, sequences: Seq[Sequence]) -> None:
        """To before the step; what cannot be cut back is computed again from its beginning."""
        for sequence in sequences:
            if not self._memory.truncate(sequence.slot, sequence.n_computed):
                sequence.n_computed = 0
                sequence.status = Status.PREFILL

    def _embed(self, embedder: Embedder, n_tokens: int) -> None:
        try:
            self._counters.embedding_tokens_total += embedder.step(n_tokens)
        except Exception as failure:
            logger.exception("an embedding step failed")
            embedder.fail(StepFailed(str(failure)))

    # Results

    def _start(self, sequence: Sequence) -> None:
        """Its prompt is computed."""
        if sequence.status is Status.PREFILL and sequence.n_completion == 0:
            trail = sequence.trail
            if trail is not None and trail.prompt:
                self._outbox.append((sequence.sink, PromptLogprobs(tuple(trail.prompt))))
        sequence.status = Status.DECODE

    def _sample(self, sequence: Sequence, row: Floats) -> None:
        sampler = sequence.sampler
        try:
            if sequence.trail is not None:
                self._logprobs.hold(row)
            token = sampler.sample(row)
            self._observe_token(sequence)
            reason = self._accept(sequence, token)
            # A forced token has no logits: where those are asked for, each is computed.
            forced = sampler.forced() if reason is None and sequence.trail is None else ()
            for token in forced:
                sampler.accept(token)
                self._counters.completion_tokens_forced_total += 1
                reason = self._accept(sequence, token)
                if reason is not None:
                    break
        except EngineError as error:
            logger.error("sampling failed: %s", error)
            self._fail(sequence, error)
        except Exception as failure:
            logger.exception("sampling failed")
            self._fail(sequence, StepFailed(repr(failure)))
        else:
            if reason is not None:
                self._finish(sequence, reason)

    def _accept(self, sequence: Sequence, token: int) -> FinishReason | None:
        """Send what the token releases. Why the generation ends with it, if so."""
        vocabulary, text_so_far = self._backend.vocabulary, sequence.detokenizer
        n_decoded = text_so_far.n_decoded
        ends = sequence.ends(token, vocabulary.is_eog(token))
        piece = vocabulary.piece(token)
        if token in sequence.request.visible_tokens:
            piece = piece or vocabulary.name(token).encode()
        text, reason = sequence.accept(token, piece, ends)
        if sequence.sampler.done and reason != "stop":
            # Complete: that the tokens are used up, too, cut nothing off.
            text, reason = text + text_so_far.finish(), "stop"
        logprobs = self._logprobs.read_token(
            sequence.trail, token, None if ends else n_decoded, text_so_far, reason
        )
        self._counters.completion_tokens_total += 1
        if text or logprobs:
            delta = TextDelta(text, logprobs, sequence.timings(), sequence.take_untold())
            self._outbox.append((sequence.sink, delta))
        return reason

    def _read_prompt(self, sequence: Sequence, rows: Floats) -> bool:
        trail = sequence.trail
        assert trail is not None, "whoever reads its prompt has a trail"
        try:
            prompt = sequence.request.prompt_tokens
            self._logprobs.read_prompt(trail, prompt, sequence.n_computed, rows)
        except Exception as failure:
            logger.exception("reading the logprobs of a prompt failed")
            self._fail(sequence, StepFailed(repr(failure)))
            return False
        return True

    def _tell_progress(self, sequence: Sequence) -> None:
        if sequence.request.progress and sequence.n_completion == 0:
            seconds = time.monotonic() - (sequence.admitted_s or 0.0)
            progress = PromptProgress(
                sequence.n_prompt, sequence.n_cached, sequence.n_computed, seconds
            )
            self._outbox.append((sequence.sink, progress))

    def _observe_token(self, sequence: Sequence) -> None:
        now = time.monotonic()
        if sequence.token_s is None:
            sequence.first_token_s = now
            self._counters.first_token_seconds.observe(now - sequence.submitted_s)
        else:
            self._counters.inter_token_seconds.observe(now - sequence.token_s)
        sequence.token_s = now

    def _finish(self, sequence: Sequence, reason: Any) -> None:
        self._counters.requests_finished_total += 1
        self._counters.request_seconds.observe(time.monotonic() - sequence.submitted_s)
        logprob = None if sequence.trail is None else sequence.trail.total
        finished = Finished(reason, sequence.usage(), logprob, sequence.timings())
        self._outbox.append((sequence.sink, finished))
        self._end(sequence)

    def _fail(self, sequence: Sequence, error: EngineError, *, valid: bool = True) -> None:
        self._counters.requests_failed_total += 1
        self._outbox.append((sequence.sink, Failed(error)))
        self._end(sequence, valid=valid)

    def _end(self, sequence: Sequence, *, valid: bool = True) -> None:
        del self._by_sink[id(sequence.sink)]
        self._end_fetch(sequence)
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
