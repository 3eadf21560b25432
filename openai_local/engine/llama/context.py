"""How the KV memory is laid out, and the context made for it."""

from __future__ import annotations

import logging
from typing import Any

import llama_cpp as lib

from openai_local.engine.config import EngineConfig
from openai_local.engine.errors import ModelLoadFailed
from openai_local.engine.llama.metadata import kv_bytes_per_token
from openai_local.engine.machine import free_memory
from openai_local.engine.memory import KV_SHARE, ContextPlan, plan_context

logger = logging.getLogger(__name__)

_CACHE_TYPES = {
    "f16": lib.GGML_TYPE_F16,
    "q8_0": lib.GGML_TYPE_Q8_0,
    "q4_0": lib.GGML_TYPE_Q4_0,
}


def plan_layout(model: Any, config: EngineConfig, can_generate: bool) -> ContextPlan:
    """Sizes and layout that were asked for or fit, with the arithmetic in the log.

    Raises ModelLoadFailed where they cannot be had.
    """
    n_ctx_train = lib.llama_model_n_ctx_train(model)
    bytes_per_token = kv_bytes_per_token(model, config)
    budget = config.kv_memory or int(free_memory() * KV_SHARE)
    n_ctx = config.n_ctx
    if lib.llama_model_rope_type(model) == lib.LLAMA_ROPE_TYPE_NONE and n_ctx is not None:
        # Learned positions end where the training did.
        n_ctx = min(n_ctx, n_ctx_train)
    plan = plan_context(
        n_ctx_train=n_ctx_train,
        bytes_per_token=bytes_per_token,
        budget_bytes=budget,
        n_ctx=n_ctx,
        n_parallel=config.n_parallel,
        unified=config.kv_unified,
    )
    n_bytes = plan.n_cells * bytes_per_token
    if config.kv_memory is not None and can_generate and n_bytes > config.kv_memory:
        reason = (
            f"{plan.n_cells} cells take {n_bytes / 2**20:.0f} MiB of keys and values, more than"
            " kv_memory; lower n_ctx or n_parallel, or raise it"
        )
        raise ModelLoadFailed(config.model, reason)
    most = lib.llama_max_parallel_sequences()
    if plan.n_parallel > most:
        raise ModelLoadFailed(config.model, f"n_parallel is {plan.n_parallel}, at most {most}")
    if can_generate:
        logger.info(
            "%s: %d sequences of up to %d tokens %s; %d cells of %.1f KiB are %.0f MiB of keys and"
            " values, with %.0f MiB to take", config.model.name, plan.n_parallel, plan.n_ctx,
            "share one pool (unified)" if plan.unified else "have cells of their own (streams)",
            plan.n_cells, bytes_per_token / 2**10, n_bytes / 2**20, budget / 2**20,
        )  # fmt: skip
    return plan


def new_context(
    model: Any, config: EngineConfig, plan: ContextPlan, n_slots: int, threads: tuple[int, int]
) -> Any:
    """Raises ModelLoadFailed."""
    params = lib.llama_context_default_params()
    # Cells come in blocks of 256, those of each stream.
    blocks_of = plan.n_cells if plan.unified else plan.n_ctx
    params.n_ctx = -(-blocks_of // 256) * 256 * (1 if plan.unified else n_slots)
    params.n_batch = max(config.n_batch, n_slots)
    params.n_ubatch = min(config.n_ubatch, params.n_batch)
    params.n_seq_max = n_slots
    params.n_threads, params.n_threads_batch = threads
    params.kv_unified = plan.unified
    params.no_perf = True
    if config.flash_attn is not None:
        params.flash_attn_type = int(config.flash_attn)
    if config.flash_attn is False and config.cache_type_v != "f16":
        reason = f"cache_type_v {config.cache_type_v!r} needs flash_attn"
        raise ModelLoadFailed(config.model, reason)
    params.type_k = _CACHE_TYPES[config.cache_type_k]
    params.type_v = _CACHE_TYPES[config.cache_type_v]
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise ModelLoadFailed(
            config.model,
            f"llama.cpp cannot make a context of {plan.n_parallel} sequences of {plan.n_ctx}"
            f" tokens, with keys as {config.cache_type_k} and values as {config.cache_type_v};"
            " lower n_ctx or n_parallel, or see its log for another reason",
        )
    return context
