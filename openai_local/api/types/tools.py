"""Tools, how they are chosen, and their calls. Types and ranges only, no behaviour."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from openai_local.api.types.common import Body
from openai_local.api.types.constraints import Name, Schema

MAX_TOOLS = 128


class FunctionObject(Body):
    name: Name
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class FunctionTool(Body):
    type: Literal["function"]
    function: FunctionObject


class TextInput(Body):
    type: Literal["text"]


class Grammar(Body):
    syntax: Literal["lark", "regex"]
    definition: str


class GrammarInput(Body):
    type: Literal["grammar"]
    grammar: Grammar


class CustomObject(Body):
    name: Name
    description: str | None = None
    format: Annotated[TextInput | GrammarInput, Field(discriminator="type")] | None = None


class CustomTool(Body):
    type: Literal["custom"]
    custom: CustomObject


Tool = Annotated[FunctionTool | CustomTool, Field(discriminator="type")]


class NamedTool(Body):
    name: str


class FunctionChoice(Body):
    type: Literal["function"]
    function: NamedTool


class CustomChoice(Body):
    type: Literal["custom"]
    custom: NamedTool


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True, min_length=1)]


class AllowedToolsChoice(Body):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = (
    Literal["none", "auto", "required"]
    | Annotated[FunctionChoice | CustomChoice | AllowedToolsChoice, Field(discriminator="type")]
)


class Function(Body):
    """The deprecated form of a tool."""

    name: Name
    description: str | None = None
    parameters: Schema | None = None


class FunctionCall(Body):
    name: str
    arguments: str


class FunctionToolCall(Body):
    id: str
    type: Literal["function"]
    function: FunctionCall


class CustomCall(Body):
    name: str
    input: str


class CustomToolCall(Body):
    id: str
    type: Literal["custom"]
    custom: CustomCall


ToolCall = Annotated[FunctionToolCall | CustomToolCall, Field(discriminator="type")]


class ToolBody(Body):
    """``functions`` and ``function_call`` are deprecated."""

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], Field(max_length=MAX_TOOLS)] | None = None
    function_call: Literal["none", "auto"] | NamedTool | None = None
