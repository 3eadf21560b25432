"""Refuses model files whose header contradicts itself where llama.cpp asserts that it does not.

An assertion there, or a C++ exception outside of the load, ends the host's process; what llama.cpp
itself refuses with a reason while it loads is left to it. The numbers are of llama.cpp 0c1e57098.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from openai_local.engine.errors import InvalidGguf
from openai_local.engine.gguf import TOKEN_TYPES, TOKENS, Array, GgufFile, Tensor, read_model

MAX_LAYERS = 512
MAX_EXPERTS = 1024
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_POOLINGS = range(-1, 5)
_NULL = -1

# Bos, eos, sep, where a file does not say; and whether bos and sep begin and end a text.
_SPECIAL: Mapping[str, tuple[int, int, int]] = {
    "llama": (1, 2, _NULL),
    "bert": (101, _NULL, 102),
    "gpt2": (11, 11, _NULL),
    "t5": (_NULL, 1, _NULL),
    "gemma4": (_NULL, _NULL, _NULL),
}
_BYTE = 6

# Their graphs assert that all of a head is rotated.
_WHOLE_ROTATION = frozenset(
    "apertus arcee arctic baichuan chameleon codeshell cogvlm cohere2moe dbrx deci deepseek dots1"
    " dream ernie4_5 ernie4_5-moe exaone exaone-moe exaone4 falcon granite granitemoe granite_swa"
    " graniteswitch grok grovemoe hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 internlm2 jais2 llada"
    " llada-moe llama llama-embed llama4 maincoder mellum mistral3 olmo olmo2 olmoe orion paddleocr"
    " pangu-embedded plamo pockettts qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe rnd1"
    " seed_oss smallthinker smollm3 starcoder2 talkie xverse".split()
)
# In all others the heads of keys and values have one size.
_UNEQUAL_HEADS = frozenset(
    "bailingmoe3 deepseek2 deepseek2-ocr deepseek32 deepseek4 dots3note glm-dsa glm5-next hy_v4"
    " kimi-k3 kimi-linear mimo2 minicpm3 mistral4 plamo2 plm step35".split()
)


def read_checked(path: Path) -> tuple[GgufFile, ...]:
    """The parts of a model, of which ``path`` is the first, if llama.cpp can be given them.

    Raises InvalidGguf with what is wrong.
    """
    parts = read_model(path)
    model = _Model(parts)
    for rule in _RULES:
        rule(model)
    return parts


class _Model:
    """The metadata under the names that keys have in the architecture. Refuses wrong types."""

    def __init__(self, parts: Sequence[GgufFile]) -> None:
        self.path: Path = parts[0].path
        self.metadata = parts[0].metadata
        self.types = parts[0].types
        self.tensors: dict[str, Tensor] = {t.name: t for part in parts for t in part.tensors}
        self.architecture = self.text("general.architecture", "")
        if not self.architecture:
            raise self.refuse("it does not say its architecture")
        self.n_layers = self.integer("block_count", 0)

    def refuse(self, reason: str) -> InvalidGguf:
        return InvalidGguf(self.path, reason)

    def require(self, condition: bool, reason: str) -> None:
        if not condition:
            raise self.refuse(reason)

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def text(self, key: str, default: str) -> str:
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise self.refuse(f"{key} is no string")
        return value

    def number(self, key: str, default: int) -> int:
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(f"{key} is no integer")
        return value

    def integer(self, name: str, default: int) -> int:
        return self.number(self.key(name), default)

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(f"{key} is neither true nor false")
        return value

    def layers(self, name: str, default: int) -> tuple[int, ...]:
        """One number for each layer: said for each, or once for all."""
        value = self.metadata.get(self.key(name), default)
        if not isinstance(value, Array):
            return (self.integer(name, default),) * self.n_layers
        numbers = value.values
        if len(numbers) != self.n_layers or not all(isinstance(n, int) for n in numbers):
            raise self.refuse(f"{self.key(name)} has not one number for each layer")
        return numbers


def _check_layers(model: _Model) -> None:
    n = model.n_layers
    model.require(1 <= n <= MAX_LAYERS, f"it has {n} layers, not 1 to {MAX_LAYERS}")
    n_next = model.integer("nextn_predict_layers", 0)
    model.require(n_next < n, f"{n_next} of its {n} layers are for predictions ahead")


def _check_sizes(model: _Model) -> None:
    n_embd = model.integer("embedding_length", 0)
    model.require(0 < n_embd < 1 << 24, f"its embeddings have {n_embd} dimensions")
    pooling = model.integer("pooling_type", _NULL)
    model.require(pooling in _POOLINGS, f"its pooling_type is {pooling}")


def _check_heads(model: _Model) -> None:
    heads = model.layers("attention.head_count", 0)
    kv_heads = heads
    if model.key("attention.head_count_kv") in model.metadata:
        kv_heads = model.layers("attention.head_count_kv", 0)
    for n, n_kv in zip(heads, kv_heads, strict=True):
        plausible = 0 <= n < 1 << 16 and 0 <= n_kv < 1 << 16
        model.require(plausible, f"it has {n} heads, {n_kv} of keys")
        if n and n_kv:
            model.require(n % n_kv == 0, f"its {n} heads cannot share {n_kv} of keys")
    if heads[0] == 0:
        return
    n_embd, known = model.integer("embedding_length", 0), model.metadata
    if model.key("attention.key_length") not in known:
        whole = n_embd % heads[0] == 0
        model.require(whole, f"{n_embd} dimensions cannot be shared by {heads[0]} heads")
    for suffix in ("", "_swa"):
        n_key = model.integer(f"attention.key_length{suffix}", n_embd // heads[0])
        n_value = model.integer(f"attention.value_length{suffix}", n_embd // heads[0])
        plausible = 0 < n_key < 1 << 16 and 0 < n_value < 1 << 16
        equal = n_key == n_value or model.architecture in _UNEQUAL_HEADS
        reason = f"its heads have {n_key} dimensions for keys, {n_value} for values"
        model.require(plausible and equal, reason)
        n_rot = model.integer(f"rope.dimension_count{suffix}", n_key)
        fits = n_rot <= n_key and n_rot % 2 == 0
        fits &= n_rot == n_key or model.architecture not in _WHOLE_ROTATION
        model.require(fits, f"{n_rot} of the {n_key} dimensions of its heads are rotated")


def _check_experts(model: _Model) -> None:
    n, used = model.integer("expert_count", 0), max(model.layers("expert_used_count", 0))
    groups, groups_used = (
        model.integer(name, 0) for name in ("expert_group_count", "expert_group_used_count")
    )
    if model.architecture in ("hunyuan_vl", "hunyuan-dense") and n <= 1:
        return
    model.require(n <= MAX_EXPERTS, f"it has {n} experts, more than {MAX_EXPERTS}")
    model.require(
        used <= n and groups < max(n, 1), f"it uses {used} of {n} experts in {groups} groups"
    )
    model.require(used > 0 or n == 0, f"it has {n} experts and uses none")
    if groups > 1:
        fits = n % groups == 0 and 0 < groups_used < groups
        model.require(fits, f"it uses {groups_used} of {groups} groups of {n} experts")


def _check_numbers(model: _Model) -> None:
    scaling = model.text(model.key("rope.scaling.type"), "linear")
    model.require(scaling in _ROPE_SCALINGS, f"its rope.scaling.type is {scaling[:40]!r}")
    for key, value in model.metadata.items():
        if not isinstance(value, float):
            continue
        model.require(math.isfinite(value), f"{key} is {value}")
        model.require(value >= 0 or "epsilon" not in key, f"{key} is {value}")


def _check_vocabulary(model: _Model) -> None:
    kind = model.text("tokenizer.ggml.model", "none")
    tokens = model.metadata.get(TOKENS)
    if not isinstance(tokens, Array) or tokens.type != "string":
        return  # llama.cpp refuses it, or there is none
    known = set(tokens.values)
    if b"" in known:  # an empty one gets a name of its own
        known |= {b"[EMPTY_%d]" % i for i, text in enumerate(tokens.values) if not text}
        known.remove(b"")
    model.require(len(known) == tokens.n, "its vocabulary has a token twice")
    _check_size(model, tokens.n)
    _check_special(model, kind, tokens.n)
    types = model.metadata.get(TOKEN_TYPES)
    if kind == "bert" and isinstance(types, Array):
        model.require(_BYTE not in types.values, "its vocabulary has bytes, which BERT's cannot")
    if kind == "llama":
        missing = [b for b in range(256) if not known & {b"<0x%02X>" % b, bytes([b])}]
        model.require(not missing, f"its vocabulary has no token for {len(missing)} of 256 bytes")


def _check_size(model: _Model, n_tokens: int) -> None:
    embeddings = model.tensors.get("token_embd.weight")
    if embeddings is not None and len(embeddings.shape) == 2:
        n_rows = embeddings.shape[1]
        model.require(
            n_rows == n_tokens, f"it has {n_tokens} tokens, and embeddings for {n_rows} of them"
        )


def _check_special(model: _Model, kind: str, n_tokens: int) -> None:
    """What is put before and after every text must be in the vocabulary."""
    if kind not in _SPECIAL:
        return
    ids = dict(zip(("bos", "eos", "seperator"), _SPECIAL[kind], strict=True))
    for name, default in ids.items():
        given = model.number(f"tokenizer.ggml.{name}_token_id", default)
        ids[name] = given if 0 <= given < n_tokens else default
    adds = {"bos": kind != "t5", "eos": kind == "t5", "seperator": False}
    adds = {
        name: model.flag(f"tokenizer.ggml.add_{name}_token", default)
        for name, default in adds.items()
    }
    if kind == "bert":
        adds = {"bos": True, "eos": False, "seperator": True}
    elif kind == "gemma4":
        adds["bos"] = True
    for name, added in adds.items():
        known = 0 <= ids[name] < n_tokens or not added or (name == "seperator" and kind != "bert")
        model.require(known, f"texts get a {name} token, and its vocabulary has none")


_RULES: tuple[Callable[[_Model], None], ...] = (
    _check_layers,
    _check_sizes,
    _check_heads,
    _check_experts,
    _check_numbers,
    _check_vocabulary,
)
