"""Tools, outputs taken apart, and llguidance's matcher over single bytes and special tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llguidance

from openai_local.chat.parser import (
    ChatParser,
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
)

TEMPLATES = Path(__file__).parent.parent.parent / "shared" / "chat_templates"


def tool(name: str, /, **properties: Any) -> dict[str, Any]:
    """Arguments are required unless their schema says ``optional``."""
    required = [key for key, schema in properties.items() if not schema.get("optional")]
    plain = {
        key: {"description": f"The {key}.", **{k: v for k, v in schema.items() if k != "optional"}}
        if isinstance(schema, dict) else schema
        for key, schema in properties.items()
    }  # fmt: skip
    parameters = {"type": "object", "properties": plain, "required": required}
    function = {"name": name, "description": f"Does {name}.", "parameters": parameters}
    return {"type": "function", "function": function}


WEATHER = tool(
    "get_weather", city={"type": "string"}, days={"type": "integer", "optional": True}
)  # fmt: skip
ADD = tool(
    "add",
    numbers={"type": "array", "items": {"type": "number"}},
    exact={"type": "boolean", "optional": True},
)
TOOLS = [WEATHER, ADD]


@dataclass
class Message:
    """What a client would have in the end."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)

    @property
    def objects(self) -> list[tuple[str, Any]]:
        return [(name, json.loads(arguments)) for name, arguments in self.calls]


def fold(deltas: Iterable[Delta]) -> Message:
    message = Message()
    for delta in deltas:
        if isinstance(delta, ContentDelta):
            message.content += delta.text
        elif isinstance(delta, ReasoningDelta):
            message.reasoning += delta.text
        elif isinstance(delta, ToolCallStart):
            assert delta.index == len(message.calls), "calls come in order"
            message.calls.append((delta.name, ""))
        else:
            assert isinstance(delta, ToolCallArguments)
            assert delta.index == len(message.calls) - 1, "one call after another"
            name, arguments = message.calls[-1]
            message.calls[-1] = (name, arguments + delta.text)
    return message


def parse(parts: str | Sequence[str], *, cut: bool = False, **options: Any) -> Message:
    """The output in ``parts``, or whole, taken apart; ``cut`` off, perhaps."""
    parser = ChatParser(**{"tools": TOOLS, **options})
    deltas = [
        delta for part in ([parts] if isinstance(parts, str) else parts)
        for delta in parser.feed(part)
    ]  # fmt: skip
    return fold([*deltas, *parser.finish(cut=cut)])


def parse_in_all_ways(text: str, **options: Any) -> Message:
    """Whole, in characters, and cut in two at every place: all the same."""
    whole = parse(text, **options)
    assert parse(list(text), **options) == whole
    for cut in range(1, len(text)):
        assert parse([text[:cut], text[cut:]], **options) == whole, (text[:cut], text[cut:])
    return whole


class _Bytes:
    bos_token_id = None

    def __init__(self, special: Sequence[str]) -> None:
        self.tokens = [bytes([i]) for i in range(256)]
        self.tokens += [text.encode() for text in special] + [b"<eos>"]
        self.eos_token_id = len(self.tokens) - 1
        self.special_token_ids = list(range(256, len(self.tokens)))

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


class Matcher:
    """A grammar over a vocabulary of the bytes and of ``special`` tokens."""

    def __init__(self, special: Sequence[str] = ()) -> None:
        self.special: Mapping[str, int] = {text: 256 + i for i, text in enumerate(special)}
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes(special)))
        texts = sorted(special, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, texts))})") if texts else None

    def tokens(self, text: str) -> list[int]:
        tokens: list[int] = []
        for part in self._split.split(text) if self._split else [text]:
            tokens += [self.special[part]] if part in self.special else part.encode()
        return tokens

    def matched(self, grammar: str, text: str) -> tuple[str, bool]:
        """How much of ``text`` the grammar takes, and whether it may end there."""
        error = llguidance.LLMatcher.validate_grammar(grammar, self._tokenizer)
        assert not error, f"{error}\n{grammar}"
        matcher = llguidance.LLMatcher(self._tokenizer, grammar)
        tokens = self.tokens(text)
        n = matcher.try_consume_tokens(tokens)
        names = {token: text for text, token in self.special.items()}
        taken = b"".join(names[t].encode() if t > 255 else bytes([t]) for t in tokens[:n])
        return taken.decode(errors="ignore"), matcher.is_accepting()

    def accepts(self, grammar: str, text: str) -> bool:
        taken, ends = self.matched(grammar, text)
        return taken == text and ends
