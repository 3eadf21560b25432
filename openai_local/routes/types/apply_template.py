"""The body of POST /apply-template: a chat's, of which only the prompt is made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from openai_local.routes.types.chat_completions import ChatCompletionRequest
from openai_local.routes.types.common import Body


class TemplateFunction(Body):
    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TemplateTool(Body):
    type: Literal["function"]
    function: TemplateFunction


class TemplateRequest(ChatCompletionRequest):
    """What decides only how the chat would go on is taken, and does nothing."""

    model: str = ""
    tools: list[TemplateTool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
