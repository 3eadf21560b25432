"""gpt-oss: messages in channels, each behind a header that says whom it is for.

openai-harmony has the format, too, but wants its vocabulary from the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openai_local.chat.tool_formats.arguments import JsonArguments
from openai_local.chat.tool_formats.cursor import Cursor, Reading, overlap
from openai_local.chat.tool_formats.derive import render_call
from openai_local.chat.tool_formats.format import Bound, ToolFormat, arguments_rule
from openai_local.chat.tool_formats.lark import Lark
from openai_local.chat.tool_formats.layout import CallLayout
from openai_local.chat.tool_formats.output import Output, Tools
from openai_local.chat.tool_formats.schema import name_of
from openai_local.chat.traits import NAME

if TYPE_CHECKING:
    from openai_local.chat.template import ChatTemplate

_TURN = "<|start|>assistant"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
_TOKENS = (*_ENDS, "<|message|>", "<|channel|>", "<|constrain|>")
_RECIPIENT = re.compile(r"to=(?:functions\.)?([A-Za-z0-9_.-]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_HEADER = re.compile(r"\s*(to=|<\|channel\|>|assistant)")
_MAX_HEADER = 512


@dataclass(frozen=True, slots=True)
class HarmonyFormat(ToolFormat):
    """Reads the whole output: thoughts and content have headers, as calls have."""

    @property
    def markers(self) -> Iterator[str]:
        yield from _TOKENS

    @property
    def trigger(self) -> str:
        return "<|channel|>"

    def call_marks(self, names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        to = " to=functions."
        return (f"<|channel|>commentary{to}", f"{_TURN}{to}"), (to,)

    def body(self, lark: Lark, tools: Sequence[Mapping[str, Any]], bound: Bound) -> str:
        more = lark.literal(f"<|end|>{_TURN}")
        text = lark.rule(lark.text(), "text")
        if not lark.is_special("<|end|>"):
            text = lark.rule(lark.text(["<|"]), "text")
        calls = []
        for tool in tools:
            name, rule = name_of(tool), arguments_rule(lark, self.layout, tool)
            heads = (
                f" to=functions.{name}<|channel|>commentary json<|message|>",
                f" to=functions.{name}<|channel|>commentary <|constrain|>json<|message|>",
                f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>",
                f"<|channel|>commentary to=functions.{name}<|message|>",
            )
            calls.append(f"{lark.choice(map(lark.literal, heads))} {rule}")
        call = lark.rule(" | ".join(calls), "call")
        call_end = f"( {lark.literal('<|call|>')} )?"
        binds = bound.required or bound.answer is not None
        channels = ["analysis"] if binds else ["analysis", "commentary"]
        said = lark.choice(lark.literal(f"<|channel|>{name}<|message|>") for name in channels)
        before = f"( {said} {text} {more} )*"
        if bound.required:
            return f"{before} {call} {call_end}"
        if bound.answer is not None:
            final = f"{lark.literal(self.answer)} {lark.json(bound.answer)}"
            return f"{before} ( {call} {call_end} | {final} )"
        final = lark.choice(
            lark.literal(f"<|channel|>{name}<|message|>") for name in ("final", "commentary")
        )
        return f"{before} ( {call} {call_end} | {final} {text} )"

    def read_output(
        self, cursor: Cursor, tools: Tools, output: Output, prompt: str
    ) -> Reading[None]:
        turn = prompt.rpartition(_TURN)[2] if _TURN in prompt else ""
        header, within, _ = turn.rpartition("<|message|>")
        while True:
            if not within:
                header = yield from self._header(cursor, output)
                if not header:
                    yield from cursor.until(_ENDS[:3], output.content)
                    if not (yield from cursor.more()):
                        return
                    continue
            within = ""
            channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
            if recipient and recipient[1] in tools:
                sink = output.start(recipient[1], None)
            elif channel and channel[1] == "analysis":
                sink = output.thought
            else:
                sink = output.content
            end = yield from cursor.until(_ENDS, sink)
            if end is None:
                return
            if end != "<|start|>":
                yield from cursor.accept("<|start|>")
            if not (yield from cursor.more()):
                return

    def _header(self, cursor: Cursor, output: Output) -> Reading[str]:
        """What is before ``<|message|>``. Text that is no header is passed on as content."""
        place = cursor.mark()
        parts: list[str] = []
        found = yield from cursor.until(["<|message|>"], parts.append, _MAX_HEADER)
        header = "".join(parts)
        if found is not None and _HEADER.match(header):
            return header
        if not (cursor.cut and _may_be_header(header)):
            text = cursor.since(place)
            n_cut = max(overlap(text, token) for token in _TOKENS) if cursor.cut else 0
            output.content(text[: len(text) - n_cut])
        return ""


def _may_be_header(text: str) -> bool:
    """Whether text that was cut off is one, or the beginning of one."""
    begun = any(start.startswith(text.lstrip()) for start in ("to=", "<|channel|>", "assistant"))
    return begun or _HEADER.match(text) is not None


FORMAT = HarmonyFormat(
    "harmony",
    CallLayout(
        (" to=functions.",),
        ("<|channel|>commentary json<|message|>",),
        ("<|call|>",),
        arguments=JsonArguments((",", ":")),
    ),
    single=True,
    answer="<|channel|>final<|message|>",
)


def find(template: ChatTemplate) -> ToolFormat | None:
    text = render_call(template)
    return FORMAT if f"to=functions.{NAME}<|channel|>" in text else None
