"""What can go wrong in the engine. Errors carry data; the routes turn them into HTTP.

EngineError
├── InvalidRequest         refused before any work: the caller's input
│   ├── PromptTooLong      the prompt cannot fit the longest sequence
│   ├── EmptyPrompt        nothing to compute
│   ├── InvalidToken       a token id outside the vocabulary
│   ├── InvalidSampling    a sampling parameter that no sampler takes
│   ├── InvalidConstraint  a schema, regex or grammar that says nothing
│   │   └── ConstraintUnsupported  one that cannot be enforced as it stands
│   └── Unsupported        the model cannot do what was asked
├── QueueFull              refused for now: too many requests wait already
├── DeadlineExceeded       it took longer than a request may
├── ModelLoadFailed        the file is missing, damaged, or too large
│   └── InvalidGguf        its header says that it is no file to give to llama.cpp
├── StepFailed             llama.cpp failed the step that this work was part of
└── EngineStopped          the engine was shut down before the work was done
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal


class EngineError(Exception):
    """Base of all errors that leave the engine."""


class InvalidRequest(EngineError):
    """The input can never be served; nothing was computed."""


class PromptTooLong(InvalidRequest):
    """The prompt has ``n_prompt`` tokens where at most ``n_max`` fit."""

    def __init__(self, n_prompt: int, n_max: int) -> None:
        super().__init__(f"the prompt has {n_prompt} tokens; at most {n_max} fit")
        self.n_prompt = n_prompt
        self.n_max = n_max


class EmptyPrompt(InvalidRequest):
    """There is no token to start from."""

    def __init__(self) -> None:
        super().__init__("the prompt has no tokens")


class InvalidToken(InvalidRequest):
    """``token``, in ``where``, is not in the vocabulary of ``n_vocab`` tokens."""

    def __init__(
        self,
        token: int,
        n_vocab: int,
        where: Literal["prompt", "logit_bias", "stop_token_ids"] = "prompt",
    ) -> None:
        super().__init__(f"token id {token} is outside the vocabulary of {n_vocab} tokens")
        self.token = token
        self.n_vocab = n_vocab
        self.where = where


class InvalidSampling(InvalidRequest):
    """``name`` has a value with which no token could be drawn."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")
        self.name = name


class Unsupported(InvalidRequest):
    """The model lacks an ability: ``ability`` names it."""

    def __init__(self, ability: str) -> None:
        super().__init__(f"the model does not support {ability}")
        self.ability = ability


class InvalidConstraint(InvalidRequest):
    """The schema, regex or grammar is wrong; ``keyword`` is what of it, None if all."""

    def __init__(self, keyword: str | None, reason: str) -> None:
        super().__init__(f"{keyword}: {reason}" if keyword else reason)
        self.keyword = keyword
        self.reason = reason


class ConstraintUnsupported(InvalidConstraint):
    """It may be right, but what ``keyword`` asks for cannot be enforced."""


class QueueFull(EngineError):
    """``n_unfinished`` generations run or wait, and no more than ``n_max`` may."""

    def __init__(self, n_unfinished: int, n_max: int) -> None:
        super().__init__(
            f"{n_unfinished} generations are running or waiting; at most {n_max} may: try later"
        )
        self.n_unfinished = n_unfinished
        self.n_max = n_max


class DeadlineExceeded(EngineError):
    """The generation was not finished within ``timeout_s`` of its arrival."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the request was not finished within {timeout_s:g} s")
        self.timeout_s = timeout_s


class ModelLoadFailed(EngineError):
    """The model at ``path`` could not be loaded; ``reason`` says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"cannot load {path}: {reason}")
        self.path = path
        self.reason = reason


class InvalidGguf(ModelLoadFailed):
    """The file at ``path`` is no GGUF file, is not whole, or contradicts itself."""


class StepFailed(EngineError):
    """The step failed; the work in it is lost, the engine goes on."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the engine's step failed: {reason}")
        self.reason = reason


class EngineStopped(EngineError):
    """The engine is shutting down or was never started."""

    def __init__(self) -> None:
        super().__init__("the engine is stopped")
