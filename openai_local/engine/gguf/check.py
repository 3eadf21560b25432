"""Refuses model files whose header contradicts itself where llama.cpp asserts that it does not.

An assertion there, or a C++ exception outside of the load, ends the host's process; what llama.cpp
itself refuses with a reason while it loads is left to it. The numbers are of llama.cpp 0c1e57098.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from openai_local.engine.gguf.facts import Facts
from openai_local.engine.gguf.file import Array, GgufFile, read_model
from openai_local.engine.gguf.layers import head_sizes, windows
from openai_local.engine.gguf.vocabulary import check_vocabulary

# Other things that a GGUF file may be, by its general.type.
_NO_MODELS: Mapping[str, str] = {
    "adapter": "an adapter (LoRA)",
    "mmproj": "a projector (mmproj)",
    "imatrix": "an importance matrix",
}
MAX_LAYERS = 512
MAX_EXPERTS = 1024
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_POOLINGS = range(-1, 5)
# Their graphs assert that all of a head is rotated.
_WHOLE_ROTATION = frozenset(
    "apertus arcee arctic baichuan chameleon codeshell cogvlm cohere2moe dbrx deci deepseek dots1"
    " dream ernie4_5 ernie4_5-moe exaone exaone-moe exaone4 falcon granite granitemoe granite_swa"
    " graniteswitch grok grovemoe hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 internlm2 jais2 llada"
    " llada-moe llama llama-embed llama4 maincoder mellum minicpm mistral3 olmo olmo2 olmoe orion"
    " paddleocr pangu-embedded plamo pockettts qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3vl"
    " qwen3vlmoe rnd1 seed_oss smallthinker smollm3 starcoder2 talkie xverse".split()
)
# In all others the heads of keys and values have one size.
_UNEQUAL_HEADS = frozenset(
    "bailingmoe3 deepseek2 deepseek2-ocr deepseek32 deepseek4 dots3note glm-dsa glm5-next hy_v4"
    " kimi-k3 kimi-linear mimo2 minicpm3 mistral4 plamo2 plm step35".split()
)

# For these, a window of 0 is not none.
_ALWAYS_WINDOWED = frozenset(
    "cohere2 cohere2moe dots3note exaone-moe gemma-embedding gemma2 gemma3n gemma4 gpt-oss"
    " granite_swa maple mimo2 muse-glimmer spark2_5 step35".split()
)

# Of each of these, 200 or more changed files that pass were given to llama.cpp, and none ended the
# process.
_SEARCHED = frozenset(
    "bert cohere2 command-r deepseek ernie4_5 exaone falcon gemma gemma-embedding gemma2 gemma3"
    " glm4 gpt-oss gpt2 granite hunyuan-dense internlm2 jamba lfm2 llama mamba mamba2 minicpm"
    " mistral3 modern-bert nomic-bert olmo olmo2 phi2 qwen2 qwen2moe qwen2vl qwen3 qwen3moe"
    " seed_oss smollm3 stablelm starcoder2".split()
)

# Those of them that do not divide by the number of heads.
_HEADLESS = frozenset(("mamba", "mamba2"))

# They ask for a mask without windows, too.
_PARTLY_WINDOWED = frozenset(("gemma-embedding", "modern-bert"))

# They have no product with what is computed; integers are indices.
_INDEX_TYPES = frozenset(("I32", "I64"))
_NO_WEIGHTS = _INDEX_TYPES | {"I8", "I16", "F64", "Q8_1", "Q8_K"}
_INDICES = ("d2t", "tid2eid", "ordering", "masked_embd")
# What is read row by row, or slid over what is computed.
_MATRICES = (
    "token_embd.weight",
    "position_embd.weight",
    "token_types.weight",
    ".ssm_conv1d.weight",
    ".shortconv.conv.weight",
    ".ssm_a",
)
# Their operations take no other type.
_FLOATS = (".bias", ".ssm_conv1d.weight", ".shortconv.conv.weight", ".ssm_a", ".ssm_d")
_SCANNED = frozenset(
    "falcon-h1 granitehybrid jamba mamba mamba2 nemotron_h nemotron_h_moe plamo2".split()
)


def is_searched(file: GgufFile) -> bool:
    """Whether what passes the rules here is known to be safe, as far as a search has found."""
    return file.metadata.get("general.architecture") in _SEARCHED


def read_checked(path: Path) -> tuple[GgufFile, ...]:
    """The parts of a model, of which ``path`` is the first, if llama.cpp can be given them.

    Raises InvalidGguf with what is wrong.
    """
    parts = read_model(path)
    facts = Facts(parts)
    for rule in _RULES:
        rule(facts)
    return parts


def _check_kind(facts: Facts) -> None:
    kind = facts.text("general.type", "model")
    if facts.architecture == "clip":
        kind = "mmproj"
    if kind in _NO_MODELS:
        raise facts.refuse(f"it is {_NO_MODELS[kind]}, no model")


def _check_layers(facts: Facts) -> None:
    facts.require(bool(facts.architecture), "it does not say its architecture")
    n = facts.n_layers
    facts.require(1 <= n <= MAX_LAYERS, f"it has {n} layers, not 1 to {MAX_LAYERS}")
    n_next = facts.integer("nextn_predict_layers", 0)
    facts.require(n_next < n, f"{n_next} of its {n} layers are for predictions ahead")


def _check_sizes(facts: Facts) -> None:
    n_embd = facts.integer("embedding_length", 0)
    facts.require(0 < n_embd < 1 << 24, f"its embeddings have {n_embd} dimensions")
    n_out = facts.integer("embedding_length_out", 0)
    projected = [t.shape[-1] for name, t in facts.tensors.items() if name.startswith("dense_")]
    reason = f"its embeddings have {n_embd} dimensions, and {n_out} come out"
    facts.require(n_out in (0, n_embd, *projected), reason)
    pooling = facts.integer("pooling_type", -1)
    facts.require(pooling in _POOLINGS, f"its pooling_type is {pooling}")


def _check_heads(facts: Facts) -> None:
    heads = facts.layers("attention.head_count", 0)
    kv_heads = heads
    if facts.has("attention.head_count_kv"):
        kv_heads = facts.layers("attention.head_count_kv", 0)
    for n, n_kv in zip(heads, kv_heads, strict=True):
        plausible = 0 <= n < 1 << 16 and 0 <= n_kv < 1 << 16
        facts.require(plausible, f"it has {n} heads, {n_kv} of keys")
        if n and n_kv:
            facts.require(n % n_kv == 0, f"its {n} heads cannot share {n_kv} of keys")
    if heads[0] == 0:
        headless = facts.architecture in _HEADLESS or facts.architecture not in _SEARCHED
        facts.require(headless, "its first layer has no heads")
        return
    n_embd = facts.integer("embedding_length", 0)
    if not facts.has("attention.key_length"):
        whole = n_embd % heads[0] == 0
        facts.require(whole, f"{n_embd} dimensions cannot be shared by {heads[0]} heads")
    for suffix in ("", "_swa"):
        n_key = facts.integer(f"attention.key_length{suffix}", n_embd // heads[0])
        n_value = facts.integer(f"attention.value_length{suffix}", n_embd // heads[0])
        plausible = 0 < n_key < 1 << 16 and 0 < n_value < 1 << 16
        equal = n_key == n_value or facts.architecture in _UNEQUAL_HEADS
        reason = f"its heads have {n_key} dimensions for keys, {n_value} for values"
        facts.require(plausible and equal, reason)
        n_rot = facts.integer(f"rope.dimension_count{suffix}", n_key)
        fits = n_rot <= n_key and n_rot % 2 == 0
        fits &= n_rot == n_key or facts.architecture not in _WHOLE_ROTATION
        facts.require(fits, f"{n_rot} of the {n_key} dimensions of its heads are rotated")


def _check_sections(facts: Facts) -> None:
    """How a head's rotation is shared by positions of several dimensions."""
    sections = facts.metadata.get(f"{facts.architecture}.rope.dimension_sections")
    if not isinstance(sections, Array) or not sections.values:
        return
    n_rot = facts.integer("rope.dimension_count", head_sizes(facts, windowed=False)[0])
    sizes = [n for n in sections.values if isinstance(n, int)]
    fits = len(sizes) == sections.n and min(sizes) >= 0 and 2 * sum(sizes) <= n_rot
    fits &= any(sizes[:3]) or not facts.architecture.startswith("qwen")
    facts.require(fits, f"its rope.dimension_sections of {n_rot} are {list(sections.values[:8])}")


