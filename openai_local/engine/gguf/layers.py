"""What each layer of a model keeps of a sequence, as far as its header tells.

An architecture that is not known here counts as one whose layers keep all: more, never less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from openai_local.engine.gguf.facts import Facts
from openai_local.engine.gguf.file import Array

# Where a file does not say which layers have a window: all but one of so many; the one is the
# last of them, or where it is negative, the first (``load_swa_pattern`` in ``models/*.cpp``).
_PERIODS: Mapping[str, int] = {
    "afmoe": 4, "cohere2": 4, "cohere2moe": -4, "exaone-moe": 4, "exaone4": 4,
    "gemma-embedding": 6, "gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "laguna": -4,
    "llama4": 4, "mellum": 4, "modern-bert": -3, "muse-glimmer": 4, "olmo2": 4, "plamo3": 8,
    "smallthinker": -4,
}  # fmt: skip
# These say it, layer by layer.
_PATTERNED = frozenset("dots3note gemma4 granite_swa maple mimo2 spark2_5 step35".split())
_ATTENDING_WINDOWED = frozenset(("lfm2", "lfm2moe"))
# What they take where the file has no sliding_window.
_WINDOWS: Mapping[str, int] = {"exaone4": 4096, "exaone-moe": 128, "gemma2": 4096}
_LLAMA4_CHUNK = 8192

_STATES = (".ssm_", ".shortconv.", ".time_mix_")
_KEYS = (".attn_k.weight", ".attn_kv_a_mqa.weight", ".attn_k_b.weight")


@dataclass(frozen=True, slots=True)
class Layer:
    """``n_key`` and ``n_value`` numbers of each token, of the last ``n_window`` if that is not 0;
    and ``n_state`` of the whole sequence, however long."""

    n_key: int = 0
    n_value: int = 0
    n_window: int = 0
    n_state: int = 0


def layers_of(facts: Facts) -> tuple[Layer, ...]:
    """One for each layer that a sequence goes through. Raises InvalidGguf."""
    n = facts.n_layers - facts.integer("nextn_predict_layers", 0)
    window, windowed = windows(facts)
    heads = facts.layers("attention.head_count", 0)
    kv_heads = (
        facts.layers("attention.head_count_kv", 0)
        if facts.has("attention.head_count_kv")
        else heads
    )
    attends, has_state = _kinds(facts, n)
    state = _state(facts)
    layers = []
    for i in range(n):
        n_key, n_value = head_sizes(facts, windowed=windowed[i]) if attends[i] else (0, 0)
        if facts.has("attention.key_length_mla"):
            n_value = 0  # it is a part of the key
        layers.append(
            Layer(
                n_key * kv_heads[i],
                n_value * kv_heads[i],
                window if windowed[i] else 0,
                state if has_state[i] else 0,
            )
        )
    return tuple(layers)


def windows(facts: Facts) -> tuple[int, tuple[bool, ...]]:
    """How many tokens a window has, and which layers have one; 0 and none without."""
    arch, n = facts.architecture, facts.n_layers
    none = 0, (False,) * n
    window = facts.integer("attention.sliding_window", _WINDOWS.get(arch, 0))
    if arch == "llama4":
        window = _LLAMA4_CHUNK if window or not facts.has("attention.sliding_window") else 0
    if window <= 0 or (arch == "exaone4" and n != 64):  # the larger of two sizes has windows
        return none
    if arch in _ATTENDING_WINDOWED:
        return window, tuple(n_kv > 0 for n_kv in facts.layers("attention.head_count_kv", 0))
    if arch not in _PERIODS and arch not in _PATTERNED:
        return none
    pattern = facts.metadata.get(f"{arch}.attention.sliding_window_pattern")
    if isinstance(pattern, Array):
        flags = tuple(map(bool, pattern.values[:n]))
        return window, flags + (False,) * (n - len(flags))
    period = facts.integer("attention.sliding_window_pattern", abs(_PERIODS.get(arch, 1)))
    n_trunk = n - facts.integer("nextn_predict_layers", 0)
    dense = 0 if _PERIODS.get(arch, 0) < 0 else period - 1
    return window, tuple(i < n_trunk and (period == 0 or i % period != dense) for i in range(n))


def head_sizes(facts: Facts, *, windowed: bool) -> tuple[int, int]:
    """Numbers of one head's key and of its value."""
    heads = facts.layers("attention.head_count", 0)
    default = facts.integer("embedding_length", 0) // max(heads[0], 1) if heads and heads[0] else 0
    sizes = []
    for name in ("attention.key_length", "attention.value_length"):
        size = facts.integer(name, default)
        sizes.append(facts.integer(f"{name}_swa", size) if windowed else size)
    return sizes[0], sizes[1]


def _kinds(facts: Facts, n: int) -> tuple[list[bool], list[bool]]:
    """Which layers attend, and which have a state: their tensors tell."""
    tensors: list[list[str]] = [[] for _ in range(n)]
    for name in facts.tensors:
        _, _, rest = name.partition("blk.")
        number = rest.partition(".")[0]
        if number.isdecimal() and int(number) < n:
            tensors[int(number)].append(name)
    has_state = [any(mark in name for name in names for mark in _STATES) for names in tensors]
    attends = [
        any(name.endswith(_KEYS) or (".attn_qkv." in name and not state) for name in names)
        for names, state in zip(tensors, has_state, strict=True)
    ]
    # The last layers of some take the keys and values of earlier ones.
    n_shared = facts.integer("attention.shared_kv_layers", 0)
    own = 20 if facts.architecture == "gemma3n" else facts.n_layers - n_shared
    return [attend and i < own for i, attend in enumerate(attends)], has_state


def _state(facts: Facts) -> int:
    """Numbers of a layer's state (``n_embd_r`` and ``n_embd_s`` in ``llama-hparams.cpp``)."""
    n_embd = facts.integer("embedding_length", 0)
    kernel = facts.integer("ssm.conv_kernel", 0)
    if facts.has("wkv.head_size"):
        return n_embd * (facts.integer("token_shift_count", 2) + facts.integer("wkv.head_size", 0))
    if facts.has("shortconv.l_cache"):
        return n_embd * max(facts.integer("shortconv.l_cache", 1) - 1, 0)
    if facts.has("kda.head_dim"):
        head = facts.integer("kda.head_dim", 0)
        n_heads = facts.layers("attention.head_count", 0)[0]
        return n_heads * head * (3 * (kernel - 1 if kernel else 3) + head)
    inner, size = facts.integer("ssm.inner_size", 0), facts.integer("ssm.state_size", 0)
    groups = facts.integer("ssm.group_count", 0)
    return max(kernel - 1, 0) * (inner + 2 * groups * size) + size * inner
