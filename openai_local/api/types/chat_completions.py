"""The body of POST /chat/completions. Types and ranges only, no behaviour."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from openai_local.api.types.common import Body
from openai_local.api.types.generation import GenerationBody
from openai_local.api.types.tools import FunctionCall, ToolBody, ToolCall


class TextPart(Body):
    type: Literal["text"]
    text: str


class RefusalPart(Body):
    type: Literal["refusal"]
    refusal: str


Parts = Annotated[list[TextPart], Field(fail_fast=True, min_length=1)]
AssistantParts = Annotated[
    list[Annotated[TextPart | RefusalPart, Field(discriminator="type")]], Field(min_length=1)
]


class _Named(Body):
    name: str | None = None


class SystemMessage(_Named):
    role: Literal["system"]
    content: str | Parts


class DeveloperMessage(_Named):
    role: Literal["developer"]
    content: str | Parts


class UserMessage(_Named):
    role: Literal["user"]
    content: str | Parts


class AssistantMessage(_Named):
    """What is null or empty here is so in the answers that clients send back.

    ``reasoning_content``, or vLLM's ``reasoning``, is the thought of an earlier answer.
    """

    role: Literal["assistant"]
    content: str | AssistantParts | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    audio: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: FunctionCall | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ToolMessage(Body):
    role: Literal["tool"]
    content: str | Parts
    tool_call_id: str


class FunctionMessage(Body):
    """The deprecated form of a tool's result."""

    role: Literal["function"]
    content: str | None
    name: str


Message = Annotated[
    SystemMessage
    | DeveloperMessage
    | UserMessage
    | AssistantMessage
    | ToolMessage
    | FunctionMessage,
    Field(discriminator="role"),
]


# Of a thought; -1 is none.
Budget = Annotated[int, Field(ge=-1, le=2**31 - 1)]

Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=64)],
        Annotated[str, Field(max_length=512)],
    ],
    Field(max_length=16),
]


class ChatCompletionRequest(GenerationBody, ToolBody):
    """From ``chat_template_kwargs`` on the parameters are vLLM's and llama-server's."""

    model: str
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: Metadata | None = None
    safety_identifier: Annotated[str, Field(max_length=64)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_budget_tokens: Budget | None = None
    thinking_budget_tokens: Budget | None = None
    reasoning_format: Literal["none", "auto", "deepseek"] | None = None

    def n_logprobs(self) -> int | None:
        return super().n_logprobs() if not self.logprobs else self.top_logprobs or 0

    def thought_budget(self) -> int | None:
        """How many tokens a thought may have, if that is bounded."""
        budget = self.reasoning_budget_tokens
        budget = self.thinking_budget_tokens if budget is None else budget
        return None if budget == -1 else budget

    def tier(self) -> Literal["default", "flex", "priority"]:
        """The tier that the request is served in, as the answer says it."""
        if self.service_tier in (None, "auto", "default", "scale"):
            return "default"
        return "flex" if self.service_tier == "flex" else "priority"
