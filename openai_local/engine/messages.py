"""What crosses the engine's door, both ways. Frozen data; no behaviour, no HTTP, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. Defaults are OpenAI's; neutral values switch a step off.

    Applied in llama.cpp's order: bias and penalties on the logits, then top_k, top_p, min_p,
    temperature, and the draw. ``temperature`` 0 is greedy.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    seed: int | None = None


ConstraintKind = Literal["json_schema", "json_object", "regex", "choice", "lark", "gbnf"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a text must be. ``text`` is a JSON schema, nothing for any JSON object, a regex, a
    JSON list of texts, or a grammar.

    With ``after``, such as "</think>", it holds for what follows that marker, and until then the
    text is free, but must not end. With ``opening`` too, such as "<think>", there is a free part
    only if the text begins with that.
    """

    kind: ConstraintKind
    text: str = ""
    after: str = ""
    opening: str = ""


class CompiledConstraint(Protocol):
    """What :meth:`Engine.compile` gives, for requests to the same engine."""

    @property
    def constraint(self) -> Constraint: ...


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One generation: a prompt of token ids and what bounds its continuation.

    ``max_tokens`` None means until the context is full. Prompts share what was computed of them
    only within one ``cache_salt``, so that nobody can probe another's prompts by their speed.
    A higher ``priority`` is served earlier, but nobody starves.
    """

    prompt_tokens: Sequence[int]
    max_tokens: int | None = None
    sampling: SamplingParams = SamplingParams()
    stop: tuple[str, ...] = ()
    cache_salt: str = ""
    priority: int = 0
    constraint: CompiledConstraint | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts; ``n_cached`` is the part of ``n_prompt`` that was not computed again."""

    n_prompt: int
    n_completion: int
    n_cached: int


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the text; never ends inside a character or a possible stop string."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a generation that ended well."""

    reason: FinishReason
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a generation that did not."""

    error: Exception


Event = TextDelta | Finished | Failed


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a loaded model. Sizes are in tokens, ``n_params`` in weights."""

    path: str
    description: str
    n_params: int
    n_vocab: int
    n_embd: int
    n_ctx_train: int
    n_ctx: int
    n_parallel: int
    can_generate: bool
    chat_template: str | None
    bos_token: str
    eos_token: str
    sampling_defaults: Mapping[str, float]
