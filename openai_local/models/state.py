"""What is told of models: where each stands, and what keeps the application from serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Value = Literal["unloaded", "waiting", "downloading", "loading", "loaded", "unloading", "failed"]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why requests would not be served now; ``code`` names it for programs."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ModelState:
    """What is of a model now; ``progress`` of its download or load is from 0 to 1."""

    value: Value
    progress: float = 0.0
    error: str | None = None
