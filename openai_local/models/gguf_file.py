"""What a model file is, from its header alone: shown, and counted with, before anything is loaded.

Knows no llama.cpp; a file whose header comes out of here has been checked as the engine checks it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openai_local.engine.errors import InvalidGguf
from openai_local.engine.gguf import TOKENS, Array, GgufFile, Tensor
from openai_local.engine.gguf_check import read_checked

__all__ = ["GgufHeader", "InvalidGguf", "read_header"]

# llama.h, enum llama_ftype.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4",
    40: "Q1_0", 41: "Q2_0",
}  # fmt: skip

Pooling = Literal["none", "mean", "cls", "last", "rank"]
_POOLINGS: tuple[Pooling, ...] = ("none", "mean", "cls", "last", "rank")

Purpose = Literal["generation", "embedding", "reranking"]


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The facts of a model's header; sizes are in bytes or tokens, of all its parts together.

    ``n_heads`` and ``n_kv_heads`` are those of each layer. ``pooling`` is None where the file does
    not say. ``metadata`` has all that the file says, lists as their values where there are few.
    """

    path: Path
    version: int
    n_parts: int
    n_bytes: int
    architecture: str
    name: str | None
    quantization: str
    n_params: int
    n_layers: int
    n_ctx_train: int
    n_embd: int
    n_heads: tuple[int, ...]
    n_kv_heads: tuple[int, ...]
    n_vocab: int
    n_experts: int
    n_experts_used: int
    chat_template: str | None
    pooling: Pooling | None
    causal: bool
    purpose: Purpose
    licence: str | None
    metadata: Mapping[str, object]
    tensors: tuple[Tensor, ...]

    @property
    def n_weight_bytes(self) -> int:
        """What the tensors take, in the file and in memory."""
        return sum(tensor.n_bytes for tensor in self.tensors)


def read_header(path: Path) -> GgufHeader:
    """What the model is whose file, or the first part of whose file, is at ``path``.

    Takes milliseconds, also for the largest. Raises InvalidGguf, whose ``reason`` says why, for
    whatever an engine would refuse to open.
    """
    return _header(read_checked(path))


def _header(parts: tuple[GgufFile, ...]) -> GgufHeader:
    first = parts[0]
    facts = _Facts(first)
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    n_layers = facts.integer("block_count")
    pooling = facts.integer("pooling_type", -1)
    causal = facts.of("attention.causal") is not False
    n_heads = facts.of_layers("attention.head_count", n_layers)
    named = _POOLINGS[pooling] if 0 <= pooling < len(_POOLINGS) else None
    return GgufHeader(
        path=first.path,
        version=first.version,
        n_parts=len(parts),
        n_bytes=sum(part.n_bytes for part in parts),
        architecture=facts.architecture,
        name=facts.text("general.name"),
        quantization=_quantization(facts.first.metadata.get("general.file_type"), tensors),
        n_params=sum(tensor.n_elements for tensor in tensors),
        n_layers=n_layers,
        n_ctx_train=facts.integer("context_length"),
        n_embd=facts.integer("embedding_length"),
        n_heads=n_heads,
        n_kv_heads=facts.of_layers("attention.head_count_kv", n_layers) or n_heads,
        n_vocab=facts.n_vocab,
        n_experts=facts.integer("expert_count"),
        n_experts_used=max(facts.of_layers("expert_used_count", n_layers), default=0),
        chat_template=facts.text("tokenizer.chat_template"),
        pooling=named,
        causal=causal,
        purpose=_purpose(named, tensors, causal=causal),
        licence=facts.text("general.license"),
        metadata={key: _plain(value) for key, value in first.metadata.items()},
        tensors=tensors,
    )


class _Facts:
    """The metadata of a model's first part, by the name that a key has in its architecture."""

    def __init__(self, first: GgufFile) -> None:
        self.first = first
        self.architecture = self.text("general.architecture") or ""

    def of(self, key: str) -> object:
        return self.first.metadata.get(f"{self.architecture}.{key}")

    def text(self, key: str) -> str | None:
        value = self.first.metadata.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str, default: int = 0) -> int:
        value = self.of(key)
        return value if isinstance(value, int) else default

    def of_layers(self, key: str, n_layers: int) -> tuple[int, ...]:
        """What each layer has of something, which is said once or for each."""
        value = self.of(key)
        if isinstance(value, Array):
            return value.values
        return (value,) * n_layers if isinstance(value, int) else ()

    @property
    def n_vocab(self) -> int:
        tokens = self.first.metadata.get(TOKENS)
        return tokens.n if isinstance(tokens, Array) else self.integer("vocab_size")


def _quantization(file_type: object, tensors: tuple[Tensor, ...]) -> str:
    """What the file says, else the type that most of its weights have."""
    if isinstance(file_type, int) and file_type in _FILE_TYPES:
        return _FILE_TYPES[file_type]
    types: Counter[str] = Counter()
    for tensor in tensors:
        types[tensor.type] += tensor.n_elements
    return max(types, key=lambda name: types[name], default="none")


def _purpose(pooling: Pooling | None, tensors: tuple[Tensor, ...], *, causal: bool) -> Purpose:
    if pooling == "rank":
        return "reranking"
    names = {tensor.name for tensor in tensors}
    generates = causal and names & {"output.weight", "output_norm.weight", "token_embd_norm.weight"}
    return "generation" if generates and pooling is None else "embedding"


def _plain(value: object) -> object:
    if not isinstance(value, Array):
        return value
    if value.type != "string" and len(value.values) == value.n <= 512:
        return list(value.values)
    return f"{value.n} of {value.type}"
