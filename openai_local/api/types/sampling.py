"""How tokens are chosen: OpenAI's parameters, and llama-server's by their names there.

llama-server's defaults for these are not ours: what is not given does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from openai_local.api.types.common import Body
from openai_local.engine import SamplingParams
from openai_local.engine.sampler_steps import (
    MAX_BREAKER_BYTES,
    MAX_BREAKERS,
    STEPS,
    recommended,
)

MAX_BIASES = 1024
_INT32 = 2**31 - 1
_TOKEN_ID = re.compile(r"-?[0-9]+\Z")

# llama-server's letters, for an order that is one string.
_LETTERS = {
    "e": "penalties", "d": "dry", "s": "top_n_sigma", "k": "top_k", "y": "typ_p", "p": "top_p",
    "m": "min_p", "x": "xtc", "t": "temperature", "i": "infill",
}  # fmt: skip
_NAMES = {
    **{step: step for step in STEPS},
    **{step.replace("_", "-"): step for step in STEPS},
    **{step.replace("_", ""): step for step in STEPS},
    "nucleus": "top_p", "temp": "temperature", "typ": "typ_p", "typical_p": "typ_p",
}  # fmt: skip


def _order(given: list[str] | str) -> list[str]:
    names = _LETTERS if isinstance(given, str) else _NAMES
    steps = [names.get(name.lower()) for name in given]
    known = [step for step in steps if step is not None]
    if len(known) < len(steps) or len(set(known)) < len(known):
        raise ValueError(f"must name each of {', '.join(STEPS)} at most once, as llama-server does")
    return known


def _breaker(text: str) -> str:
    if not 0 < len(text.encode("utf-8", "replace")) <= MAX_BREAKER_BYTES or "\0" in text:
        raise ValueError(f"must have 1 to {MAX_BREAKER_BYTES} bytes, none of them zero")
    return text


# False forbids the token.
Bias = Annotated[float, Field(ge=-100, le=100)] | Literal[False]
BiasText = Annotated[str, Field(min_length=1, max_length=256)]
# A list in JSON, which a strict tuple would not be made of.
BiasPair = Annotated[tuple[int | BiasText, Bias], Field(strict=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Window = Annotated[int, Field(ge=-1, le=_INT32)]  # -1 is the whole context
Count = Annotated[int, Field(ge=0, le=_INT32)]


class SamplingBody(Body):
    """Ranges are the specification's where it has the parameter, and else what llama.cpp takes."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Share | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[dict[BiasText, Bias], Field(max_length=MAX_BIASES)]
        | Annotated[list[BiasPair], Field(max_length=MAX_BIASES)]
        | None
    ) = None
    top_k: Count | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    top_n_sigma: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    xtc_probability: Share | None = None
    xtc_threshold: Share | None = None
    dynatemp_range: Annotated[float, Field(ge=0, le=100)] | None = None
    dynatemp_exponent: Annotated[float, Field(ge=0, le=100)] | None = None
    # A literal 1 would take true, too.
    mirostat: Annotated[int, Field(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[float, Field(ge=0, le=100)] | None = None
    mirostat_eta: Share | None = None
    repeat_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    repeat_last_n: Window | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=100)] | None = None
    dry_base: Annotated[float, Field(ge=1, le=100)] | None = None
    dry_allowed_length: Count | None = None
    dry_penalty_last_n: Window | None = None
    dry_sequence_breakers: (
        Annotated[
            list[Annotated[str, AfterValidator(_breaker)]],
            Field(min_length=1, max_length=MAX_BREAKERS),
        ]
        | None
    ) = None
    min_keep: Count | None = None
    samplers: Annotated[list[str] | str, AfterValidator(_order)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None

    def sampling(
        self, defaults: Mapping[str, float], biases: Mapping[int, float], choice: int
    ) -> SamplingParams:
        """With the model's own ``defaults`` (GGUF names) for what the body leaves open.

        The seed of a choice is the body's plus its number, so that choices differ.
        """
        named = {
            name: getattr(self, name)
            for name in SamplingBody.model_fields
            if name not in ("logit_bias", "seed", "samplers", "dry_sequence_breakers")
        }
        given = {name: value for name, value in named.items() if value is not None}
        if self.samplers is not None:
            given["samplers"] = tuple(self.samplers)
        if self.dry_sequence_breakers is not None:
            given["dry_sequence_breakers"] = tuple(self.dry_sequence_breakers)
        seed = None if self.seed is None else self.seed + choice
        return SamplingParams(**{**recommended(defaults), **given}, logit_bias=biases, seed=seed)

    def biases(self, tokenize: Callable[[str], Sequence[int]]) -> dict[int, float]:
        """By token; one that is given several times gets the sum, as in llama-server."""
        biases: dict[int, float] = {}
        for what, bias in self.given_biases():
            value = float("-inf") if bias is False else float(bias)
            if isinstance(what, int):
                tokens: Sequence[int] = (what,)
            else:
                tokens = (int(what),) if _TOKEN_ID.match(what) else tokenize(what)
            for token in tokens:
                biases[token] = biases.get(token, 0.0) + value
        return biases

    def given_biases(self) -> Iterator[tuple[int | str, float | Literal[False]]]:
        if isinstance(self.logit_bias, dict):
            yield from self.logit_bias.items()
        else:
            yield from self.logit_bias or ()
