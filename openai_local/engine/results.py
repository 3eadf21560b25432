"""Rows of logits to tokens, text and events, sequence by sequence. Engine thread only.

Plans no decode, and knows slots only to have their states saved.
"""

from __future__ import annotations

import logging
import time

from openai_local.engine.backend import Floats, Vocabulary
from openai_local.engine.deliveries import Deliveries
from openai_local.engine.errors import EngineError, StepFailed
from openai_local.engine.kv_memory import KvMemory
from openai_local.engine.logprobs import LogprobReader
from openai_local.engine.messages import FinishReason, PromptLogprobs, TextDelta
from openai_local.engine.metrics import EngineMetrics
from openai_local.engine.sequence import Sequence, Status

logger = logging.getLogger(__name__)


class Results:
    """Takes what a decode made of each sequence."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        memory: KvMemory,
        deliveries: Deliveries,
        counters: EngineMetrics,
    ) -> None:
        self._vocabulary = vocabulary
        self._memory = memory
        self._deliveries = deliveries
        self._counters = counters
        self._logprobs = LogprobReader(vocabulary)

    def take(self, sequences: list[Sequence], n_tokens: list[int], rows: Floats) -> None:
        """So many tokens of each were computed; whose last one was among them gets the next."""
        row = 0
        for sequence, n in zip(sequences, n_tokens, strict=True):
            n_rows = n if sequence.reads_prompt else int(sequence.n_to_compute == n)
            own, row = rows[row : row + n_rows], row + n_rows
            first, sequence.n_computed = sequence.n_computed, sequence.n_computed + n
            if sequence.reads_prompt and not self._read_prompt(sequence, first, own):
                continue
            if sequence.status is Status.PREFILL:
                self._deliveries.tell_progress(sequence)
            if sequence.n_computed in sequence.checkpoints:
                sequence.checkpoints.discard(sequence.n_computed)
                computed = sequence.tokens[: sequence.n_computed]
                self._memory.save(sequence.slot, computed, sequence.cache_salt)
            if sequence.n_to_compute == 0:
                self._start(sequence)
                if sequence.n_limit > sequence.n_prompt:
                    self._sample(sequence, own[-1])
                else:
                    self._deliveries.finish(sequence, "length")

    def _start(self, sequence: Sequence) -> None:
        """Its prompt is computed."""
        if sequence.status is Status.PREFILL and sequence.n_completion == 0:
            trail = sequence.trail
            if trail is not None and trail.prompt:
                self._deliveries.send(sequence, PromptLogprobs(tuple(trail.prompt)))
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
            self._deliveries.fail(sequence, error)
        except Exception as failure:
            logger.exception("sampling failed")
            self._deliveries.fail(sequence, StepFailed(repr(failure)))
        else:
            if reason is not None:
                self._deliveries.finish(sequence, reason)

    def _accept(self, sequence: Sequence, token: int) -> FinishReason | None:
        """Send what the token releases. Why the generation ends with it, if so."""
        vocabulary, text_so_far = self._vocabulary, sequence.detokenizer
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
            told = TextDelta(text, logprobs, sequence.timings(), sequence.take_untold())
            self._deliveries.send(sequence, told)
        return reason

    def _read_prompt(self, sequence: Sequence, first: int, rows: Floats) -> bool:
        trail = sequence.trail
        assert trail is not None, "whoever reads its prompt has a trail"
        try:
            prompt = sequence.request.prompt_tokens
            self._logprobs.read_prompt(trail, prompt, first, rows)
        except Exception as failure:
            logger.exception("reading the logprobs of a prompt failed")
            self._deliveries.fail(sequence, StepFailed(repr(failure)))
            return False
        return True

    def _observe_token(self, sequence: Sequence) -> None:
        now = time.monotonic()
        if sequence.token_s is None:
            sequence.first_token_s = now
            self._counters.first_token_seconds.observe(now - sequence.submitted_s)
        else:
            self._counters.inter_token_seconds.observe(now - sequence.token_s)
        sequence.token_s = now
