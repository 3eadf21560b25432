"""The body of POST /embeddings. Types and ranges only, no behaviour."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from openai_local.routes.types.common import Body, Prompts


class EmbeddingRequest(Body):
    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None
