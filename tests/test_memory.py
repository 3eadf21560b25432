"""Context sizes that fit the machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_local.engine.machine import free_memory, physical_cores
from openai_local.engine.memory import (
    ContextPlan,
    KvCost,
    embedding_batch,
    kv_budget,
    plan_context,
)

MIB, GIB = 1 << 20, 1 << 30


def plan(
    budget_mib: int,
    n_ctx: int | None = None,
    n_parallel: int | None = None,
    unified: bool | None = None,
) -> ContextPlan:
    """A model of 8192 trained tokens at 10 KiB each."""
    return plan_context(
        n_ctx_train=8192, cost=KvCost(10 << 10), budget_bytes=budget_mib * MIB,
        n_ctx=n_ctx, n_parallel=n_parallel, unified=unified,
    )  # fmt: skip


def streams(n_ctx: int, n_parallel: int) -> ContextPlan:
    return ContextPlan(n_ctx, n_parallel, n_ctx * n_parallel)


def test_a_large_machine_has_the_trained_context_sixteen_times() -> None:
    assert plan(16_000) == streams(8192, 16)


def test_a_smaller_one_halves_the_sequences_and_then_lets_sixteen_share_what_there_is() -> None:
    assert plan(640) == streams(8192, 8)
    assert plan(320) == streams(8192, 4)
    assert plan(160) == ContextPlan(8192, 16, 16_384, unified=True)
    assert plan(60) == ContextPlan(6144, 16, 6144, unified=True)
    assert plan(1) == ContextPlan(2048, 16, 2048, unified=True)


def test_what_was_asked_for_is_kept_and_shared_where_it_does_not_fit() -> None:
    assert plan(16_000, n_ctx=20_000, n_parallel=64) == streams(20_000, 64)
    assert plan(400, n_ctx=20_000, n_parallel=64) == ContextPlan(20_000, 64, 40_960, unified=True)
    assert plan(1, n_ctx=20_000, n_parallel=64) == ContextPlan(20_000, 64, 20_000, unified=True)
    assert plan(640, n_ctx=1024) == streams(1024, 16)
    assert plan(16_000, n_parallel=3) == streams(8192, 3)
    assert plan(160, n_parallel=3) == ContextPlan(8192, 3, 16_384, unified=True)


def test_the_layout_that_was_asked_for_is_taken() -> None:
    assert plan(160, unified=False) == streams(4096, 4)
    assert plan(1, n_parallel=2, unified=False) == streams(2048, 2)
    assert plan(16_000, n_parallel=4, unified=True) == ContextPlan(8192, 4, 32_768, unified=True)


# Five layers in six keep 512 tokens, and one keeps all.
WINDOWS = KvCost(2 << 10, 10 << 10, n_window=512, n_ubatch=512)
# A state of 4 MiB, and nothing for a token.
RECURRENT = KvCost(0, state=4 * MIB)
HYBRID = KvCost(1 << 10, state=4 * MIB)


def plan_of(cost: KvCost, budget_mib: int, unified: bool | None = None) -> ContextPlan:
    return plan_context(
        n_ctx_train=8192, cost=cost, budget_bytes=budget_mib * MIB,
        n_ctx=None, n_parallel=None, unified=unified,
    )  # fmt: skip


def test_windows_take_no_more_than_they_keep() -> None:
    # 16 MiB for 8192 tokens and 10 for a window of 512 and a part of a batch of 512, each.
    assert WINDOWS.streams(8192, 16) == 16 * 26 * MIB
    assert plan_of(WINDOWS, 416) == streams(8192, 16)
    assert plan_of(WINDOWS, 415) == streams(8192, 8)
    # In a pool 16 windows would take most of it; eight and one part of a batch take 45 MiB.
    assert plan_of(WINDOWS, 101, unified=True) == ContextPlan(8192, 8, 56 * 512, unified=True)
    assert WINDOWS.longest(26 * MIB, 1) == 8192
    assert WINDOWS.longest(6 * MIB, 1) == 512


def test_states_of_fixed_size_bound_the_sequences_and_never_share() -> None:
    assert plan_of(RECURRENT, 64) == streams(8192, 16)
    assert plan_of(RECURRENT, 63) == streams(8192, 8)
    assert plan_of(RECURRENT, 5) == streams(8192, 1)
    assert plan_of(RECURRENT, 64, unified=True) == streams(8192, 16)
    assert plan_of(HYBRID, 16 * 12) == streams(8192, 16)
    assert plan_of(HYBRID, 40) == ContextPlan(8192, 4, 24_576, unified=True)


@given(
    st.floats(0, 1e5), st.floats(0, 1e5), st.integers(1, 8192), st.integers(1, 2048),
    st.floats(0, 1e8), st.integers(1, 10**11), st.booleans() | st.none(),
)  # fmt: skip
def test_what_is_planned_fits_or_is_the_least(
    token: float, window_token: float, n_window: int, n_ubatch: int, state: float, budget: int,
    unified: bool | None,
) -> None:  # fmt: skip
    cost = KvCost(token, window_token, n_window, n_ubatch, state)
    plan = plan_context(
        n_ctx_train=32_768, cost=cost, budget_bytes=budget, n_ctx=None, n_parallel=None,
        unified=unified,
    )  # fmt: skip
    assert cost.total(plan) <= budget or plan.n_ctx == 2048 or plan.n_parallel <= 4
    assert 2048 <= plan.n_ctx <= 32_768
    assert 1 <= plan.n_parallel <= 16


@pytest.mark.parametrize(
    ("on_gpu", "budget"), [(0, 8 * GIB), (1, 3 * GIB), (0.5, 6 * GIB), (0.1, 80 / 9 * GIB)]
)
def test_keys_and_values_take_a_share_of_where_they_are(on_gpu: float, budget: float) -> None:
    assert kv_budget(ram=32 * GIB, gpu=6 * GIB, on_gpu=on_gpu) == int(budget)


def test_the_machine_has_cores_and_memory() -> None:
    assert physical_cores() >= 1
    assert free_memory() > 0


def test_rows_that_nobody_reads_take_little() -> None:
    def batch(n_vocab: int, free_mib: int, n_seq: int = 64) -> int:
        return embedding_batch(
            whole=False, n_ctx=4096, n_ubatch=512, n_vocab=n_vocab, n_seq=n_seq,
            free_bytes=free_mib * MIB,
        )  # fmt: skip

    assert batch(32_768, 1 << 20) == 512
    assert batch(262_144, 1 << 20) == 128
    assert batch(49_152, 1000) == 128
    assert batch(262_144, 0) == 64
    assert batch(262_144, 0, n_seq=4) == 4


@given(st.integers(1, 9000), st.integers(1, 2048), st.sampled_from([4, 64]))
def test_a_whole_input_fits_and_is_shared_by_all_sequences(n_ctx: int, n: int, n_seq: int) -> None:
    batch = embedding_batch(
        whole=True, n_ctx=n_ctx, n_ubatch=n, n_vocab=10**6, n_seq=n_seq, free_bytes=0
    )
    assert max(n_ctx, n) <= batch < max(n_ctx, n) + n_seq and batch % n_seq == 0
