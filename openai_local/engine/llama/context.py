"""How the KV memory is laid out, and the context made for it."""

from __future__ import annotations

import logging
from typing import Any

import llama_cpp as lib
import numpy as np

from openai_local.engine.backend import Batch
from openai_local.engine.config import EngineConfig
from openai_local.engine.errors import ModelLoadFailed
from openai_local.engine.llama.batch import CBatch, decode
from openai_local.engine.llama.devices import Placement
from openai_local.engine.machine import free_memory
from openai_local.engine.memory import (
    ContextPlan,
    KvCost,
    kv_budget,
    longest_input,
    plan_context,
)

logger = logging.getLogger(__name__)

_CACHE_TYPES = {
    "f16": lib.GGML_TYPE_F16,
    "q8_0": lib.GGML_TYPE_Q8_0,
    "q4_0": lib.GGML_TYPE_Q4_0,
}
# Position, number of sequences and sequence of a cell, as a state has them beside its data.
_CELL_BYTES = 12


def measure_cost(model: Any, config: EngineConfig, threads: tuple[int, int]) -> KvCost | None:
    """From the states of two short sequences in a small context: what layers keep, and which keep
    a window, is in no metadata that holds for all architectures.

    None for a model that keeps nothing, and so cannot generate. Raises ModelLoadFailed.
    """
    params = _params(config, threads)
    params.n_ctx, params.n_seq_max, params.kv_unified = 512, 2, False
    params.n_batch = params.n_ubatch = 8
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise ModelLoadFailed(config.model, "llama.cpp cannot make a context for it; see its log")
    try:
        memory = lib.llama_get_memory(context)
        if not memory:
            return None
        batch = Batch(
            tokens=np.zeros(3, np.int32),
            positions=np.array([0, 0, 1], np.int32),
            slots=np.array([0, 1, 1], np.int32),
            outputs=np.zeros(3, np.int8),
        )
        decode(context, CBatch(8).fill(batch))
        one, two = (lib.llama_state_seq_get_size(context, slot) for slot in (0, 1))
        # Where there is one state for all tokens, only the last one's is there.
        stateful = lib.llama_memory_seq_pos_min(memory, 1) == 1
        n_window, window = lib.llama_model_n_swa(model), 0
        if n_window > 0 and lib.llama_memory_can_shift(memory):
            # Move the second token so far that the first is behind its window, and is left out.
            lib.llama_memory_seq_add(memory, 1, 1, -1, n_window + 1)
            window = two - lib.llama_state_seq_get_size(context, 1)
            n_window = n_window if window else 0
    finally:
        lib.llama_free(context)
    return KvCost(
        token=max(0, two - one - window - _CELL_BYTES),
        window_token=max(0, window - _CELL_BYTES),
        n_window=max(0, n_window),
        n_ubatch=config.n_ubatch,
        state=2 * one - two if stateful else 0,
    )


def plan_layout(
    model: Any, config: EngineConfig, cost: KvCost | None, placement: Placement
) -> ContextPlan:
    """Sizes and layout that were asked for or fit, with the arithmetic in the log.

    ``cost`` is None for a model that cannot generate. Raises ModelLoadFailed where they cannot be
    had.
    """
    n_ctx_train = lib.llama_model_n_ctx_train(model)
    n_ctx = config.n_ctx
    if n_ctx_train <= 0 and (n_ctx is None or cost is None):
        reason = f"it claims a context of {n_ctx_train} tokens; set n_ctx"
        raise ModelLoadFailed(config.model, reason)
    no_rope = lib.llama_model_rope_type(model) == lib.LLAMA_ROPE_TYPE_NONE
    if no_rope and not (cost and cost.stateful) and n_ctx is not None:
        n_ctx = min(n_ctx, n_ctx_train)  # learned positions end where the training did
    free = free_memory() if config.memory is None else config.memory
    if cost is None:
        return ContextPlan(_longest_input(model, config, free), 1, 0)
    # Of a budget for models, a model takes the same whatever is free.
    on_gpu = placement.kv_share if config.memory is None else 0.0
    budget = config.kv_memory or kv_budget(ram=free, gpu=placement.free_bytes, on_gpu=on_gpu)
    plan = plan_context(
        n_ctx_train=n_ctx_train,
        cost=cost,
        budget_bytes=budget,
        n_ctx=n_ctx,
        n_parallel=config.n_parallel,
        unified=config.kv_unified,
    )
    _check(plan, cost.total(plan), config)
    _log(plan, cost, budget, config)
    return plan