def _check_windows(facts: Facts) -> None:
    given = facts.integer("attention.sliding_window", 1)
    always = facts.architecture in _ALWAYS_WINDOWED
    facts.require(given < 1 << 31 and (given > 0 or not always), f"it has windows of {given}")
    window, windowed = windows(facts)
    facts.require(window == 0 or any(windowed), f"it has windows of {window}, in no layer")
    everywhere = window > 0 and all(windowed) and facts.architecture in _PARTLY_WINDOWED
    facts.require(not everywhere, f"it has windows of {window}, in all layers")


def _check_experts(facts: Facts) -> None:
    n, used = facts.integer("expert_count", 0), max(facts.layers("expert_used_count", 0))
    groups, groups_used = (
        facts.integer(name, 0) for name in ("expert_group_count", "expert_group_used_count")
    )
    if facts.architecture in ("hunyuan_vl", "hunyuan-dense") and n <= 1:
        return
    facts.require(n <= MAX_EXPERTS, f"it has {n} experts, more than {MAX_EXPERTS}")
    facts.require(
        used <= n and groups < max(n, 1), f"it uses {used} of {n} experts in {groups} groups"
    )
    facts.require(used > 0 or n == 0, f"it has {n} experts and uses none")
    if groups > 1:
        fits = n % groups == 0 and 0 < groups_used < groups
        facts.require(fits, f"it uses {groups_used} of {groups} groups of {n} experts")


