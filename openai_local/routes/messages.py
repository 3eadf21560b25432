"""OpenAI's messages as the plain dicts that chat templates read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from openai_local.chat_template import ChatTemplate
from openai_local.routes.errors import RequestError
from openai_local.routes.types.chat_completions import (
    AssistantMessage,
    DeveloperMessage,
    Message,
    TextPart,
    ToolCall,
    ToolMessage,
)


def for_template(messages: Sequence[Message], template: ChatTemplate) -> list[dict[str, Any]]:
    """One dict a message, its content always a string; text parts are joined by line breaks.

    Raises RequestError where the template would leave out what a message says.
    """
    return [_plain(message, i, template) for i, message in enumerate(messages)]


def _plain(message: Message, i: int, template: ChatTemplate) -> dict[str, Any]:
    role: str = message.role
    if isinstance(message, DeveloperMessage) and not template.knows("developer"):
        role = "system"  # as its name was before
    plain: dict[str, Any] = {"role": role, "content": _content(message)}
    if isinstance(message, ToolMessage):
        plain["tool_call_id"] = message.tool_call_id
    elif message.name is not None:
        plain["name"] = message.name
    if isinstance(message, AssistantMessage) and message.tool_calls:
        if not template.knows("tool_calls"):
            raise RequestError(
                "The model's chat template does not know tool calls.",
                param=f"messages.[{i}].tool_calls",
                code="unsupported_parameter",
            )
        plain["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    return plain


def _content(message: Message) -> str:
    content = message.content
    if content is None:
        return (isinstance(message, AssistantMessage) and message.refusal) or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)


def _tool_call(call: ToolCall) -> dict[str, Any]:
    # Templates expect the arguments as an object, and put strings in as they are.
    try:
        arguments = json.loads(call.function.arguments)
    except ValueError:
        arguments = call.function.arguments
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}
