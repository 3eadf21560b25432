"""What a chat template knows, found by rendering probes. Nothing is read off its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from openai_local.chat.sandbox import TemplateError, TemplateTooSlow

Message = dict[str, Any]

# Words that no template has of its own.
USER, ANSWER, THOUGHT, RESULT = "qzuserword", "qzanswerword", "qzthoughtword", "qzresultword"
SAID = "qzsaidword"
NAME, KEY, VALUE = "qztoolname", "qzkeyname", "qzvalueword"
ID = "qzcallid1"
NO_CONTENT = "absent"

# Templates disagree about how thinking is asked for.
THINKING: tuple[dict[str, Any], ...] = (
    {},
    {"enable_thinking": True, "thinking": True},
    {"reasoning": True, "thinking_mode": "enabled", "reasoning_effort": "high"},
)


@dataclass(frozen=True, slots=True)
class TemplateTraits:
    """What a template renders, and in which shape it wants it."""

    system_role: bool
    developer_role: bool
    consecutive_users: bool
    content_parts: bool  # content must be a list of parts
    tools: bool
    tools_must_be_listed: bool  # an empty list, where there are none
    tools_need_descriptions: bool
    tool_calls: bool
    parallel_tool_calls: bool
    arguments_as_text: bool
    content_beside_calls: bool
    thought_beside_content: bool
    thought_beside_calls: bool
    content_before_calls: bool  # as a message of its own
    empty_content: str | None  # of a message with calls: "", None, or NO_CONTENT
    short_ids: bool  # nine letters and digits, as Mistral has them
    tool_results: bool
    tool_result_names: bool
    thought_parts: bool  # a thought is a part of the content


class Renderer(Protocol):
    def render_exactly(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str: ...


def user(content: Any = USER) -> Message:
    return {"role": "user", "content": content}


def call(name: str, arguments: Any, call_id: str = ID) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def tool(name: str, described: bool = True, *keys: str) -> dict[str, Any]:
    about = {"description": "Does it."} if described else {}
    properties = {key: {"type": "string", **about} for key in keys or (KEY,)}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, **about, "parameters": parameters}}


class Probe:
    """A template that answers with nothing where it refuses.

    One that takes too long is asked no more: TemplateTooSlow, which is for the caller to tell.
    """

    def __init__(self, template: Renderer, tools_must_be_listed: bool = False) -> None:
        self._template = template
        self.no_tools: list[Any] | None = [] if tools_must_be_listed else None

    def render(self, messages: Sequence[Message], tools: Any = None, **kwargs: Any) -> str:
        add = kwargs.pop("add_generation_prompt", False)
        try:
            return self._template.render_exactly(
                messages,
                tools=self.no_tools if tools is None else tools,
                add_generation_prompt=add,
                kwargs=kwargs,
            )
        except TemplateTooSlow:
            raise
        except TemplateError:
            return ""

    def has(self, words: Sequence[str], messages: Sequence[Message], tools: Any = None) -> bool:
        text = self.render(messages, tools)
        return all(word in text for word in words)


def probe_traits(template: Renderer) -> TemplateTraits:
    listed = not Probe(template).has([USER], [user()]) and Probe(template, True).has(
        [USER], [user()]
    )
    probe = Probe(template, listed)
    parts = [{"type": "text", "text": USER}]
    as_text = probe.has([USER], [user()])
    tools = probe.has([NAME, KEY], [user()], [tool(NAME)])
    bare = probe.has([NAME, KEY], [user()], [tool(NAME, False)])
    calls = _call_traits(probe, [user()])
    if not calls["tool_calls"]:
        alone = _call_traits(probe, [])
        calls = alone if alone["tool_calls"] else calls
    return TemplateTraits(
        system_role=probe.has([ANSWER, USER], [{"role": "system", "content": ANSWER}, user()]),
        developer_role=_knows_role(probe, "developer"),
        consecutive_users=probe.has([USER, ANSWER], [user(), user(ANSWER)]),
        content_parts=not as_text and probe.has([USER], [user(parts)]),
        tools=tools or bare,
        tools_must_be_listed=listed,
        tools_need_descriptions=tools and not bare,
        thought_parts=_has_thought_parts(probe),
        **calls,
    )


def _has_thought_parts(probe: Probe) -> bool:
    as_field, as_part, _ = (
        [THOUGHT in probe.render([user(), message], **kwargs) for kwargs in THINKING]
        for message in thoughtful(ANSWER)
    )
    printed = "'type'" in probe.render([user(), thoughtful(ANSWER)[1]])
    return any(as_part) and not any(as_field) and not printed


def _knows_role(probe: Probe, role: str) -> bool:
    """Whether it renders the role, and not just any."""
    known = probe.render([{"role": role, "content": ANSWER}, user()])
    other = probe.render([{"role": "qzrole", "content": ANSWER}, user()])
    return ANSWER in known and USER in known and known.replace(role, "qzrole") != other


def _call_traits(probe: Probe, turn: list[Message]) -> dict[str, Any]:
    """What becomes of calls that answer ``turn``."""
    empty, arguments, ids = _call_shape(probe, turn)

    def calls(*names: str, **fields: Any) -> Message:
        made = [call(name, arguments, ids + "ab"[i]) for i, name in enumerate(names)]
        if len(made) > 1:  # a name may be in the list of tools: what tells is the value
            made[1] = call(names[1], _with_value(arguments, RESULT), ids + "b")
        return assistant(fields.pop("content", empty), made, **fields)

    tools = [tool(NAME), tool(ANSWER)]
    known = probe.has([NAME, VALUE], [*turn, calls(NAME)], tools)
    result = {"role": "tool", "tool_call_id": ids + "a", "content": RESULT}
    after = [*turn, calls(NAME)] if known else [*turn, {"role": "assistant", "content": ANSWER}]
    thoughts = {"reasoning_content": THOUGHT, "thinking": THOUGHT}
    return {
        "tool_calls": known,
        "parallel_tool_calls": probe.has([VALUE, RESULT], [*turn, calls(NAME, ANSWER)], tools),
        "arguments_as_text": isinstance(arguments, str),
        "content_beside_calls": probe.has([VALUE, SAID], [*turn, calls(NAME, content=SAID)], tools),
        "thought_beside_content": probe.has(
            [VALUE, SAID], [*turn, calls(NAME, content=SAID, **thoughts)], tools
        ),
        "thought_beside_calls": probe.has(
            [VALUE, THOUGHT], [*turn, calls(NAME, **thoughts)], tools
        ),
        "content_before_calls": probe.has(
            [VALUE, SAID], [*turn, {"role": "assistant", "content": SAID}, calls(NAME)], tools
        ),
        "empty_content": empty,
        "short_ids": len(ids) < 10,
        "tool_results": probe.has([RESULT], [*after, result], tools),
        "tool_result_names": _wants_names(probe, after, result, tools),
    }


def thoughtful(content: str) -> list[Message]:
    """An answer with a thought, in each of the shapes that templates know."""
    said = [{"type": "text", "text": content}] if content else []
    thought = {"type": "thinking", "thinking": THOUGHT}
    blocks = [{"type": "thoughts", "text": THOUGHT}, {"type": "response", "text": content}]
    return [
        {"role": "assistant", "content": content, "reasoning_content": THOUGHT,
         "thinking": THOUGHT},
        {"role": "assistant", "content": [thought, *said]},
        {"role": "assistant", "content": {"blocks": blocks}},
    ]  # fmt: skip


def _with_value(arguments: Any, value: str) -> Any:
    return arguments.replace(VALUE, value) if isinstance(arguments, str) else {KEY: value}


def assistant(content: str | None, calls: list[Any], **fields: Any) -> Message:
    message: Message = {"role": "assistant", "content": content, "tool_calls": calls, **fields}
    if message["content"] == NO_CONTENT:
        del message["content"]
    return message


def _call_shape(probe: Probe, turn: list[Message]) -> tuple[str | None, Any, str]:
    """The empty content, the arguments and the id with which a call is rendered best."""
    shapes: list[tuple[str | None, Any, str]] = [
        (empty, arguments, ids)
        for ids in ("call_qzcallid", ID[:8])
        for arguments in ({KEY: VALUE}, f'{{"{KEY}": "{VALUE}"}}')
        for empty in ("", None, NO_CONTENT)
    ]
    best, best_cost = shapes[0], (True, True, True, True, 1 << 30)
    for shape in shapes:
        empty, arguments, ids = shape
        text = probe.render([*turn, assistant(empty, [call(NAME, arguments, ids + "a")])],
                            [tool(NAME), tool(RESULT)])  # fmt: skip
        cost = (
            not (NAME in text and VALUE in text),
            f'\\"{KEY}' in text or f"'{KEY}" in text,  # text in JSON, or Python's idea of it
            "None" in text.partition(USER)[2],
            isinstance(arguments, str),
            len(text) - len(ids),
        )
        if cost < best_cost:
            best, best_cost = shape, cost
    return best


def _wants_names(
    probe: Probe, before: Sequence[Message], result: Message, tools: Sequence[Any]
) -> bool:
    """Whether a tool's result is told apart by the tool's name."""
    named = probe.render([*before, {**result, "name": "qzresultname"}], tools)
    return "qzresultname" in named
