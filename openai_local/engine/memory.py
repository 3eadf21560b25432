"""How long and how many: context sizes that fit the machine. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

# Of what is free when the model loads, the KV memory takes at most this share by default.
KV_SHARE = 0.25
# As much of what is then free holds the states of earlier prompts.
CACHE_RAM_SHARE = 1 / 16
# llama.cpp's block formats: bytes of an element, scales included.
CACHE_TYPE_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
DEFAULT_PARALLEL = 16
MIN_PARALLEL = 4
MIN_CTX = 2048


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """Tokens a sequence, sequences at once, and the cells of the KV memory.

    In the streams layout every sequence has cells of its own; ``unified``, they share them all.
    """

    n_ctx: int
    n_parallel: int
    n_cells: int
    unified: bool = False


def plan_context(
    *,
    n_ctx_train: int,
    bytes_per_token: float,
    budget_bytes: int,
    n_ctx: int | None,
    n_parallel: int | None,
    unified: bool | None = None,
) -> ContextPlan:
    """What was asked for, and for the rest the most that fits the budget.

    Left to itself: the streams layout, which is faster, with the trained context and sequences
    halved from DEFAULT_PARALLEL until they fit; if MIN_PARALLEL do not, the unified layout, where
    DEFAULT_PARALLEL share what the budget gives. Where that is ruled out: a shorter context, of no
    less than MIN_CTX.
    """
    budget_tokens = int(budget_bytes / max(bytes_per_token, 1))
    ctx = n_ctx or n_ctx_train
    parallel = n_parallel or DEFAULT_PARALLEL
    while n_parallel is None and parallel > MIN_PARALLEL and ctx * parallel > budget_tokens:
        parallel //= 2
    if unified is None:
        unified = ctx * parallel > budget_tokens and parallel > 1
    if unified:
        return _shared_pool(budget_tokens, n_ctx_train, n_ctx, n_parallel or DEFAULT_PARALLEL)
    if n_ctx is None and ctx * parallel > budget_tokens:
        ctx = max(min(MIN_CTX, n_ctx_train), budget_tokens // parallel // 256 * 256)
    return ContextPlan(ctx, parallel, ctx * parallel)


def _shared_pool(
    budget_tokens: int, n_ctx_train: int, n_ctx: int | None, n_parallel: int
) -> ContextPlan:
    shortest = min(MIN_CTX, n_ctx_train) if n_ctx is None else n_ctx
    n_cells = max(budget_tokens // 256 * 256, shortest)
    ctx = min(n_ctx_train, n_cells) if n_ctx is None else n_ctx
    return ContextPlan(ctx, n_parallel, min(n_cells, ctx * n_parallel), unified=True)
