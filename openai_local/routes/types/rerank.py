"""The body of POST /rerank, in Jina's shape. Types and ranges only, no behaviour."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from openai_local.routes.types.common import MAX_PROMPTS, Body


class Document(Body):
    text: str


class RerankRequest(Body):
    model: str | None = None
    query: str
    documents: Annotated[
        list[str | Document], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)
    ]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None

    def texts(self) -> list[str]:
        return [d if isinstance(d, str) else d.text for d in self.documents]
