"""The cache's plans, carried out on a model of the slots' memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from openai_local.engine.cache.host_cache import HostCache
from openai_local.engine.cache.prefix import common_prefix
from openai_local.engine.cache.prefix_cache import (
    MIN_COPY_TOKENS,
    MIN_SAVE_SHARE,
    MIN_SAVE_TOKENS,
    Copy,
    Placement,
    PrefixCache,
    Save,
    Step,
    Upcoming,
)

N = MIN_COPY_TOKENS


@dataclass
class Prompt:
    """A sequence in a slot; ``n_computed`` of it are there, all as soon as it is acquired."""

    tokens: list[int]
    cache_salt: str = ""
    n_reuse_max: int = 1 << 30
    n_computed: int = 0
    slot: int = -1
    checkpoints: set[int] = field(default_factory=set)


class Memory:
    """What each slot really holds, as the engine would have it."""

    def __init__(self, n_slots: int, n_bytes: int = 0) -> None:
        self.host = HostCache(n_bytes) if n_bytes else None
        self.cache = PrefixCache(n_slots, 4096, host=self.host)
        self.slots: list[list[int]] = [[] for _ in range(n_slots)]
        self.running: dict[int, list[int]] = {}

    def acquire(self, prompt: list[int], salt: str = "") -> tuple[int, int]:
        owner = Prompt(prompt, salt)
        placement = self.cache.acquire(owner)
        owner.n_computed = len(prompt)
        slot, n = placement.slot, placement.n_reused
        assert slot == min(i for i in range(len(self.slots)) if i not in self.running)
        self.do(placement.steps)
        assert self.slots[slot][:n] == prompt[:n], "what is reused is what was asked for"
        assert n < len(prompt), "the last token is computed"
        self.slots[slot] = list(prompt)
        self.running[slot] = prompt
        return slot, n

    def do(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            if isinstance(step, Save):
                assert self.slots[step.slot] == list(step.tokens), "what is saved is there"
                assert self.host is not None
                self.host.put(step.tokens, step.salt, np.array(step.tokens, np.int32).view("u1"))
                continue
            target = step.target if isinstance(step, Copy) else step.slot
            assert target not in self.running, "no running sequence is overwritten"
            if isinstance(step, Copy):
                self.slots[target] = list(self.slots[step.source])
            else:
                self.slots[target] = step.entry.state.view(np.int32).tolist()

    def release(self, slot: int) -> None:
        self.cache.release(slot, self.running.pop(slot))

    def compact(self) -> None:
        plan = self.cache.compact()
        contiguous = sorted(self.running) == list(range(len(self.running)))
        assert (plan is None) == contiguous
        if plan is not None:
            (source, target), steps = plan
            self.do(steps)
            self.running[target] = self.running.pop(source)
            self.slots[source] = []
            assert self.slots[target] == self.running[target]


prompts = st.builds(
    lambda family, n, rest: [family] * n + rest,
    st.integers(0, 4),
    st.integers(0, 3 * N),
    st.lists(st.integers(5, 7), min_size=1, max_size=3),
)
operations = st.lists(
    st.one_of(
        prompts,
        st.tuples(st.just("release"), st.integers(0, 9)),
        st.tuples(st.just("compact"), st.just(0)),
    ),
    max_size=60,
)


def play(memory: Memory, steps: list[Any]) -> None:
    for step in steps:
        if isinstance(step, list):
            if memory.cache.can_acquire():
                memory.acquire(step)
            else:
                assert len(memory.running) == len(memory.slots)
        elif step[0] == "release" and memory.running:
            memory.release(sorted(memory.running)[step[1] % len(memory.running)])
        elif step[0] == "compact":
            memory.compact()
        assert memory.cache.n_running == len(memory.running)


@settings(max_examples=500, deadline=None)
@given(operations, st.integers(1, 6), st.sampled_from([0, 1000, 100_000]))
def test_what_is_reused_is_really_there(steps: list[Any], n_slots: int, n_bytes: int) -> None:
    play(Memory(n_slots, n_bytes), steps)


@settings(max_examples=200, deadline=None)
@given(operations, st.integers(1, 6))
def test_what_is_saved_at_the_end_leaves_little_to_compute_again(
    steps: list[Any], n_slots: int
) -> None:
    memory = Memory(n_slots, 100_000)
    play(memory, steps)
    assert memory.host is not None
    saves = memory.cache.save_idle()
    kept = [save.tokens for save in saves] + [entry.tokens for entry in memory.host.by_value()]
    for slot in set(range(n_slots)) - memory.running.keys():
        tokens = memory.slots[slot][: memory.cache.n_held(slot)]
        n = max((common_prefix(other, tokens, len(tokens)) for other in kept), default=0)
        assert len(tokens) - n <= max(MIN_SAVE_SHARE * len(tokens), MIN_SAVE_TOKENS)
    memory.do(tuple(saves))


def test_the_longest_prefix_is_found_and_its_slot_used_in_place() -> None:
    memory = Memory(2)
    slot, _ = memory.acquire([1] * 50)
    memory.release(slot)
    assert memory.acquire([1] * 50 + [2]) == (0, 50)


def test_a_prefix_in_a_high_slot_is_copied_down() -> None:
    memory = Memory(3)
    first, second = memory.acquire([1] * 60), memory.acquire([2] * 60)
    memory.release(first[0])
    memory.release(second[0])
    assert memory.acquire([2] * 60 + [3]) == (0, 60)


def test_what_the_target_held_is_parked_where_there_is_room() -> None:
    memory = Memory(3)
    for _ in range(2):
        for family in (1, 2):
            slot, n = memory.acquire([family] * 60)
            memory.release(slot)
    assert n == 59


def test_a_long_prompt_outlives_newer_short_ones_but_not_for_ever() -> None:
    memory = Memory(2)
    slot, _ = memory.acquire([1] * 40 * N)
    memory.release(slot)
    for family in range(2, 6):
        slot, _ = memory.acquire([family] * 2 * N)
        memory.release(slot)
    assert memory.acquire([1] * 40 * N + [2])[1] == 40 * N
    memory.release(0)
    for family in range(2, 60):
        slot, _ = memory.acquire([family] * 2 * N)
        memory.release(slot)
    assert memory.acquire([1] * 40 * N + [2])[1] == 0


def test_a_short_match_is_not_worth_a_copy() -> None:
    memory = Memory(3)
    slots = [memory.acquire([family] * (N - 2))[0] for family in (1, 2)]
    for slot in slots:
        memory.release(slot)
    assert memory.acquire([2] * N) == (0, 0)


def test_a_running_sequence_is_moved_whole_and_leaves_nothing() -> None:
    memory = Memory(2)
    memory.acquire([9])
    memory.acquire([1] * 60)
    memory.release(0)
    memory.compact()
    assert memory.cache.n_held(1) == 0
    assert memory.acquire([1] * 60 + [3]) == (1, 60)


def test_a_running_sequence_lends_what_it_has_computed() -> None:
    cache = PrefixCache(2, 4096)
    owner = Prompt([1] * 100)
    owner.slot = cache.acquire(owner).slot
    owner.n_computed = 70
    assert cache.acquire(Prompt([1] * 80 + [2])) == Placement(1, 70, (Copy(0, 1),))


def test_what_is_being_computed_is_worth_waiting_for() -> None:
    cache = PrefixCache(3, 4096)
    owner = Prompt([1] * 100)
    owner.slot = cache.acquire(owner).slot
    follower = Prompt([1] * 80 + [2])
    upcoming = cache.upcoming(follower)
    assert upcoming == Upcoming(owner, 80)
    owner.n_computed = 79
    assert cache.is_pending(upcoming)
    owner.n_computed = 80
    assert not cache.is_pending(upcoming) and cache.upcoming(follower) is None
    owner.n_computed = 80 - N + 1  # as good as there already
    assert cache.upcoming(follower) is None
    owner.n_computed = 10
    cache.release(owner.slot, ())
    assert not cache.is_pending(upcoming) and cache.upcoming(follower) is None


def test_memory_that_cannot_be_cut_is_neither_waited_for_nor_copied_from_a_running_one() -> None:
    cache = PrefixCache(3, 4096, n_drop_max=0)
    owner = Prompt([1] * 100)
    owner.slot = cache.acquire(owner).slot
    assert cache.upcoming(Prompt([1] * 80 + [2])) is None
    owner.n_computed = 100
    assert cache.acquire(Prompt([1] * 80 + [2])) == Placement(1, 0, ())


def test_nothing_is_shared_between_salts() -> None:
    memory = Memory(4)
    memory.acquire([1] * 60, "a")
    slot, _ = memory.acquire([2] * 60, "a")
    memory.release(slot)
    assert memory.acquire([1] * 61, "b")[1] == memory.acquire([2] * 61, "b")[1] == 0
    assert memory.cache.upcoming(Prompt([1] * 90, "c")) is None
    assert memory.acquire([1] * 61, "a")[1] == 60
