"""OpenAI's messages as the plain dicts that templates are given; what a history must be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from openai_local.api.errors import RequestError
from openai_local.api.types.chat_completions import (
    AssistantMessage,
    Message,
    TextPart,
    ToolMessage,
)
from openai_local.api.types.tools import CustomToolCall, FunctionToolCall

# A custom tool is to the model one with this argument.
CUSTOM_INPUT = "input"


def for_template(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """One dict a message, its content always a string; text parts are joined by line breaks.

    Raises RequestError where calls and results do not belong together.
    """
    _check_history(messages)
    return [_plain(message, i) for i, message in enumerate(messages)]


def _check_history(messages: Sequence[Message]) -> None:
    """Every call has its result behind it, and every result its call before it."""
    calls_at, open_calls = 0, dict[str, None]()
    for i, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in open_calls:
                raise RequestError(
                    f"Invalid 'messages.[{i}].tool_call_id': a message with role 'tool' must"
                    " respond to a call of the message with 'tool_calls' before it.",
                    param=f"messages.[{i}].tool_call_id",
                    code="invalid_value",
                )
            del open_calls[message.tool_call_id]
            continue
        if open_calls:
            break
        if isinstance(message, AssistantMessage) and message.tool_calls:
            calls_at, open_calls = i, {call.id: None for call in message.tool_calls}
    if open_calls:
        raise RequestError(
            "A message with 'tool_calls' must be followed by tool messages that respond to each"
            f" 'tool_call_id'. These have no response: {', '.join(open_calls)}.",
            param=f"messages.[{calls_at}].tool_calls",
            code="invalid_value",
        )


def _plain(message: Message, i: int) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": _content(message)}
    if isinstance(message, ToolMessage):
        plain["tool_call_id"] = message.tool_call_id
    elif message.name is not None:
        plain["name"] = message.name
    if isinstance(message, AssistantMessage):
        where = f"messages.[{i}]"
        thought = message.reasoning_content or message.reasoning
        if thought:
            plain["reasoning_content"] = thought
        if message.tool_calls:
            plain["tool_calls"] = [
                _tool_call(call, f"{where}.tool_calls.[{j}]")
                for j, call in enumerate(message.tool_calls)
            ]
        if message.function_call is not None:
            called = message.function_call
            at = f"{where}.function_call.arguments"
            plain["function_call"] = _function(called.name, _arguments(called.arguments, at))
    return plain


def _content(message: Message) -> str:
    content = message.content
    if content is None or isinstance(content, str):
        texts = [content or ""]
    else:
        texts = [part.text if isinstance(part, TextPart) else part.refusal for part in content]
    if isinstance(message, AssistantMessage) and message.refusal:
        texts = [*filter(None, texts), message.refusal]
    return "\n".join(texts)


def _tool_call(call: FunctionToolCall | CustomToolCall, where: str) -> dict[str, Any]:
    if isinstance(call, CustomToolCall):
        function = _function(call.custom.name, {CUSTOM_INPUT: call.custom.input})
    else:
        arguments = _arguments(call.function.arguments, f"{where}.function.arguments")
        function = _function(call.function.name, arguments)
    return {"id": call.id, "type": "function", "function": function}


def _function(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def _arguments(text: str, where: str) -> dict[str, Any]:
    # Templates write an object in the model's own syntax.
    try:
        arguments = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise RequestError(
            f"Invalid '{where}': it must be a JSON object.", param=where, code="invalid_value"
        )
    return arguments
