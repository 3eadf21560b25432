"""How long and how many: context sizes that fit the machine. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

# Of what is free when the model loads, the KV memory takes at most this share by default.
KV_SHARE = 0.25
# llama.cpp's block formats: bytes of an element, scales included.
CACHE_TYPE_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
DEFAULT_PARALLEL = 16
MIN_PARALLEL = 4
MIN_CTX = 2048


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """Tokens a sequence, and sequences at once; the KV memory has their product of cells."""

    n_ctx: int
    n_parallel: int


def plan_context(
    *,
    n_ctx_train: int,
    bytes_per_token: float,
    budget_bytes: int,
    n_ctx: int | None,
    n_parallel: int | None,
) -> ContextPlan:
    """What was asked for, and for the rest the most that fits the budget.

    Left to itself: the trained context, and sequences halved from DEFAULT_PARALLEL until they
    fit; if MIN_PARALLEL do not, a shorter context, of no less than MIN_CTX.
    """
    budget_tokens = int(budget_bytes / max(bytes_per_token, 1))
    ctx = n_ctx or n_ctx_train
    parallel = n_parallel or DEFAULT_PARALLEL
    while n_parallel is None and parallel > MIN_PARALLEL and ctx * parallel > budget_tokens:
        parallel //= 2
    if n_ctx is None and ctx * parallel > budget_tokens:
        ctx = max(min(MIN_CTX, n_ctx_train), budget_tokens // parallel // 256 * 256)
    return ContextPlan(min(ctx, n_ctx_train) if n_ctx is None else ctx, parallel)
