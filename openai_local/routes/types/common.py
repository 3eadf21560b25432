"""What the generating endpoints share: sampling, stops, streaming."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from openai_local.engine import SamplingParams


class Body(BaseModel):
    """A request body: types are not coerced, unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
StopString = Annotated[str, Field(min_length=1)]


# One or many, as text or as token ids; OpenAI's bound on how many.
MAX_PROMPTS = 2048
MAX_BIASES = 1024
Tokens = Annotated[list[int], Field(fail_fast=True, min_length=1)]
Prompts = (
    str
    | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
    | Tokens
    | Annotated[list[Tokens], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
)


class GenerationBody(Body):
    """The parameters that /chat/completions and /completions have in common.

    ``top_k``, ``min_p``, ``repeat_penalty`` and ``ignore_eos`` are llama.cpp's.
    """

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | Annotated[list[StopString], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[TokenId, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES)
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    ignore_eos: bool | None = None

    def stops(self) -> tuple[str, ...]:
        if not self.stop:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def sampling(self, defaults: Mapping[str, float], choice: int) -> SamplingParams:
        """With the model's own ``defaults`` (GGUF names) for what the body leaves open.

        The seed of a choice is the body's plus its number, so that choices differ.
        """

        def value(given: float | None, key: str, neutral: float) -> float:
            return defaults.get(key, neutral) if given is None else given

        return SamplingParams(
            temperature=value(self.temperature, "temp", 1.0),
            top_p=value(self.top_p, "top_p", 1.0),
            top_k=int(value(self.top_k, "top_k", 0)),
            min_p=value(self.min_p, "min_p", 0.0),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repeat_penalty=1.0 if self.repeat_penalty is None else self.repeat_penalty,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            ignore_eos=bool(self.ignore_eos),
            seed=None if self.seed is None else self.seed + choice,
        )
