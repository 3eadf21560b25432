"""Picks the sequences and tokens of the next decodes. Pure policy: no threads, no logits.

Every running sequence decodes one token a step; then prompts are computed as far as the prefill
budget goes, the oldest and the shortest first in turn.
"""

from __future__ import annotations

from dataclasses import dataclass

from openai_local.engine.cache.prefix_cache import Placement, PrefixCache
from openai_local.engine.sequence import Sequence, Status
from openai_local.engine.waiting import WaitingQueue

# Even for a burst, with nobody streaming or few, a step ends in time for arrivals.
MAX_CHUNK_S = 0.5
# llama.cpp works in tiles of this many tokens: 64 take 98 ms where 68 take 115 (SmolLM2, 2 cores).
TILE = 64
# Where a tile takes longer than this, as with a large model on a CPU, chunks are smaller.
MIN_CHUNK_S = 0.25
MIN_CHUNK_TOKENS = 16
# A step may take its longest where that brings one new stream to this many or fewer.
BURST = 2


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
        self.token_s: float | None = None  # of a prompt; not known before the first chunk
        self._decode_s = 0.0

    def observe_prefill(self, n_tokens: int, seconds: float) -> None:
        # Shorter ones than are ever cut say more of a call's cost than of the speed.
        if n_tokens >= min(MIN_CHUNK_TOKENS, self.n_batch) and seconds > 0:
            token_s = seconds / n_tokens
            before = token_s if self.token_s is None else self.token_s
            self.token_s = before + 0.3 * (token_s - before)

    def observe_decode(self, seconds: float) -> None:
        self._decode_s += 0.3 * (seconds - self._decode_s)

    def tokens(self, n_decoding: int) -> int:
        """The budget of a step in which ``n_decoding`` sequences got their token."""
        if n_decoding == 0:
            return self.most
        # No less than the decode takes: smaller chunks cost more than they give.
        seconds = max(self._target_itl_s - self._decode_s, self._decode_s)
        return self._bounded(seconds)

    @property
    def most(self) -> int:
        """What a step may take when it delays nobody, or few for the sake of many."""
        return self._bounded(MAX_CHUNK_S)

    @property
    def whole(self) -> int:
        """Prompts up to this long are not cut: a call has a cost of its own."""
        return min(max(min(self._fits(MIN_CHUNK_S), 2 * TILE), MIN_CHUNK_TOKENS), self.n_batch)

    def _bounded(self, seconds: float) -> int:
        n = self._fits(seconds)
        n = n // TILE * TILE if n > TILE else max(n, min(self.whole, TILE))
        return min(n, self.n_batch)

    def _fits(self, seconds: float) -> int:
        return TILE if self.token_s is None else int(seconds / self.token_s)


