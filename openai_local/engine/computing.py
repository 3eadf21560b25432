"""Decodes of running sequences and of prompts, tried again where that helps. Engine thread only.

What comes of the logits is another room's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as Seq

from openai_local.engine.admission import Admission
from openai_local.engine.backend import ABORTED, NO_PLACE, Batch, DecodeFailed, Floats
from openai_local.engine.batches import decode_batch, prompt_batch
from openai_local.engine.deliveries import Deliveries
from openai_local.engine.errors import StepFailed
from openai_local.engine.kv_memory import KvMemory
from openai_local.engine.logprobs import n_rows_at_once
from openai_local.engine.messages import ModelInfo
from openai_local.engine.metrics import EngineMetrics
from openai_local.engine.results import Results
from openai_local.engine.scheduler import Chunk, Scheduler
from openai_local.engine.sequence import Sequence, Status

logger = logging.getLogger(__name__)

# So many steps in a row that found no place, or were aborted, are tried again.
MAX_RETRIES = 20


class Computing:
    """Has the backend compute what the scheduler picks."""

    def __init__(
        self,
        info: ModelInfo,
        scheduler: Scheduler,
        memory: KvMemory,
        admission: Admission,
        deliveries: Deliveries,
        results: Results,
        counters: EngineMetrics,
    ) -> None:
        self._n_ctx = info.n_ctx
        self._n_rows_max = n_rows_at_once(info.n_vocab)
        self._scheduler = scheduler
        self._memory = memory
        self._admission = admission
        self._deliveries = deliveries
        self._results = results
        self._counters = counters
        self._n_retries = 0

    def decode(self) -> int:
        """The next token of every running sequence; returns how many generate."""
        decoding = self._scheduler.decodes()
        # With fewer sequences, runs of forced tokens are longer.
        while self._admission.make_room(sum(self._scheduler.run_lengths(decoding))):
            decoding = self._scheduler.decodes()
        n_generating = sum(sequence.status is Status.DECODE for sequence in decoding)
        if decoding:
            self._decode(self._admission.without_gaps(decoding))
        return n_generating

    def prefill(self, n_decoding: int) -> None:
        """Prompt tokens, beside ``n_decoding`` sequences that got theirs."""
        chunks = self._scheduler.chunks(n_decoding)
        while self._admission.make_room(sum(chunk.n_tokens for chunk in chunks)):
            chunks = self._scheduler.chunks(n_decoding)
        if chunks:
            self._prefill(self._within_rows(chunks))

    def _decode(self, decoding: list[Sequence]) -> None:
        fillers = self._fillers(decoding)
        n_tokens = self._scheduler.run_lengths(decoding)
        batch = decode_batch(decoding, n_tokens, fillers)
        started = time.perf_counter()
        rows = self._run(batch, decoding)
        for slot, n_held in fillers:
            if rows is None or not self._memory.truncate(slot, n_held):
                self._memory.truncate(slot, 0)
                self._memory.cache.forget(slot)
        if rows is None:
            return
        seconds = time.perf_counter() - started
        self._scheduler.budget.observe_decode(seconds)
        self._counters.decode_steps_total += 1
        self._counters.decode_seconds_total += seconds
        self._counters.decode_batch_size.observe(len(decoding))
        n_prompt = sum(sequence.status is Status.PREFILL for sequence in decoding)
        self._counters.prompt_tokens_computed_total += n_prompt
        self._results.take(decoding, n_tokens, rows)

    def _fillers(self, decoding: list[Sequence]) -> list[tuple[int, int]]:
        if self._memory.bounded or not self._memory.can_drop_last:
            return []
        return [idle for idle in self._scheduler.fillers(decoding) if idle[1] < self._n_ctx]

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
        self._results.take(sequences, [chunk.n_tokens for chunk in chunks], rows)

    def _run(self, batch: Batch, sequences: Seq[Sequence]) -> Floats | None:
        """Decode. None where that failed: then the sequences in the batch, and only they, have
        failed, or try again in the next step."""
        try:
            self._memory.start(batch)
        except Exception as failure:
            self._failed(failure, len(batch), sequences)
            return None
        if self._memory.asynchronous:
            self._deliveries.hand_over()  # what the last decode made
        try:
            rows = self._memory.rows()
        except Exception as failure:
            self._failed(failure, len(batch), sequences)
            return None
        self._n_retries = 0
        return rows

    def _failed(self, failure: Exception, n_tokens: int, sequences: Seq[Sequence]) -> None:
        if isinstance(failure, DecodeFailed):
            if self._can_retry(failure.code, sequences):
                return
            logger.error("a step of %d tokens failed: %s", n_tokens, failure)
            error = StepFailed(str(failure))
        else:
            logger.error("a step of %d tokens failed", n_tokens, exc_info=failure)
            error = StepFailed(repr(failure))
        for sequence in sequences:
            self._memory.truncate(sequence.slot, 0)
            self._deliveries.fail(sequence, error, valid=False)

    def _can_retry(self, code: int, sequences: Seq[Sequence]) -> bool:
        """Whether the sequences of a failed step are in a state to try again."""
        self._n_retries += 1
        if self._n_retries > MAX_RETRIES:
            self._n_retries = 0
            return False
        if code == ABORTED:
            self._roll_back(sequences)
            return True
        return code == NO_PLACE and self._admission.give_up()

    def _roll_back(self, sequences: Seq[Sequence]) -> None:
        """To before the step; what cannot be cut back is computed again from its beginning."""
        for sequence in sequences:
            if not self._memory.truncate(sequence.slot, sequence.n_computed):
                sequence.n_computed = 0
                sequence.status = Status.PREFILL
