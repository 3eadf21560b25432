"""What crosses the engine's door, both ways. Frozen data; no behaviour, no HTTP, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. Defaults are OpenAI's; neutral values switch a step off.

    Applied in llama.cpp's order: bias, then the steps of ``samplers``, ``sampler_steps.ORDER``
    unless given, and the draw. ``temperature`` 0 is greedy. A bias of -inf forbids a token.
    The presence and frequency penalties count the generated text, ``repeat_penalty`` the last
    ``repeat_last_n`` tokens, the prompt's included. ``mirostat`` (1 or 2) takes the place of all
    steps but penalties and temperature. Before ``min_tokens`` nothing that would end the
    generation is drawn.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    min_keep: int = 0
    samplers: tuple[str, ...] | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    min_tokens: int = 0
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
class ThoughtLimit:
    """``end`` comes after ``n_tokens`` of a thought at the latest. With an ``opening``, there is a
    thought only if the text begins with that; else it begins within one."""

    n_tokens: int
    end: str
    opening: str = ""


@dataclass(frozen=True, slots=True)
class UnstoppedText:
    """From where one of ``marks`` begins, or of ``first`` with nothing but space before it, no
    stop string ends a text."""

    marks: tuple[str, ...] = ()
    first: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One generation: a prompt of token ids and what bounds its continuation.

    ``max_tokens`` None means until the context is full. Prompts share what was computed of them
    only within one ``cache_salt``, so that nobody can probe another's prompts by their speed.
    A higher ``priority`` is served earlier, but nobody starves. ``reuse`` False has the whole
    prompt computed.

    ``logprobs``: so many alternatives are told of each token, with the token's own. With
    ``prompt_logprobs`` of the prompt's tokens too, which has it computed in full. A token of
    ``stop_tokens`` ends the text as an end-of-generation token does. ``max_seconds`` ends it at
    the first token that comes so long after the first one, once there was a line break.
    The control tokens in ``visible_tokens`` are part of the text, by their names. What is
    ``in_memory`` is never written to disk, and shares prompts with its like alone.
    """

    prompt_tokens: Sequence[int]
    max_tokens: int | None = None
    sampling: SamplingParams = SamplingParams()
    stop: tuple[str, ...] = ()
    cache_salt: str = ""
    priority: int = 0
    reuse: bool = True
    logprobs: int | None = None
    prompt_logprobs: bool = False
    stop_tokens: tuple[int, ...] = ()
    max_seconds: float | None = None
    progress: bool = False
    timings: bool = False
    constraint: CompiledConstraint | None = None
    visible_tokens: frozenset[int] = frozenset()
    thought: ThoughtLimit | None = None
    unstopped: UnstoppedText | None = None
    in_memory: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts; ``n_cached`` is the part of ``n_prompt`` that was not computed again."""

    n_prompt: int
    n_completion: int
    n_cached: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the model's log-probability of it, before bias, penalties and temperature.

    ``piece`` is its bytes, which a control token has none of; that one has a ``name``. The
    ``logprob`` is None for a prompt's first token. ``top`` are the likeliest tokens at its place.
    """

    token: int
    piece: bytes
    name: str
    logprob: float | None
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """What a generation took until now. ``prompt_s`` is of ``n_prompt`` tokens, those that were
    computed; ``generation_s`` runs from the first of ``n_generated`` tokens to the last."""

    n_cached: int
    n_prompt: int
    prompt_s: float
    n_generated: int
    generation_s: float


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """``n_done`` of a prompt's ``n_total`` tokens are there after ``seconds``, ``n_cached`` of
    them from earlier."""

    n_total: int
    n_cached: int
    n_done: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """All of the prompt's tokens, before the first TextDelta."""

    tokens: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the text; never ends inside a character or a possible stop string.

    ``logprobs`` are of the tokens whose text ends in it, where they were asked for; ``n_tokens``
    is how many tokens came since the piece before.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    timings: Timings | None = None
    n_tokens: int = 1


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a generation that ended well.

    ``logprob`` is the sum over all tokens of the completion, where logprobs were asked for.
    """

    reason: FinishReason
    usage: Usage
    logprob: float | None = None
    timings: Timings | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a generation that did not."""

    error: Exception


Output = TextDelta | PromptLogprobs | PromptProgress | Finished
Event = Output | Failed


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a loaded model. Sizes are in tokens, ``n_params`` in weights, ``n_bytes_``
    in bytes. ``n_gpu_layers`` of ``n_layers``, of which the output is one, are on ``gpus``.

    One that ``can_rank`` gives a score to a query and a document together, and no vectors; its
    ``rerank_template`` has ``{query}`` and ``{document}`` in it.
    """

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
    can_rank: bool = False
    rerank_template: str | None = None
    n_layers: int = 0
    n_gpu_layers: int = 0
    gpus: tuple[str, ...] = ()
    n_bytes_weights: int = 0
    n_bytes_kv: int = 0
