"""What several endpoints' bodies share: strictness, and one or many inputs."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Body(BaseModel):
    """A request body: types are not coerced, unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


# One or many, as text or as token ids; OpenAI's bound on how many.
MAX_PROMPTS = 2048
Texts = Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
Tokens = Annotated[list[int], Field(fail_fast=True, min_length=1)]
TokenLists = Annotated[list[Tokens], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
Prompts = str | Texts | Tokens | TokenLists
