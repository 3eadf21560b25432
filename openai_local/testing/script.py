"""What a fake model was asked, and what it says. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

# Marks of a message, as ChatML has them.
START, END = "<|im_start|>", "<|im_end|>"
# Line breaks are texts, since those behind a block are not rendered.
TEMPLATE = (
    "{% set br = '\n' %}"
    "{% if tools %}<|im_start|>tools{% for tool in tools %}{{ br + (tool | tojson) }}{% endfor %}"
    "<|im_end|>{{ br }}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}"
    "{% if message.tool_call_id %} {{ message.tool_call_id }}{% endif %}{{ br }}"
    "{% if message.reasoning_content %}"
    "{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}"
    "{% if message.content or not loop.first %}{{ br }}{% endif %}"
    '{{ \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ (call.function.arguments | tojson) + '}\n</tool_call>' }}{% endfor %}"
    "<|im_end|>{{ br }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ br }}"
    "{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
_CALL = re.compile(r"\n?<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
_THOUGHT = re.compile(r"\A<think>\n(.*?)\n</think>\n\n", re.DOTALL)
_WORD = re.compile(r"\s*\S+|\s+\Z")

Status = Literal[429, 500, 503, 504]


@dataclass(frozen=True, slots=True)
class FakeRequest:
    """``text`` is the whole prompt; ``messages`` and ``tools`` are what it has of a chat.

    A message has a ``role`` and a ``content``, that of a tool its ``tool_call_id``, and the
    model's own what they have of ``reasoning_content`` and ``tool_calls``, each of a ``name`` and
    ``arguments``.
    """

    text: str
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def last(self) -> str:
        """What was said last: the last message, or the prompt."""
        return str(self.messages[-1]["content"]) if self.messages else self.text


@dataclass(frozen=True, slots=True)
class Reply:
    """``content`` is streamed word by word, or, as a list, in these pieces.

    ``calls`` are of a tool's name and its arguments. ``delay_s`` passes before each piece. With
    ``fails`` it ends in the error that has this status: at once where it says nothing, else behind
    what it says.
    """

    content: str | Sequence[str] = ""
    reasoning: str = ""
    calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
    delay_s: float = 0.0
    fails: Status | None = None

    def __post_init__(self) -> None:
        if self.fails in (429, 503) and (self.content or self.reasoning or self.calls):
            raise ValueError(f"a request that gets {self.fails} gets no text")

    def pieces(self, *, thinks: bool = True) -> list[str]:
        """The text as the model writes it; unless it ``thinks`` without the thought."""
        pieces: list[str] = []
        if self.reasoning and thinks:
            pieces += ["<think>\n", *words(self.reasoning), "\n</think>\n\n"]
        pieces += words(self.content) if isinstance(self.content, str) else self.content
        for name, arguments in self.calls:
            call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
            pieces += ["\n<tool_call>\n" if pieces else "<tool_call>\n", *words(call)]
            pieces.append("\n</tool_call>")
        return [piece for piece in pieces if piece]


def words(text: str) -> list[str]:
    """``text`` in words, with the space before each."""
    return _WORD.findall(text)


def read(parts: Sequence[str]) -> FakeRequest:
    """What a rendered prompt says; its marks are parts of their own."""
    messages: list[dict[str, Any]] = []
    tools: list[dict[str, Any]] = []
    for place in [i for i, part in enumerate(parts) if part == START]:
        said, ended = parts[place + 1], parts[place + 2 : place + 3] == [END]
        head, _, content = said.partition("\n")
        role, _, call_id = head.partition(" ")
        if role == "tools":
            tools += map(json.loads, content.splitlines())
        elif ended:
            messages.append(dict(_message(role, call_id, content)))
    return FakeRequest("".join(parts), tuple(messages), tuple(tools))


def _message(role: str, call_id: str, content: str) -> Iterator[tuple[str, Any]]:
    yield "role", role
    if call_id:
        yield "tool_call_id", call_id
    if role == "assistant":
        thought = _THOUGHT.match(content)
        if thought is not None:
            yield "reasoning_content", thought[1]
            content = content[thought.end() :]
        calls = [json.loads(call) for call in _CALL.findall(content)]
        if calls:
            yield "tool_calls", calls
            content = _CALL.sub("", content)
    yield "content", content