class Scheduler:
    """The waiting and the running sequences of one model. Engine thread only."""

    def __init__(self, cache: PrefixCache, budget: PrefillBudget, n_parallel: int) -> None:
        self._cache = cache
        self._n_parallel = n_parallel
        self._waiting = WaitingQueue()
        self._running: list[Sequence] = []  # in arrival order
        self._shortest_first = True
        self.budget = budget

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do now: what waits, waits for the disk."""
        return not self._running and all(s.fetching for s in self._waiting)

    def sequences(self) -> list[Sequence]:
        return [*self._running, *self._waiting]

    def has(self, sequence: Sequence) -> bool:
        """Whether it was submitted and has not been removed."""
        return sequence in self._waiting or sequence.status in (Status.PREFILL, Status.DECODE)

    def submitted_before(self, time_s: float) -> list[Sequence]:
        """Those that were submitted before ``time_s`` of the monotonic clock."""
        running = [s for s in self._running if s.submitted_s < time_s]
        return running + self._waiting.submitted_before(time_s)

    def submit(self, sequence: Sequence) -> None:
        self._waiting.push(sequence)

    def next(self) -> Sequence | None:
        """The waiting sequence that is to be admitted, if a place is free for it.

        One whose prefix another sequence is computing waits for that, and is forked from it.
        """
        if (
            not len(self._waiting)
            or len(self._running) >= self._n_parallel
            or not self._cache.can_acquire()
        ):
            return None
        candidates = self._waiting.candidates()
        return next((s for s in candidates if not self._is_deferred(s)), None)

    def admit(self, sequence: Sequence) -> Placement:
        """Move a waiting sequence into a slot. The caller does the placement's steps.

        Afterwards the sequence's ``slot`` is set; ``n_computed`` is for the caller to set, since
        the backend may not be able to keep what the cache planned.
        """
        self._waiting.take(sequence)
        placement = self._cache.acquire(sequence)
        sequence.slot = placement.slot
        sequence.status = Status.PREFILL
        self._running.append(sequence)
        return placement

    def victim(self) -> Sequence | None:
        """Who gives up its cells when they run out: of the lowest priority, the youngest.

        The last one never does; a sequence alone always has room.
        """
        if len(self._running) < 2:
            return None
        return min(self._running, key=lambda s: (s.request.priority, -s.submitted_s))

    def preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue; what was computed stays in the slot as an idle prefix."""
        self._running.remove(sequence)
        self._cache.release(sequence.slot, sequence.tokens[: sequence.n_computed])
        sequence.slot, sequence.n_computed = -1, 0
        sequence.checkpoints.clear()
        sequence.status = Status.WAITING
        self._waiting.push_first(sequence)

    @property
    def has_prompts(self) -> bool:
        """Whether a running sequence's prompt is not computed yet."""
        return any(s.status is Status.PREFILL for s in self._running)

    @property
    def n_reserved(self) -> int:
        """What running sequences are still to compute before the next token is sampled: prompts,
        and runs of forced tokens."""
        return sum(s.n_to_compute for s in self._running)

    def _is_deferred(self, sequence: Sequence) -> bool:
        """Whether the disk or another sequence will soon have what this one would compute."""
        if sequence.fetching:
            return True
        if sequence.upcoming is None or not self._cache.is_pending(sequence.upcoming):
            sequence.upcoming = self._cache.upcoming(sequence)
        return sequence.upcoming is not None

    def remove(self, sequence: Sequence, *, valid: bool = True) -> None:
        """A sequence ended. Its slot's memory stays for reuse if it is ``valid``."""
        if sequence.status is Status.WAITING:
            self._waiting.remove(sequence)
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
        """The sequences that decode now, in slot order, as llama.cpp wants them.

        Those that generate, and those between them whose prompt is being computed: with a token
        of theirs the slots have no gap, and a gap costs more (28 of 32: 113 ms, without gaps 76).
        """
        generating = [s.slot for s in self._running if s.status is Status.DECODE]
        if not generating:
            return []
        lowest, highest = min(generating), max(generating)
        decoding = [s for s in self._running if lowest <= s.slot <= highest]
        decoding.sort(key=lambda s: s.slot)
        return decoding

    def run_lengths(self, decoding: list[Sequence]) -> list[int]:
        """How many tokens each of ``decoding`` computes now: more than one where a constraint
        forced several, and that costs less than a step each.

        llama.cpp computes apart what some slots have more than others, which takes as long as a
        decode of all (8 streams: 249 tokens/s, one by one 263), but not what shares a pool (294
        and 214). All together are no more than a tile, for the sake of the others.
        """
        longest = max(1, min(TILE, self.budget.n_batch) // max(1, len(decoding)))
        if not self._cache.unified and len(decoding) > 1:
            longest = 1
        # What another waits for is saved at exactly that token.
        return [
            min(s.n_to_checkpoint, longest) if s.status is Status.DECODE else 1 for s in decoding
        ]

    def fillers(self, decoding: list[Sequence]) -> list[tuple[int, int]]:
        """Idle slots in the gaps of ``decoding``, each with the tokens it holds.

        A token in each costs less than the gaps, as long as they are few.
        """
        if not decoding:
            return []
        first, last = decoding[0].slot, decoding[-1].slot
        n_gaps = last - first + 1 - len(decoding)
        if not 0 < n_gaps <= max(1, len(decoding) // 4):
            return []
        idle = set(range(first, last + 1)) - {s.slot for s in decoding}
        return [(slot, self._cache.n_held(slot)) for slot in sorted(idle)]

    def chunks(self, n_decoding: int) -> list[Chunk]:
        """The prompt tokens to compute now, in slot order."""
        prompts = self._prompts()
        left = self._budget_of(prompts, n_decoding)
        chunks: list[Chunk] = []
        for sequence in prompts:
            n = sequence.n_to_checkpoint
            if n > left:
                # llama.cpp computes sequences of one call in equal pieces, so scraps cost dearly.
                if chunks and left < TILE:
                    break
                if chunks or n > self.budget.whole:
                    n = left
            chunks.append(Chunk(sequence, n))
            left -= n
            if left <= 0:
                break
        chunks.sort(key=lambda chunk: chunk.sequence.slot)
        return chunks

    def _prompts(self) -> list[Sequence]:
        """The prompts that are being computed, the most urgent first.

        In turn by arrival, so that none starves, and by priority and what is left of them, so that
        short ones are not stuck behind long ones: each order has half of the time.
        """
        prompts = [s for s in self._running if s.status is Status.PREFILL]
        self._shortest_first = not self._shortest_first
        if self._shortest_first:
            prompts.sort(key=lambda s: (-s.request.priority, s.n_to_compute))
        return prompts

    def _budget_of(self, prompts: list[Sequence], n_decoding: int) -> int:
        """More than the target allows where it brings many new streams to few.

        A decode of few sequences takes nearly as long as one of many, and a burst of prompts that
        is computed in small chunks between such decodes takes much longer in all.
        """
        most = self.budget.most
        n_new, left = 0, most
        for sequence in prompts:
            left -= sequence.n_to_compute
            if left < 0:
                break
            n_new += 1
        return most if BURST * n_new >= n_decoding else self.budget.tokens(n_decoding)
