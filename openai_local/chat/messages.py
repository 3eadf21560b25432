"""OpenAI's messages and tools in the shape that a template renders in full. Pure."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from openai_local.chat.sandbox import TemplateError
from openai_local.chat.traits import NO_CONTENT, Message, TemplateTraits

if TYPE_CHECKING:
    from openai_local.chat.tool_formats import ToolFormat


def adapt_messages(
    messages: Sequence[Mapping[str, Any]],
    traits: TemplateTraits,
    spoken: ToolFormat | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[Message]:
    """With ``spoken``, tools and calls are put into words, for a template that has none.

    Raises TemplateError for a history that the template cannot tell.
    """
    adapted = [_plain(message, traits) for message in messages]
    if spoken is not None:
        if tools:
            adapted = _described(adapted, spoken.describe(tools))
        if not traits.tool_calls:
            adapted = [_spoken_calls(message, spoken) for message in adapted]
    adapted = [part for message in adapted for part in _said_apart(message, traits)]
    adapted = list(_single_calls(adapted, traits))
    names = {call["id"]: call["function"]["name"] for m in adapted for call in _calls(m)}
    adapted = [_shaped(message, traits, names) for message in adapted]
    if not traits.tool_results:
        adapted = list(_results_from_user(adapted, traits))
    if not traits.system_role:
        adapted = _without_system(adapted)
    if traits.content_parts:
        return [_in_parts(message) for message in adapted]
    return adapted


def adapt_tools(tools: Sequence[Mapping[str, Any]], traits: TemplateTraits) -> list[dict[str, Any]]:
    """A copy, with empty descriptions for a template that cannot do without."""
    adapted: list[dict[str, Any]] = copy.deepcopy([dict(tool) for tool in tools])
    for tool in adapted:
        function = tool.get("function")
        if not isinstance(function, dict):
            continue
        function.setdefault("parameters", {"type": "object", "properties": {}})
        if traits.tools_need_descriptions:
            function.setdefault("description", "")
            parameters = function["parameters"]
            properties = parameters.get("properties") if isinstance(parameters, dict) else None
            for schema in properties.values() if isinstance(properties, dict) else ():
                if isinstance(schema, dict):
                    schema.setdefault("description", "")
    return adapted


def _plain(message: Mapping[str, Any], traits: TemplateTraits) -> Message:
    plain: Message = {"role": ""}
    plain.update((key, value) for key, value in message.items() if value is not None)
    if plain.get("role") == "developer" and not traits.developer_role:
        plain["role"] = "system"  # as its name was before
    if plain.get("role") == "function":
        plain.update(role="tool", tool_call_id=plain.get("name", ""))
    call = plain.pop("function_call", None)
    if call:
        plain["tool_calls"] = [{"id": call["name"], "type": "function", "function": call}]
    if not plain.get("tool_calls"):
        plain.pop("tool_calls", None)
    content = plain.get("content")
    if isinstance(content, list):
        plain["content"] = "\n".join(
            part.get("text") or part.get("refusal", "") for part in content
        )
    elif content is None:
        plain["content"] = plain.get("refusal", "")
    for key in ("reasoning_content", "reasoning", "thinking"):
        if plain.get(key):
            plain["reasoning_content"] = plain["thinking"] = plain[key]
            break
    return plain


def _calls(message: Message) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = message.get("tool_calls", [])
    return calls


def _described(messages: list[Message], text: str) -> list[Message]:
    """``text`` at the end of the system message."""
    if messages and messages[0]["role"] in ("system", "developer"):
        first = messages[0]
        joined = f"{first['content']}\n\n{text}" if first["content"] else text
        return [{**first, "content": joined}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _spoken_calls(message: Message, spoken: ToolFormat) -> Message:
    calls = [(call["function"]["name"], _object(call)) for call in _calls(message)]
    if not calls:
        return message
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    text = spoken.write(calls)
    return {**rest, "content": f"{message['content']}\n{text}" if message["content"] else text}


def _said_apart(message: Message, traits: TemplateTraits) -> list[Message]:
    """What is said beside a call, where the template would leave it out."""
    content, thought = message["content"], message.get("reasoning_content", "")
    together = traits.thought_beside_content if thought else traits.content_beside_calls
    if not (_calls(message) and content) or together:
        return [message]
    if traits.thought_beside_calls:
        # As Harmony and Command have it: with the thoughts, or as the plan.
        thought = f"{thought}\n\n{content}" if thought else content
        return [{**message, "reasoning_content": thought, "thinking": thought, "content": ""}]
    if traits.content_before_calls:
        return [{"role": "assistant", "content": content}, {**message, "content": ""}]
    return [message]  # the template knows calls without words only


def _single_calls(messages: Sequence[Message], traits: TemplateTraits) -> Iterator[Message]:
    """Each call a message of its own, its result behind it, where a template wants that."""
    results = {m.get("tool_call_id"): m for m in messages if m["role"] == "tool"}
    moved: set[int] = set()
    for message in messages:
        calls = _calls(message)
        if len(calls) < 2 or traits.parallel_tool_calls:
            if id(message) not in moved:
                yield message
            continue
        rest = {"role": "assistant", "content": ""}
        for i, call in enumerate(calls):
            yield {**(rest if i else message), "tool_calls": [call]}
            result = results.get(call["id"])
            if result is not None:
                moved.add(id(result))
                yield result


def _shaped(message: Message, traits: TemplateTraits, names: Mapping[str, str]) -> Message:
    if message["role"] == "tool":
        return _result(message, traits, names)
    if traits.thought_parts and message.get("reasoning_content"):
        message = _with_thought_part(message)
    calls = _calls(message)
    if not calls:
        return message
    shaped = {**message, "tool_calls": [_call(call, traits) for call in calls]}
    if not shaped["content"]:
        shaped["content"] = traits.empty_content
        if traits.empty_content == NO_CONTENT:
            del shaped["content"]
    return shaped


def _with_thought_part(message: Message) -> Message:
    content = message["content"]
    parts = [{"type": "thinking", "thinking": message["reasoning_content"]}]
    parts += [{"type": "text", "text": content}] if content else []
    return {**message, "content": parts}


def _call(call: Mapping[str, Any], traits: TemplateTraits) -> dict[str, Any]:
    function = dict(call["function"])
    arguments = _object(call)
    as_text = traits.arguments_as_text
    function["arguments"] = json.dumps(arguments, ensure_ascii=False) if as_text else arguments
    return {**call, "type": "function", "id": _id(call["id"], traits), "function": function}


def _object(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = call["function"].get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError:
            arguments = None
    if not isinstance(arguments, dict):
        name = call["function"]["name"]
        raise TemplateError(f"the arguments of a call of {name} are no JSON object")
    return arguments


def _id(call_id: str, traits: TemplateTraits) -> str:
    if not traits.short_ids or (len(call_id) == 9 and call_id.isascii() and call_id.isalnum()):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _result(message: Message, traits: TemplateTraits, names: Mapping[str, str]) -> Message:
    call_id = message.get("tool_call_id", "")
    result = {**message, "tool_call_id": _id(call_id, traits)}
    if traits.tool_result_names and call_id in names:
        result.setdefault("name", names[call_id])
    return result


def _results_from_user(messages: Sequence[Message], traits: TemplateTraits) -> Iterator[Message]:
    """Tool results as the user's words, those of one turn together."""
    turn: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            turn.append(f"<tool_response>\n{message['content']}\n</tool_response>")
            continue
        if turn and message["role"] == "user" and not traits.consecutive_users:
            message = {**message, "content": "\n".join([*turn, message["content"]])}
        elif turn:
            yield {"role": "user", "content": "\n".join(turn)}
        turn = []
        yield message
    if turn:
        yield {"role": "user", "content": "\n".join(turn)}


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """System messages as the beginning of the first thing that the user says."""
    said = [m["content"] for m in messages if m["role"] in ("system", "developer")]
    rest = [m for m in messages if m["role"] not in ("system", "developer")]
    said = [text for text in said if text]
    if not said:
        return rest
    for i, message in enumerate(rest):
        if message["role"] == "user":
            joined = {**message, "content": "\n\n".join([*said, message["content"]])}
            return [*rest[:i], joined, *rest[i + 1 :]]
    return [{"role": "user", "content": "\n\n".join(said)}, *rest]


def _in_parts(message: Message) -> Message:
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}] if content else []}
