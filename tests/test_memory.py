"""Context sizes that fit the machine."""

from __future__ import annotations

from openai_local.engine.machine import free_memory, physical_cores
from openai_local.engine.memory import ContextPlan, plan_context

MIB = 1 << 20


def plan(budget_mib: int, n_ctx: int | None = None, n_parallel: int | None = None) -> ContextPlan:
    """A model of 8192 trained tokens at 10 KiB each."""
    return plan_context(
        n_ctx_train=8192, bytes_per_token=10 << 10, budget_bytes=budget_mib * MIB,
        n_ctx=n_ctx, n_parallel=n_parallel,
    )  # fmt: skip


def test_a_large_machine_has_the_trained_context_sixteen_times() -> None:
    assert plan(16_000) == ContextPlan(8192, 16)


def test_a_smaller_one_halves_the_sequences_first_then_shortens_them() -> None:
    assert plan(640) == ContextPlan(8192, 8)
    assert plan(160) == ContextPlan(4096, 4)
    assert plan(1) == ContextPlan(2048, 4)


def test_what_was_asked_for_is_kept() -> None:
    assert plan(1, n_ctx=20_000, n_parallel=64) == ContextPlan(20_000, 64)
    assert plan(640, n_ctx=1024) == ContextPlan(1024, 16)
    assert plan(16_000, n_parallel=3) == ContextPlan(8192, 3)


def test_the_machine_has_cores_and_memory() -> None:
    assert physical_cores() >= 1
    assert free_memory() > 0
