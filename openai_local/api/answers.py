"""One choice of a chat as deltas of OpenAI's message, and those folded to the message. Pure."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from openai_local.api.messages import CUSTOM_INPUT
from openai_local.chat.parser import (
    ChatParser,
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
)

_INPUT = re.compile(rf'\s*\{{\s*"{CUSTOM_INPUT}"\s*:\s*"')
# Whole characters of a JSON string: a pair of surrogates is one.
_CHARS = re.compile(
    r'(?:[^"\\]|\\["\\/bfnrt]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}'
    r"|\\u(?![dD][89abAB])[0-9a-fA-F]{4})*"
)


class InputReader:
    """Arguments of a custom tool, which are JSON, to the text that is its input."""

    def __init__(self) -> None:
        self._rest = ""
        self._begun = False

    def feed(self, text: str) -> str:
        """What is now known of the input."""
        self._rest += text
        if not self._begun:
            found = _INPUT.match(self._rest)
            if found is None:
                return ""
            self._begun, self._rest = True, self._rest[found.end() :]
        found = _CHARS.match(self._rest)
        assert found is not None, "it matches nothing, too"
        self._rest = self._rest[found.end() :]
        return str(json.loads(f'"{found.group()}"', strict=False)) if found.group() else ""


class Answer:
    """One choice's text, taken apart. With ``legacy`` a call is the deprecated function_call."""

    def __init__(self, parser: ChatParser, custom: Iterable[str], *, legacy: bool) -> None:
        self._parser = parser
        self._custom = frozenset(custom)
        self._legacy = legacy
        self._inputs: dict[int, InputReader] = {}
        self._n_undecided = 0
        self.n_reasoning = 0

    def feed(self, text: str, n_tokens: int) -> list[dict[str, Any]]:
        """The deltas that are now certain; ``text`` was made of ``n_tokens`` tokens."""
        was_thought = self._parser.in_reasoning
        deltas = self._parser.feed(text)
        # Marks of a thought count as thought; text that may become such a mark waits.
        if was_thought or self._parser.in_reasoning:
            self.n_reasoning += n_tokens + self._n_undecided
            self._n_undecided = 0
        else:
            self._n_undecided = 0 if deltas else self._n_undecided + n_tokens
        return self._shaped(deltas)

    def finish(self, reason: str) -> list[dict[str, Any]]:
        """What was held back, at an end for that reason."""
        return self._shaped(self._parser.finish(cut=reason == "length"))

    def reason(self, reason: str) -> str:
        """Why it ended, in OpenAI's words: those for calls also where one was asked for by name."""
        if reason != "stop" or not self._parser.n_calls:
            return reason
        return "function_call" if self._legacy else "tool_calls"

    def _shaped(self, deltas: Iterable[Delta]) -> list[dict[str, Any]]:
        return [shaped for delta in deltas if (shaped := self._shape(delta)) is not None]

    def _shape(self, delta: Delta) -> dict[str, Any] | None:
        if isinstance(delta, ContentDelta):
            return {"content": delta.text}
        if isinstance(delta, ReasoningDelta):
            return {"reasoning_content": delta.text}
        if isinstance(delta, ToolCallStart):
            return self._start(delta)
        return self._arguments(delta)

    def _start(self, delta: ToolCallStart) -> dict[str, Any]:
        if self._legacy:
            return {"function_call": {"name": delta.name, "arguments": ""}}
        call: dict[str, Any] = {"index": delta.index}
        # A model's own id means something to it where it comes back in a history.
        call["id"] = delta.id or f"call_{secrets.token_hex(12)}"
        if delta.name in self._custom:
            self._inputs[delta.index] = InputReader()
            call |= {"type": "custom", "custom": {"name": delta.name, "input": ""}}
        else:
            call |= {"type": "function", "function": {"name": delta.name, "arguments": ""}}
        return {"tool_calls": [call]}

    def _arguments(self, delta: ToolCallArguments) -> dict[str, Any] | None:
        if self._legacy:
            return {"function_call": {"arguments": delta.text}}
        reader = self._inputs.get(delta.index)
        if reader is None:
            part = {"index": delta.index, "function": {"arguments": delta.text}}
            return {"tool_calls": [part]}
        text = reader.feed(delta.text)
        if not text:
            return None
        return {"tool_calls": [{"index": delta.index, "custom": {"input": text}}]}


@dataclass(slots=True)
class MessageFold:
    """Deltas put together to one message."""

    _content: list[str] = field(default_factory=list)
    _thought: list[str] = field(default_factory=list)
    _calls: list[dict[str, Any]] = field(default_factory=list)
    _texts: list[list[str]] = field(default_factory=list)
    _legacy: bool = False

    def add(self, delta: dict[str, Any]) -> None:
        if delta.get("content"):
            self._content.append(delta["content"])
        elif "reasoning_content" in delta:
            self._thought.append(delta["reasoning_content"])
        elif "function_call" in delta:
            self._legacy = True
            self._add_call({"type": "function", "function": delta["function_call"]})
        for call in delta.get("tool_calls", ()):
            self._add_call(call)

    def _add_call(self, part: dict[str, Any]) -> None:
        kind = "custom" if "custom" in part else "function"
        text = "input" if kind == "custom" else "arguments"
        if "name" in part[kind]:
            call = {key: value for key, value in part.items() if key != "index"}
            self._calls.append({**call, kind: dict(part[kind])})
            self._texts.append([])
        self._texts[-1].append(part[kind][text])

    def message(self) -> dict[str, Any]:
        for call, texts in zip(self._calls, self._texts, strict=True):
            kind = call["type"]
            call[kind]["input" if kind == "custom" else "arguments"] = "".join(texts)
        content = "".join(self._content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content or (None if self._calls else ""),
            "refusal": None,
        }
        if self._thought:
            message["reasoning_content"] = "".join(self._thought)
        if self._legacy:
            message["function_call"] = self._calls[0]["function"]
        elif self._calls:
            message["tool_calls"] = self._calls
        return message
