"""Which tokens live in which slot, and where a new sequence goes. Pure: it only plans.

In the streams layout running sequences are kept in the lowest slots, since llama.cpp splits a batch
whose slots have gaps; what finished sequences left behind is kept, where there is room, in the
slots above. In the unified layout slots are but names for cells of one pool. In both a new sequence
starts from the longest prefix that any slot holds, a running one's included, or that was saved.

    slot   0      1      2      3      4
          [run]  [run]  [idle] [run]  [idle: an older prompt]
                          ^ the next admission goes here, and what is in it is parked, or saved
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from openai_local.engine.cache.host_cache import HostCache, HostEntry
from openai_local.engine.cache.prefix import common_prefix

# Moving less than this takes as long as computing it again.
MIN_COPY_TOKENS = 32
MIN_SAVE_TOKENS = 64
# Where slots cannot be cut back, so many new tokens of a prompt are saved for the next turn, which
# seldom begins with the answer as it was generated (thoughts are left out), nor always with the
# last tokens of the prompt, which only open the answer.
MIN_TURN_TOKENS = 256
N_OPENING_TOKENS = 8
# What no other slot or state begins with must be so much of a state for it to be saved.
MIN_SAVE_SHARE = 1 / 8
# A copy moves a slot's whole buffer, a save what it holds: on a CPU both take 0.1 ms a MiB.
MIN_PARK_SHARE = 1 / 2


class Owner(Protocol):
    """A sequence in a slot, which holds the first ``n_computed`` of its ``tokens``.

    Nothing is reused between owners of different ``cache_salt``, nor more than the first
    ``n_reuse_max`` tokens of what the owner begins with. At each of its ``checkpoints``
    the state is to be saved.
    """

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def n_computed(self) -> int: ...

    @property
    def cache_salt(self) -> str: ...

    @property
    def n_reuse_max(self) -> int: ...

    @property
    def slot(self) -> int: ...

    @property
    def checkpoints(self) -> set[int]: ...


@dataclass(frozen=True, slots=True)
class Copy:
    """The target holds what the source holds."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Save:
    """What the slot holds, these tokens, goes to the host cache."""

    slot: int
    tokens: tuple[int, ...]
    salt: str


@dataclass(frozen=True, slots=True)
class Load:
    """What was saved goes into the slot."""

    entry: HostEntry
    slot: int


Step = Copy | Save | Load


@dataclass(frozen=True, slots=True)
class Placement:
    """Do ``steps`` in order; then ``slot`` holds ``n_reused`` valid tokens."""

    slot: int
    n_reused: int
    steps: tuple[Step, ...]


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

    @property
    def n_held(self) -> int:
        return len(self.tokens) if self.owner is None else self.owner.n_computed

    def common(self, tokens: Sequence[int], salt: str, limit: int) -> int:
        """How many of ``tokens`` it holds, at most ``limit``."""
        if salt != self.salt:
            return 0
        if self.owner is None:
            return common_prefix(self.tokens, tokens, limit)
        return common_prefix(self.owner.tokens, tokens, min(self.owner.n_computed, limit))


