"""The body of POST /rerank, in Jina's shape. Types and ranges only, no behaviour."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from openai_local.api.types.common import MAX_PROMPTS, Body


class Document(Body):
    text: str


def _kind(given: Any) -> str:
    return "text" if isinstance(given, dict | Document) else "str"


AnyDocument = Annotated[
    Annotated[str, Tag("str")] | Annotated[Document, Tag("text")], Discriminator(_kind)
]


class RerankRequest(Body):
    model: str | None = None
    query: str
    documents: Annotated[
        list[AnyDocument], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)
    ]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None

    def texts(self) -> list[str]:
        return [d if isinstance(d, str) else d.text for d in self.documents]
