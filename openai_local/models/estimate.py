"""The memory that a model will take at a context, from its header alone: before it is loaded.

The layout is planned as the engine plans it, with arithmetic in place of its measurement. Weights,
keys, values and states are what llama.cpp allocates, where an architecture keeps what
``engine/gguf/layers.py`` knows; compute buffers are near it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from openai_local.engine.config import CacheType, EngineConfig
from openai_local.engine.gguf.file import TENSOR_TYPES
from openai_local.engine.gguf.layers import Layer
from openai_local.engine.machine import free_memory
from openai_local.engine.memory import (
    EMBEDDING_SEQS,
    EMBEDDING_SEQS_STATEFUL,
    KV_SHARE,
    ContextPlan,
    KvCost,
    embedding_batch,
    longest_input,
    plan_context,
)
from openai_local.models.gguf_file import GgufHeader

_BITS = {name.lower(): 8 * size / block for name, block, size in TENSOR_TYPES.values()}
_CELLS = 256  # cells come in blocks of so many
_FLOAT = 4
_TOKEN_BYTES = 150  # of a token's text and its places in tables; measured with Gemma's 262,144


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """In bytes. ``n_compute`` is what llama.cpp computes in, its outputs included."""

    plan: ContextPlan
    n_weights: int
    n_vocabulary: int
    n_kv: int
    n_compute: int

    @property
    def n_total(self) -> int:
        return self.n_weights + self.n_vocabulary + self.n_kv + self.n_compute


def estimate(header: GgufHeader, config: EngineConfig, n_free: int | None = None) -> MemoryEstimate:
    """With the sizes that ``config`` sets, and for the rest those that the engine would choose
    with ``n_free`` bytes of memory; by default those that are free now."""
    free = free_memory() if n_free is None else n_free
    if generates(header):
        plan = _plan(header, config, free)
    else:
        plan = ContextPlan(_longest_input(header, config, free), 1, 0)
    return MemoryEstimate(
        plan,
        n_weights=header.n_weight_bytes,
        n_vocabulary=header.n_vocab * _TOKEN_BYTES,
        n_kv=_allocated(header, config, plan) if plan.n_cells else 0,
        n_compute=_compute(header, config, plan),
    )


def _longest_input(header: GgufHeader, config: EngineConfig, n_free: int) -> int:
    if config.n_ctx is not None:
        return min(config.n_ctx, header.n_ctx_train)
    return longest_input(
        n_ctx_train=header.n_ctx_train,
        n_vocab=header.n_vocab,
        n_embd=header.n_embd,
        free_bytes=n_free,
    )


def _plan(header: GgufHeader, config: EngineConfig, n_free: int) -> ContextPlan:
    n_ctx = config.n_ctx
    if n_ctx is not None and _ends_with_training(header):
        n_ctx = min(n_ctx, header.n_ctx_train)
    return plan_context(
        n_ctx_train=header.n_ctx_train,
        cost=kv_cost(header, config),
        budget_bytes=config.kv_memory or int(n_free * KV_SHARE),
        n_ctx=n_ctx,
        n_parallel=config.n_parallel,
        unified=config.kv_unified,
    )


def _ends_with_training(header: GgufHeader) -> bool:
    """Whether its positions are learned, one by one."""
    return any(tensor.name == "position_embd.weight" for tensor in header.tensors)


def generates(header: GgufHeader) -> bool:
    return header.causal and any(layer.n_key or layer.n_state for layer in header.layers)


def kv_cost(header: GgufHeader, config: EngineConfig) -> KvCost:
    """What a token and a sequence take, as the engine will measure it."""
    sizes = [(layer, _token_bytes(layer.n_key, layer.n_value, config)) for layer in header.layers]
    return KvCost(
        token=sum(n_bytes for layer, n_bytes in sizes if not layer.n_window),
        window_token=sum(n_bytes for layer, n_bytes in sizes if layer.n_window),
        n_window=max((layer.n_window for layer in header.layers), default=0),
        n_ubatch=config.n_ubatch,
        state=_FLOAT * sum(layer.n_state for layer in header.layers),
    )


def _token_bytes(n_key: int, n_value: int, config: EngineConfig) -> float:
    return _row(n_key, config.cache_type_k) + _row(n_value, config.cache_type_v)


def _row(n: int, cache_type: CacheType) -> float:
    return n * _BITS[cache_type] / 8


def _allocated(header: GgufHeader, config: EngineConfig, plan: ContextPlan) -> int:
    """llama.cpp's buffers for keys, values and states."""
    n_streams = 1 if plan.unified else plan.n_parallel
    total = 0.0
    for layer in header.layers:
        token = _token_bytes(layer.n_key, layer.n_value, config)
        total += _kept(layer, config, plan) * n_streams * token
        total += plan.n_parallel * _FLOAT * layer.n_state
    return int(total)


