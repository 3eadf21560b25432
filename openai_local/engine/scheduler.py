"""Picks the sequences and tokens of the next decodes. Pure policy: no threads, no logits.

Every running sequence decodes one token a step; then prompts are computed, in arrival order, as
far as the prefill budget goes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from openai_local.engine.prefix_cache import Placement, PrefixCache
from openai_local.engine.sequence import Sequence, Status

# With nobody streaming, a prompt's chunk still ends in time for arrivals and cancellations.
MAX_CHUNK_S = 0.5
# Smaller chunks cost more throughput than they save latency: a call has a cost of its own.
MIN_CHUNK_TOKENS = 64
# A rest this small goes with the chunk before it: a decode call has a cost of its own.
CHUNK_TAIL_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next ``n_tokens`` prompt tokens of a sequence."""

    sequence: Sequence
    n_tokens: int


class PrefillBudget:
    """How many prompt tokens fit into a step, from the measured speed of both kinds of decode."""

    def __init__(self, n_batch: int, target_itl_s: float) -> None:
        self.n_batch = n_batch
        self._target_itl_s = target_itl_s
        self._prefill_tokens_per_s = 500.0
        self._decode_s = 0.0

    def observe_prefill(self, n_tokens: int, seconds: float) -> None:
        # Short chunks say more of a call's cost than of the speed.
        if n_tokens >= MIN_CHUNK_TOKENS // 2 and seconds > 0:
            speed = n_tokens / seconds
            self._prefill_tokens_per_s += 0.3 * (speed - self._prefill_tokens_per_s)

    def observe_decode(self, seconds: float) -> None:
        self._decode_s += 0.3 * (seconds - self._decode_s)

    def tokens(self, n_decoding: int, n_prompts: int = 1) -> int:
        """The budget of a step in which ``n_decoding`` sequences got their token.

        The target holds for streams that an arriving prompt delays. Where many times more
        ``n_prompts`` wait than streams run, as when a burst arrives, it gives way to them: a
        decode of few sequences costs nearly as much as one of many.
        """
        if n_decoding == 0:
            seconds = MAX_CHUNK_S
        else:
            # No less than the decode takes: smaller chunks cost more than they give.
            seconds = max(self._target_itl_s - self._decode_s, self._decode_s)
            seconds = min(seconds * max(n_prompts / n_decoding, 1.0), MAX_CHUNK_S)
        n = int(seconds * self._prefill_tokens_per_s)
        return max(MIN_CHUNK_TOKENS, min(n, self.n_batch))


class Scheduler:
    """The waiting and the running sequences of one model. Engine thread only."""

    def __init__(self, cache: PrefixCache, budget: PrefillBudget) -> None:
        self._cache = cache
        self._waiting: OrderedDict[Sequence, None] = OrderedDict()  # in arrival order
        self._running: list[Sequence] = []  # in arrival order
        self.budget = budget

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    def sequences(self) -> list[Sequence]:
        return [*self._running, *self._waiting]

    def has(self, sequence: Sequence) -> bool:
        """Whether it was submitted and has not been removed."""
        return sequence in self._waiting or sequence.status in (Status.PREFILL, Status.DECODE)

    def submit(self, sequence: Sequence) -> None:
        self._waiting[sequence] = None

    def admit(self) -> tuple[Sequence, Placement] | None:
        """Move the next waiting sequence into a slot, if one is free. The caller does the copies.

        Afterwards the sequence's ``slot`` is set; ``n_computed`` is for the caller to set, since
        the backend may not be able to keep what the cache planned.
        """
        if not self._waiting or not self._cache.can_acquire():
            return None
        sequence, _ = self._waiting.popitem(last=False)
        placement = self._cache.acquire(sequence.tokens)
        sequence.slot = placement.slot
        sequence.status = Status.PREFILL
        self._running.append(sequence)
        return sequence, placement

    def remove(self, sequence: Sequence, *, valid: bool = True) -> None:
        """A sequence ended. Its slot's memory stays for reuse if it is ``valid``."""
        if sequence.status is Status.WAITING:
            del self._waiting[sequence]
        elif sequence.status is not Status.ENDED:
            self._running.remove(sequence)
            computed = sequence.tokens[: sequence.n_computed] if valid else ()
            self._cache.release(sequence.slot, computed)
        sequence.status = Status.ENDED

    def move(self, source: int, target: int) -> None:
        """The sequence in slot ``source`` is now in ``target``."""
        for sequence in self._running:
            if sequence.slot == source:
                sequence.slot = target

    def decodes(self) -> list[Sequence]:
        """The sequences that get a token now, in slot order, as llama.cpp wants them."""
        decoding = [s for s in self._running if s.status is Status.DECODE]
        decoding.sort(key=lambda s: s.slot)
        return decoding

    def chunks(self, n_decoding: int) -> list[Chunk]:
        """The prompt tokens to compute now, in slot order."""
        n_prompts = sum(s.status is Status.PREFILL for s in self._running)
        left = self.budget.tokens(n_decoding, n_prompts)
        chunks: list[Chunk] = []
        for sequence in self._running:
            if left <= 0:
                break
            if sequence.status is not Status.PREFILL:
                continue
            n = sequence.n_to_prefill
            if n > left + CHUNK_TAIL_TOKENS:
                n = left
            n = min(n, self.budget.n_batch - sum(chunk.n_tokens for chunk in chunks))
            if n <= 0:
                break
            chunks.append(Chunk(sequence, n))
            left -= n
        chunks.sort(key=lambda chunk: chunk.sequence.slot)
        return chunks
