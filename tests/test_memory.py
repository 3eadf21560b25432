"""Context sizes that fit the machine."""

from __future__ import annotations

from openai_local.engine.machine import free_memory, physical_cores
from openai_local.engine.memory import ContextPlan, KvCost, plan_context

MIB = 1 << 20


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


def test_the_machine_has_cores_and_memory() -> None:
    assert physical_cores() >= 1
    assert free_memory() > 0