def _padded(n_cells: int) -> int:
    return -(-n_cells // _CELLS) * _CELLS


def of_embeddings(header: GgufHeader, config: EngineConfig, plan: ContextPlan, n_free: int) -> int:
    """What the context takes in which a model that generates makes embeddings, on first use."""
    plain = replace(config, cache_type_k="f16", cache_type_v="f16")
    stateful = any(layer.n_state for layer in header.layers)
    n_seq = EMBEDDING_SEQS_STATEFUL if stateful else EMBEDDING_SEQS
    n_batch = _embedding_batch(header, config, plan, n_seq, n_free)
    cost = kv_cost(header, replace(plain, n_ubatch=n_batch))
    shared = ContextPlan(plan.n_ctx, n_seq, _padded(max(plan.n_ctx, n_batch)), unified=True)
    rows = _FLOAT * n_batch * (header.n_vocab + header.n_embd)
    n_compute = _compute(header, replace(plain, n_ubatch=n_batch), replace(shared, n_parallel=0))
    return int(cost.total(shared)) + rows + n_compute


def _embedding_batch(
    header: GgufHeader, config: EngineConfig, plan: ContextPlan, n_seq: int, n_free: int = 0
) -> int:
    return embedding_batch(
        whole=plan.n_cells == 0,
        n_ctx=plan.n_ctx,
        n_ubatch=config.n_ubatch,
        n_vocab=header.n_vocab,
        n_seq=n_seq,
        free_bytes=n_free,
    )


def _compute(header: GgufHeader, config: EngineConfig, plan: ContextPlan) -> int:
    """The larger of what the last matrix and what a layer takes, for as many tokens as are
    computed at once, and a row of logits for each sequence."""
    if plan.n_cells == 0:
        return _compute_inputs(header, config, plan)
    outputs = header.n_vocab + 2 * header.n_embd if header.purpose == "generation" else 0
    n_wide = header.integer("feed_forward_length")
    if header.n_experts_used:
        n_expert = header.integer("expert_feed_forward_length") or n_wide
        n_wide = header.n_experts_used * (n_expert + header.n_embd)
    n_wide = max(n_wide, 3 * header.integer("ssm.inner_size"))
    layer = 4 * header.n_embd + 2 * n_wide + _attention(header, config, plan)
    rows = plan.n_parallel * header.n_vocab
    return int(_FLOAT * (config.n_ubatch * max(outputs, layer) + rows))


def _compute_inputs(header: GgufHeader, config: EngineConfig, plan: ContextPlan) -> int:
    """The same of a model that only embeds: a layer, the means, and a row of logits and of the
    embedding for every token, whether anybody reads it or not."""
    n_batch = _embedding_batch(header, config, plan, EMBEDDING_SEQS)
    gated = any(".ffn_gate." in tensor.name for tensor in header.tensors)
    n_wide = header.integer("feed_forward_length") * (2 if gated else 1)
    attention = _attention(header, config, replace(plan, n_ctx=n_batch))
    layer = 3 * header.n_embd + n_wide + attention + EMBEDDING_SEQS
    return int(_FLOAT * n_batch * (layer + header.n_vocab + header.n_embd))


def _attention(header: GgufHeader, config: EngineConfig, plan: ContextPlan) -> float:
    """Numbers for each token that is computed: the masks of what it may look at and, without flash
    attention, its product with all of that in each head."""
    whole = _padded(plan.n_cells if plan.unified else plan.n_ctx)
    masks = {  # one of all layers with a window, and one of those without
        layer.n_window > 0: _kept(layer, config, plan) if plan.n_cells else whole
        for layer in _attending(header)
    }
    seen = masks.values()
    if config.flash_attn is not False:
        return sum(seen) / 2  # in 16 bits
    return sum(seen) + max(seen, default=0) * max(header.n_heads, default=0)


def _attending(header: GgufHeader) -> list[Layer]:
    return [layer for layer in header.layers if layer.n_key]


def _kept(layer: Layer, config: EngineConfig, plan: ContextPlan) -> int:
    """Cells of a layer in one stream, in blocks."""
    n_cells = _padded(plan.n_cells if plan.unified else plan.n_ctx)
    if not layer.n_window:
        return n_cells
    n_kept = layer.n_window * (plan.n_parallel if plan.unified else 1) + config.n_ubatch
    return _padded(min(n_cells, n_kept))
