"""Which tokens live in which slot, and where a new sequence goes. Pure: it only plans copies.

Running sequences are kept in the lowest slots, since llama.cpp splits a batch whose slots have
gaps; what finished sequences left behind is kept, where there is room, in the slots above. A new
sequence starts from the longest prefix that any slot holds, a running one's included.

    slot   0      1      2      3      4
          [run]  [run]  [idle] [run]  [idle: an older prompt]
                          ^ the next admission goes here, and what is in it is parked, or lost
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# A copy moves a slot's whole buffer; below this many tokens computing again is as fast.
MIN_COPY_TOKENS = 32


class Owner(Protocol):
    """A sequence in a slot, which holds the first ``n_computed`` of its ``tokens``.

    Nothing is reused between owners of different ``cache_salt``.
    """

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def n_computed(self) -> int: ...

    @property
    def cache_salt(self) -> str: ...

    @property
    def slot(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Placement:
    """Do ``copies`` (source, target) in order; then ``slot`` holds ``n_reused`` valid tokens."""

    slot: int
    n_reused: int
    copies: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Upcoming:
    """A prefix of ``n_tokens`` that ``owner`` is computing."""

    owner: Owner
    n_tokens: int


class _Slot:
    __slots__ = ("owner", "salt", "tokens", "used_at")

    def __init__(self) -> None:
        self.owner: Owner | None = None
        self.tokens: Sequence[int] = ()  # of an idle slot
        self.salt = ""
        self.used_at = 0

    @property
    def running(self) -> bool:
        return self.owner is not None

    def match(self, prompt: Sequence[int], salt: str) -> int:
        """How many tokens of ``prompt`` it holds already.

        The last prompt token is left out: its logits start the answer.
        """
        if salt != self.salt:
            return 0
        if self.owner is None:
            return _common_prefix(self.tokens, prompt, len(prompt) - 1)
        limit = min(self.owner.n_computed, len(prompt) - 1)
        return _common_prefix(self.owner.tokens, prompt, limit)


class PrefixCache:
    """The engine tells what it does with each slot; the cache tells where to put things."""

    def __init__(self, n_slots: int, can_drop: bool = True) -> None:
        """``can_drop``: whether the end of a slot can be dropped, as a fork of a part needs."""
        self._can_drop = can_drop
        self._slots = [_Slot() for _ in range(n_slots)]
        self._clock = 0

    @property
    def n_running(self) -> int:
        return sum(slot.running for slot in self._slots)

    def can_acquire(self) -> bool:
        return any(not slot.running for slot in self._slots)

    def upcoming(self, sequence: Owner) -> Upcoming | None:
        """What another sequence is computing of this one's prompt, if waiting for it pays."""
        prompt, best = sequence.tokens, None
        if not self._can_drop:
            return None
        n_best = self._longest_match(sequence)[1] + MIN_COPY_TOKENS
        for slot in self._slots:
            owner = slot.owner
            if owner is not None and slot.salt == sequence.cache_salt:
                n = _common_prefix(owner.tokens, prompt, len(prompt) - 1)
                if n >= n_best:
                    best, n_best = Upcoming(owner, n), n + 1
        return best

    def is_pending(self, upcoming: Upcoming) -> bool:
        """Whether it is still to be waited for."""
        owner = upcoming.owner
        return self._slots[owner.slot].owner is owner and owner.n_computed < upcoming.n_tokens

    def acquire(self, sequence: Owner) -> Placement:
        """Give the lowest free slot to a sequence, with the longest prefix that can be had."""
        prompt, salt = sequence.tokens, sequence.cache_salt
        target = next(i for i, slot in enumerate(self._slots) if not slot.running)
        source, n_match = self._longest_match(sequence)
        n_here = self._slots[target].match(prompt, salt)
        if source == target or n_match < max(MIN_COPY_TOKENS, n_here + 1):
            source, n_match = target, n_here
        copies: list[tuple[int, int]] = []
        # A target that the prompt goes on from loses nothing worth keeping.
        if source != target or n_match < len(self._slots[target].tokens) // 2:
            copies += self._park(target, keep=source)
        if source != target:
            copies.append((source, target))
        self._occupy(target, sequence)
        return Placement(target, n_match, tuple(copies))

    def release(self, slot: int, tokens: Sequence[int]) -> None:
        """A sequence left; its slot still holds ``tokens``."""
        self._slots[slot].owner = None
        self._slots[slot].tokens = tuple(tokens)
        self._touch(self._slots[slot])

    def n_held(self, slot: int) -> int:
        """How many tokens an idle slot holds."""
        assert not self._slots[slot].running, "the slot is idle"
        return len(self._slots[slot].tokens)

    def forget(self, slot: int) -> None:
        """An idle slot's memory was lost."""
        self._slots[slot].tokens = ()

    def compact(self) -> tuple[tuple[int, int], tuple[tuple[int, int], ...]] | None:
        """Close the lowest gap with the highest running slot.

        Returns ((source, target), copies to do in order, the move included), or None.
        """
        running = [i for i, slot in enumerate(self._slots) if slot.running]
        if not running or running[-1] == len(running) - 1:
            return None
        source = running[-1]
        target = next(i for i, slot in enumerate(self._slots) if not slot.running)
        copies = [*self._park(target, keep=source), (source, target)]
        owner = self._slots[source].owner
        assert owner is not None, "the highest running slot has an owner"
        self._occupy(target, owner)
        self._slots[source].owner = None
        self._slots[source].tokens = ()
        return (source, target), tuple(copies)

    def _occupy(self, target: int, owner: Owner) -> None:
        slot = self._slots[target]
        slot.owner = owner
        slot.salt = owner.cache_salt
        slot.tokens = ()
        self._touch(slot)

    def _longest_match(self, sequence: Owner) -> tuple[int, int]:
        best, n_best = -1, -1
        for i, slot in enumerate(self._slots):
            if slot.running and not self._can_drop:
                continue  # it has gone on, and a copy could not be cut back
            n = slot.match(sequence.tokens, sequence.cache_salt)
            if n > n_best:
                best, n_best = i, n
        return best, n_best

    def _park(self, target: int, keep: int) -> list[tuple[int, int]]:
        """Save what an idle target holds into the idle slot whose tokens are worth least."""
        held = self._slots[target]
        if len(held.tokens) < MIN_COPY_TOKENS:
            return []
        others = [
            (self._value(slot), i)
            for i, slot in enumerate(self._slots)
            if i not in (target, keep) and not slot.running
        ]
        if not others:
            return []
        value, place = min(others)
        if value > self._value(held):
            return []
        parked = self._slots[place]
        parked.tokens, parked.salt, parked.used_at = held.tokens, held.salt, held.used_at
        return [(target, place)]

    def _value(self, slot: _Slot) -> float:
        """What is worth keeping: many tokens, used not long ago. In tokens per use of the cache."""
        return len(slot.tokens) / (1 + self._clock - slot.used_at)

    def _touch(self, slot: _Slot) -> None:
        self._clock += 1
        slot.used_at = self._clock


def _common_prefix(a: Sequence[int], b: Sequence[int], limit: int) -> int:
    n = max(min(len(a), len(b), limit), 0)
    # Whole blocks compare in C; only the block that differs is walked.
    for start in range(0, n, 256):
        end = min(start + 256, n)
        if tuple(a[start:end]) != tuple(b[start:end]):
            return next(i for i in range(start, end) if a[i] != b[i])
    return n
