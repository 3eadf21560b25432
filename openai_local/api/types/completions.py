"""The body of POST /completions. Types and ranges only, no behaviour."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from openai_local.api.types.common import Prompts
from openai_local.api.types.generation import GenerationBody


class CompletionRequest(GenerationBody):
    model: str
    prompt: Prompts | None = None
    suffix: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=0, le=20)] | None = None

    def n_logprobs(self) -> int | None:
        return super().n_logprobs() if self.logprobs is None else self.logprobs