class PrefixCache:
    """The engine tells what it does with each slot; the cache tells where to put things."""

    def __init__(
        self,
        n_slots: int,
        n_ctx: int,
        *,
        n_drop_max: int | None = None,
        unified: bool = False,
        shares_cells: bool = True,
        host: HostCache | None = None,
    ) -> None:
        """``n_drop_max``: how many of a slot's last tokens can be dropped; None is all.
        ``shares_cells``: whether a copy in a pool takes none of its own."""
        self._n_ctx = n_ctx
        self._n_drop_max = n_ctx if n_drop_max is None else n_drop_max
        self.unified = unified
        self._shares_cells = shares_cells
        self._host = host
        self._slots = [_Slot() for _ in range(n_slots)]
        self._clock = 0

    @property
    def n_running(self) -> int:
        return sum(slot.running for slot in self._slots)

    @property
    def n_idle_tokens(self) -> int:
        """Held by idle slots, each counted for itself."""
        return sum(len(slot.tokens) for slot in self._slots if not slot.running)

    def can_acquire(self) -> bool:
        return any(not slot.running for slot in self._slots)

    def match(self, sequence: Owner) -> tuple[int, int]:
        """The slot that holds the longest usable prefix, and how much of it; (-1, 0) if none.

        The last token is left out: its logits start, or go on with, the answer.
        """
        best, n_best = -1, 0
        for i in range(len(self._slots)):
            n = self._usable(i, sequence)
            if n > n_best:
                best, n_best = i, n
        return best, n_best

    def n_reusable(self, sequence: Owner) -> int:
        """How much of its tokens slots or RAM hold."""
        return max(self.match(sequence)[1], self._host_match(sequence)[1])

    def upcoming(self, sequence: Owner) -> Upcoming | None:
        """What another sequence is computing of this one's prompt, if waiting for it pays.

        Where a slot cannot be cut back, the other one is asked to save its state on its way.
        """
        can_fork = self._n_drop_max >= self._n_ctx
        if not can_fork and self._host is None:
            return None
        prompt, best = sequence.tokens, None
        n_best = self.n_reusable(sequence) + MIN_COPY_TOKENS
        for slot in self._slots:
            owner = slot.owner
            if owner is not None and slot.salt == sequence.cache_salt:
                n = common_prefix(owner.tokens, prompt, _limit(sequence))
                if n >= n_best and (can_fork or n > owner.n_computed):
                    best, n_best = Upcoming(owner, n), n + 1
        if best is not None and not can_fork:
            best.owner.checkpoints.add(best.n_tokens)
        return best

    def is_pending(self, upcoming: Upcoming) -> bool:
        """Whether it is still to be waited for."""
        owner = upcoming.owner
        return self._slots[owner.slot].owner is owner and owner.n_computed < upcoming.n_tokens

    def n_cells_wanted(self, sequence: Owner) -> tuple[int, int]:
        """How many cells of a pool placing and computing it takes, and the slot that it starts
        from, -1 if none, which is to be kept for that."""
        source, n_match = self.match(sequence)
        entry, n_saved = self._host_match(sequence)
        if entry is not None and n_saved >= n_match + MIN_COPY_TOKENS:
            return max(len(entry.tokens), len(sequence.tokens)), -1
        if not self._shares_cells and source >= 0 and self._slots[source].running:
            return len(sequence.tokens), source
        return len(sequence.tokens) - n_match, source

    def acquire(self, sequence: Owner) -> Placement:
        """Give a free slot to a sequence, with the longest prefix that can be had."""
        source, n_match = self.match(sequence)
        target = self._target(source, n_match)
        n_here = self._usable(target, sequence)
        if source == target or n_match < max(MIN_COPY_TOKENS, n_here + 1):
            source, n_match = target, n_here
        entry, n_saved = self._host_match(sequence)
        if entry is not None and n_saved >= n_match + MIN_COPY_TOKENS:
            # A copy is done with the next decode: nothing may be loaded over what it reads.
            steps = [*self._lose(target), Load(entry, target)]
            n_match = n_saved
        elif source != target:
            steps = [*self._vacate(target, keep=source), Copy(source, target)]
        elif n_match < len(self._slots[target].tokens) // 2:
            steps = self._vacate(target, keep=target)
        else:
            steps = []  # the prompt goes on from what is here, and nothing worth keeping is lost
        self._plan_checkpoint(sequence, n_match)
        self._occupy(target, sequence)
        return Placement(target, n_match, tuple(steps))

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

    def evict(self, keep: int = -1) -> tuple[int, tuple[Step, ...]] | None:
        """The idle slot that is worth least, to be emptied after ``steps``; None if there is none.

        ``keep`` is spared.
        """
        idle = [i for i in self._idle() if i != keep and self._slots[i].tokens]
        if not idle:
            return None
        slot = min(idle, key=lambda i: self._value(self._slots[i]))
        steps = self._lose(slot)
        self._slots[slot].tokens = ()
        return slot, tuple(steps)

    def save_idle(self) -> list[Save]:
        """All that idle slots hold and neither the host cache nor another of these has, what is
        worth most first."""
        order = sorted(self._idle(), key=lambda i: self._value(self._slots[i]), reverse=True)
        saves: list[Save] = []
        for slot in order:
            save = self._save(slot, [self._slots[other.slot] for other in saves])
            saves += [] if save is None else [save]
        return saves

    def compact(self) -> tuple[tuple[int, int], tuple[Step, ...]] | None:
        """Close the lowest gap with the highest running slot.

        Returns ((source, target), steps to do in order, the move included), or None.
        """
        running = [i for i, slot in enumerate(self._slots) if slot.running]
        if not running or running[-1] == len(running) - 1:
            return None
        source = running[-1]
        target = next(i for i, slot in enumerate(self._slots) if not slot.running)
        steps = (*self._vacate(target, keep=source), Copy(source, target))
        owner = self._slots[source].owner
        assert owner is not None, "the highest running slot has an owner"
        self._occupy(target, owner)
        self._slots[source].owner = None
        self._slots[source].tokens = ()
        return (source, target), steps

    def _idle(self) -> list[int]:
        return [i for i, slot in enumerate(self._slots) if not slot.running]

    def _usable(self, slot: int, sequence: Owner) -> int:
        held = self._slots[slot]
        n = held.common(sequence.tokens, sequence.cache_salt, _limit(sequence))
        # Cells of its own come to a copy by way of a state, which is used whole.
        by_state = self.unified and not self._shares_cells and held.running
        return n if held.n_held - n <= (0 if by_state else self._n_drop_max) else 0

    def _host_match(self, sequence: Owner) -> tuple[HostEntry | None, int]:
        if self._host is None:
            return None, 0
        entry, n = self._host.match(sequence.tokens, sequence.cache_salt)
        return (entry, n) if n <= sequence.n_reuse_max else (None, 0)

    def _target(self, source: int, n_match: int) -> int:
        """The lowest free slot; in the unified layout, where any will do, the best free one."""
        idle = self._idle()
        if not self.unified:
            return idle[0]
        most_is_of_use = n_match >= len(self._slots[source].tokens) // 2
        if source in idle and (most_is_of_use or not self._shares_cells):
            return source
        others = [i for i in idle if i != source] or idle
        return min(others, key=lambda i: self._value(self._slots[i]))

    def _plan_checkpoint(self, sequence: Owner, n_reused: int) -> None:
        """What others had in common with this prompt, the next ones will have too."""
        host = self._host
        if host is None or self._n_drop_max >= self._n_ctx:
            return
        tokens, salt = sequence.tokens, sequence.cache_salt
        n = max(slot.common(tokens, salt, len(tokens) - 1) for slot in self._slots)
        n = max(n, min(host.common(tokens, salt), len(tokens) - 1))
        if n >= n_reused + MIN_SAVE_TOKENS:
            sequence.checkpoints.add(n)
        if len(tokens) >= n_reused + MIN_TURN_TOKENS:
            sequence.checkpoints.add(len(tokens) - N_OPENING_TOKENS)

    def _occupy(self, target: int, owner: Owner) -> None:
        slot = self._slots[target]
        slot.owner = owner
        slot.salt = owner.cache_salt
        slot.tokens = ()
        self._touch(slot)

    def _vacate(self, target: int, keep: int) -> list[Step]:
        """Before an idle target is overwritten: park what it holds in the idle slot that is worth
        least, or save it."""
        held = self._slots[target]
        pays = self._host is None or len(held.tokens) >= MIN_PARK_SHARE * self._n_ctx
        if self.unified or not pays or len(held.tokens) < MIN_COPY_TOKENS:
            return self._lose(target)
        others = [(self._value(self._slots[i]), i) for i in self._idle() if i not in (target, keep)]
        if not others or min(others)[0] > self._value(held):
            return self._lose(target)
        place = min(others)[1]
        steps = [*self._lose(place), Copy(target, place)]
        parked = self._slots[place]
        parked.tokens, parked.salt, parked.used_at = held.tokens, held.salt, held.used_at
        return steps

    def _lose(self, slot: int) -> list[Step]:
        """Before what an idle slot holds is lost: save it, if that is worth it."""
        save = self._save(slot, [s for s in self._slots if s is not self._slots[slot]])
        return [] if save is None else [save]

    def _save(self, slot: int, others: Sequence[_Slot]) -> Save | None:
        """``others`` keep what they hold."""
        held, host = self._slots[slot], self._host
        n = len(held.tokens)
        if host is None or n < MIN_SAVE_TOKENS:
            return None
        if host.holds(held.tokens, held.salt):
            return None
        if self._n_drop_max >= self._n_ctx:
            n_elsewhere = max((s.common(held.tokens, held.salt, n) for s in others), default=0)
            n_elsewhere = max(n_elsewhere, host.common(held.tokens, held.salt))
            if n - n_elsewhere < max(MIN_SAVE_SHARE * n, MIN_SAVE_TOKENS):
                return None
        return Save(slot, tuple(held.tokens), held.salt)

    def _value(self, slot: _Slot) -> float:
        """What is worth keeping: many tokens, used not long ago. In tokens per use of the cache."""
        return len(slot.tokens) / (1 + self._clock - slot.used_at)

    def _touch(self, slot: _Slot) -> None:
        self._clock += 1
        slot.used_at = self._clock


def _limit(sequence: Owner) -> int:
    """The last token's logits start, or go on with, the answer, so it is always computed."""
    return min(len(sequence.tokens) - 1, sequence.n_reuse_max)
