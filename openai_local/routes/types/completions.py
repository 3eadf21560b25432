"""The body of POST /completions. Types and ranges only, no behaviour."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from openai_local.routes.types.common import GenerationBody, Prompts


class CompletionRequest(GenerationBody):
    model: str
    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0)] | None = None