def _longest_input(model: Any, config: EngineConfig, free: int) -> int:
    n_train: int = lib.llama_model_n_ctx_train(model)
    if config.n_ctx is not None:
        return min(config.n_ctx, n_train)
    vocabulary = lib.llama_model_get_vocab(model)
    n = longest_input(
        n_ctx_train=n_train,
        n_vocab=lib.llama_vocab_n_tokens(vocabulary),
        n_embd=lib.llama_model_n_embd_out(model),
        free_bytes=free,
    )
    if n < n_train:
        text = (
            "%s: inputs of up to %d tokens, of %d, since more would take too much memory; see n_ctx"
        )
        logger.warning(text, config.model.name, n, n_train)
    return n


def _check(plan: ContextPlan, n_bytes: float, config: EngineConfig) -> None:
    if config.kv_memory is not None and n_bytes > config.kv_memory:
        reason = (
            f"{plan.n_cells} cells take {n_bytes / 2**20:.0f} MiB of keys and values, more than"
            " kv_memory; lower n_ctx or n_parallel, or raise it"
        )
        raise ModelLoadFailed(config.model, reason)
    most = lib.llama_max_parallel_sequences()
    if plan.n_parallel > most:
        raise ModelLoadFailed(config.model, f"n_parallel is {plan.n_parallel}, at most {most}")
    if plan.n_cells >= 2**31:
        reason = f"{plan.n_cells} cells are more than llama.cpp can count; lower n_ctx"
        raise ModelLoadFailed(config.model, reason)


def _log(plan: ContextPlan, cost: KvCost, budget: int, config: EngineConfig) -> None:
    if plan.unified:
        layout = "share one pool (unified)"
    else:
        layout = "have cells of their own (streams)" if cost.has_cells else "have a state each"
    window = f", {cost.window_token / 2**10:.1f} KiB more in windows of {cost.n_window}"
    state = f", and states of {cost.state / 2**10:.1f} KiB"
    logger.info(
        "%s: %d sequences of up to %d tokens %s; %d cells of %.1f KiB%s%s are %.0f MiB of keys and"
        " values, with %.0f MiB to take", config.model.name, plan.n_parallel, plan.n_ctx, layout,
        plan.n_cells, cost.token / 2**10, window if cost.n_window else "",
        state if cost.state else "", cost.total(plan) / 2**20, budget / 2**20,
    )  # fmt: skip


def _params(config: EngineConfig, threads: tuple[int, int]) -> Any:
    """What every context for generation has in common. Raises ModelLoadFailed."""
    params = lib.llama_context_default_params()
    params.n_threads, params.n_threads_batch = threads
    params.no_perf = True
    params.swa_full = False
    if config.flash_attn is not None:
        params.flash_attn_type = int(config.flash_attn)
    if config.flash_attn is False and config.cache_type_v != "f16":
        reason = f"cache_type_v {config.cache_type_v!r} needs flash_attn"
        raise ModelLoadFailed(config.model, reason)
    params.type_k = _CACHE_TYPES[config.cache_type_k]
    params.type_v = _CACHE_TYPES[config.cache_type_v]
    return params


def new_context(
    model: Any, config: EngineConfig, plan: ContextPlan, n_slots: int, threads: tuple[int, int]
) -> Any:
    """Raises ModelLoadFailed."""
    params = _params(config, threads)
    # Cells come in blocks of 256, those of each stream.
    blocks_of = plan.n_cells if plan.unified else plan.n_ctx
    params.n_ctx = -(-blocks_of // 256) * 256 * (1 if plan.unified else n_slots)
    params.n_batch = max(config.n_batch, n_slots)
    params.n_ubatch = min(config.n_ubatch, params.n_batch)
    params.n_seq_max = n_slots
    params.kv_unified = plan.unified
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise ModelLoadFailed(
            config.model,
            f"llama.cpp cannot make a context of {plan.n_parallel} sequences of {plan.n_ctx}"
            f" tokens, with keys as {config.cache_type_k} and values as {config.cache_type_v};"
            " lower n_ctx or n_parallel, or see its log for another reason",
        )
    return context
