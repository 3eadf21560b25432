"""A model's metadata by the names that keys have in its architecture, and the types they must have.

Knows no rule of what the values may be: those are ``check.py``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openai_local.engine.errors import InvalidGguf
from openai_local.engine.gguf.file import TOKENS, Array, GgufFile, Tensor


class Facts:
    """What the parts of one model say. Every method raises InvalidGguf for another type."""

    def __init__(self, parts: Sequence[GgufFile]) -> None:
        self.path: Path = parts[0].path
        self.metadata = parts[0].metadata
        self.tensors: dict[str, Tensor] = {t.name: t for part in parts for t in part.tensors}
        self.architecture = self.text("general.architecture", "")
        self.n_layers = self.integer("block_count", 0)

    def refuse(self, reason: str) -> InvalidGguf:
        return InvalidGguf(self.path, reason)

    def require(self, condition: bool, reason: str) -> None:
        if not condition:
            raise self.refuse(reason)

    def has(self, name: str) -> bool:
        return f"{self.architecture}.{name}" in self.metadata

    def text(self, key: str, default: str) -> str:
        """By its whole key, as the next two."""
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise self.refuse(f"{key} is no string")
        return value

    def number(self, key: str, default: int) -> int:
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(f"{key} is no integer")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(f"{key} is neither true nor false")
        return value

    def word(self, name: str, default: str) -> str:
        """By its name within the architecture, as the next two."""
        return self.text(f"{self.architecture}.{name}", default)

    def integer(self, name: str, default: int) -> int:
        return self.number(f"{self.architecture}.{name}", default)

    def layers(self, name: str, default: int) -> tuple[int, ...]:
        """One number for each layer: said for each, or once for all."""
        key = f"{self.architecture}.{name}"
        value = self.metadata.get(key, default)
        if not isinstance(value, Array):
            return (self.number(key, default),) * self.n_layers
        numbers = value.values
        if len(numbers) != self.n_layers or not all(isinstance(n, int) for n in numbers):
            raise self.refuse(f"{key} has not one number for each layer")
        return tuple(map(int, numbers))

    @property
    def n_vocab(self) -> int:
        tokens = self.metadata.get(TOKENS)
        return tokens.n if isinstance(tokens, Array) else self.integer("vocab_size", 0)
