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
from openai_local.engine.gguf.check import read_checked
from openai_local.engine.gguf.facts import Facts
from openai_local.engine.gguf.file import TOKENS, Array, GgufFile, Tensor
from openai_local.engine.gguf.layers import Layer, layers_of

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

# They keep nothing of what they read, whatever their files say (``create_memory``).
_ENCODERS = frozenset(
    "bert dream eurobert gemma-embedding jina-bert-v2 jina-bert-v3 llada llada-moe modern-bert"
    " neo-bert nomic-bert nomic-bert-moe rnd1 wavtokenizer-dec".split()
)

Pooling = Literal["none", "mean", "cls", "last", "rank"]
_POOLINGS: tuple[Pooling, ...] = ("none", "mean", "cls", "last", "rank")

Purpose = Literal["generation", "embedding", "reranking"]


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The facts of a model's header; sizes are in bytes or tokens, of all its parts together.

    ``n_heads`` and ``n_kv_heads`` are those of each layer, ``layers`` what each keeps. ``pooling``
    is None where the file does not say. ``metadata`` has all that the file says, lists as their
    values where there are few.
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
    bos_token: str
    eos_token: str
    pooling: Pooling | None
    causal: bool
    purpose: Purpose
    licence: str | None
    layers: tuple[Layer, ...]
    metadata: Mapping[str, object]
    tensors: tuple[Tensor, ...]

    @property
    def n_weight_bytes(self) -> int:
        """What the tensors take, in the file and in memory."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    def integer(self, name: str) -> int:
        """What the file says under a name of its architecture, the largest if it is of layers; 0
        if it does not say it."""
        value = self.metadata.get(f"{self.architecture}.{name}", 0)
        values = value if isinstance(value, list) else [value]
        return max((n for n in values if isinstance(n, int)), default=0)


def read_header(path: Path) -> GgufHeader:
    """What the model is whose file, or the first part of whose file, is at ``path``.

    Takes milliseconds, also for the largest. Raises InvalidGguf, whose ``reason`` says why, for
    whatever an engine would refuse to open.
    """
    return _header(read_checked(path))


def _header(parts: tuple[GgufFile, ...]) -> GgufHeader:
    facts, first = Facts(parts), parts[0]
    tensors = tuple(facts.tensors.values())
    pooling = facts.integer("pooling_type", -1)
    named = _POOLINGS[pooling] if 0 <= pooling < len(_POOLINGS) else None
    causal = facts.flag(f"{facts.architecture}.attention.causal", True)
    causal &= facts.architecture not in _ENCODERS
    heads = facts.layers("attention.head_count", 0)
    given = facts.has("attention.head_count_kv")
    return GgufHeader(
        path=first.path,
        version=first.version,
        n_parts=len(parts),
        n_bytes=sum(part.n_bytes for part in parts),
        architecture=facts.architecture,
        name=facts.text("general.name", "") or None,
        quantization=_quantization(first.metadata.get("general.file_type"), tensors),
        n_params=sum(tensor.n_elements for tensor in tensors),
        n_layers=facts.n_layers,
        n_ctx_train=facts.integer("context_length", 0),
        n_embd=facts.integer("embedding_length", 0),
        n_heads=heads,
        n_kv_heads=facts.layers("attention.head_count_kv", 0) if given else heads,
        n_vocab=facts.n_vocab,
        n_experts=facts.integer("expert_count", 0),
        n_experts_used=max(facts.layers("expert_used_count", 0)),
        chat_template=facts.text("tokenizer.chat_template", "") or None,
        bos_token=_token(facts, "bos"),
        eos_token=_token(facts, "eos"),
        pooling=named,
        causal=causal,
        purpose=_purpose(named, tensors, causal=causal),
        licence=facts.text("general.license", "") or None,
        layers=layers_of(facts),
        metadata={key: _plain(value) for key, value in first.metadata.items()},
        tensors=tensors,
    )


def _token(facts: Facts, name: str) -> str:
    """A special token's text; empty if the file names none."""
    tokens = facts.metadata.get(TOKENS)
    number = facts.number(f"tokenizer.ggml.{name}_token_id", -1)
    if not isinstance(tokens, Array) or not 0 <= number < len(tokens.values):
        return ""
    text: bytes = tokens.values[number]
    return text.decode(errors="replace")


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