def _check_tensors(facts: Facts) -> None:
    """Types and ranks with which llama.cpp's operations abort, or call what is not there."""
    used = facts.layers("expert_used_count", 0)
    for tensor in facts.tensors.values():
        name, rank = tensor.name, len(tensor.shape)
        while rank > 1 and tensor.shape[rank - 1] == 1:
            rank -= 1
        allowed = tensor.type not in _NO_WEIGHTS
        allowed |= tensor.type in _INDEX_TYPES and any(mark in name for mark in _INDICES)
        allowed &= tensor.type == "F32" or len(tensor.shape) > 1 or tensor.type in _INDEX_TYPES
        allowed &= tensor.type == "F32" or not (name.endswith(_FLOATS) or "norm." in name)
        facts.require(allowed, f"tensor {name!r} is of type {tensor.type}")
        fits = rank <= 2 or not name.endswith(_MATRICES)
        facts.require(fits and rank <= 3, f"tensor {name!r} has {rank} dimensions")
        number = name.removeprefix("blk.").partition(".")[0]
        layer = int(number) if number.isdecimal() else 0
        uses = layer >= len(used) or used[layer] > 0
        facts.require(uses or "exps." not in name, f"it uses none of the experts of {name!r}")


def _check_states(facts: Facts) -> None:
    if facts.architecture not in _SCANNED:
        return
    inner = facts.integer("ssm.inner_size", 0)
    size, groups = facts.integer("ssm.state_size", 0), facts.integer("ssm.group_count", 0)
    kernel, rank = facts.integer("ssm.conv_kernel", 0), facts.integer("ssm.time_step_rank", 0)
    plausible = all(0 < n < 1 << 20 for n in (inner, size, kernel, rank)) and groups < 1 << 16
    facts.require(plausible, f"its states are of {inner} times {size}, with kernels of {kernel}")
    if facts.architecture == "jamba":
        n_embd = facts.integer("embedding_length", 0)
        facts.require(inner == 2 * n_embd, f"its inner_size of {inner} is not twice {n_embd}")
    for tensor in facts.tensors.values():
        if not tensor.name.endswith((".ssm_a", ".ssm_a.weight")) or len(tensor.shape) < 2:
            continue
        first, n_heads = tensor.shape[:2]
        fits = inner == n_heads and size == first if first > 1 else inner % n_heads == 0
        fits &= first > 1 or n_heads % max(groups, 1) == 0
        facts.require(fits, f"its inner_size of {inner} is not that of {tensor.name!r}")


def _check_numbers(facts: Facts) -> None:
    scaling = facts.word("rope.scaling.type", "linear")
    facts.require(scaling in _ROPE_SCALINGS, f"its rope.scaling.type is {scaling[:40]!r}")
    for key, value in facts.metadata.items():
        if key.startswith("general.sampling.") and not key.endswith(".sequence"):
            numeric = isinstance(value, int | float) and not isinstance(value, bool)
            facts.require(numeric and math.isfinite(value), f"{key} is no number")  # type: ignore[arg-type]
        if not isinstance(value, float) or not key.startswith(f"{facts.architecture}."):
            continue
        facts.require(math.isfinite(value), f"{key} is {value}")
        facts.require(value >= 0 or "epsilon" not in key, f"{key} is {value}")


_RULES: tuple[Callable[[Facts], None], ...] = (
    _check_kind,
    _check_layers,
    _check_sizes,
    _check_heads,
    _check_sections,
    _check_windows,
    _check_experts,
    _check_tensors,
    _check_states,
    _check_numbers,
    check_vocabulary,
)
