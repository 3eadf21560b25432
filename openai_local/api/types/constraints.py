"""What a text must be: OpenAI's response formats, llama-server's and vLLM's. Types only."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from openai_local.api.types.common import Body

Schema = dict[str, Any]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class TextFormat(Body):
    type: Literal["text"]


class JsonObjectFormat(Body):
    """The schema is llama-server's addition."""

    type: Literal["json_object"]
    schema_: Schema | None = Field(None, alias="schema")


class NamedSchema(Body):
    """The output follows the schema whether ``strict`` or not."""

    name: Name
    description: str | None = None
    schema_: Schema | None = Field(None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class StructuredOutputs(Body):
    """vLLM's: one of them. A grammar is in Lark or GBNF."""

    json_: Schema | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(fail_fast=True, min_length=1)] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class ConstraintBody(Body):
    """``grammar``, in GBNF, and ``json_schema`` are llama-server's."""

    response_format: ResponseFormat | None = None
    grammar: str | None = None
    json_schema: Schema | None = None
    structured_outputs: StructuredOutputs | None = None
