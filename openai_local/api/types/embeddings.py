"""The body of POST /embeddings. Types and ranges only, no behaviour."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from openai_local.api.types.common import MAX_PROMPTS, Body, Texts, TokenLists

# The specification bounds one list of token ids, and not the lists in a list.
Inputs = (
    str
    | Texts
    | Annotated[list[int], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
    | TokenLists
)


class EmbeddingRequest(Body):
    model: str
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None
