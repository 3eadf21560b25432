"""Functionary 3.2: every message behind ``>>>``, to a tool or to all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openai_local.chat.tool_formats.cursor import Cursor, Emit, Reading
from openai_local.chat.tool_formats.derive import render_call
from openai_local.chat.tool_formats.format import Bound, ToolFormat, arguments_rule, read_name
from openai_local.chat.tool_formats.lark import Lark
from openai_local.chat.tool_formats.layout import CallLayout
from openai_local.chat.tool_formats.output import Output, Tools
from openai_local.chat.tool_formats.schema import name_of
from openai_local.chat.traits import NAME

if TYPE_CHECKING:
    from openai_local.chat.template import ChatTemplate

_MARK = ">>>"
_ALL = "all"


@dataclass(frozen=True, slots=True)
class FunctionaryFormat(ToolFormat):
    """Reads the whole output: the prompt ends in the first mark."""

    def body(self, lark: Lark, tools: Sequence[Mapping[str, Any]], bound: Bound) -> str:
        call = lark.rule(
            " | ".join(
                f"{lark.literal(name_of(tool) + chr(10))} {arguments_rule(lark, self.layout, tool)}"
                for tool in tools
            ),
            "call",
        )
        more = f"( {lark.literal(_MARK)} {call} )*" if bound.parallel else ""
        if bound.required:
            return f"{call} {more}"
        to_all = lark.literal(f"{_ALL}\n")
        if bound.answer is not None:
            return f"{call} {more} | {to_all} {lark.json(bound.answer)}"
        said = lark.lazy(f"{lark.text()} {lark.literal(_MARK)}")
        return f"{call} {more} | {to_all} {said} {call} {more} | {to_all} {lark.text()}"

    def call_marks(self, names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        heads = tuple(f"{name}\n" for name in names)
        return tuple(f"{_MARK}{head}" for head in heads), heads

    def read_output(
        self, cursor: Cursor, tools: Tools, output: Output, prompt: str
    ) -> Reading[None]:
        sink: Emit = output.content
        if prompt.endswith(_MARK):
            found = yield from self._recipient(cursor, tools, output)
            if found is None and cursor.cut and cursor.starved:
                return
            sink = found or sink
        while (yield from cursor.until([_MARK], sink)) is not None:
            cursor.starved = False
            found = yield from self._recipient(cursor, tools, output)
            if found is None and cursor.cut and cursor.starved:
                return
            if found is None:
                sink(_MARK)  # of the text itself
            sink = found or sink

    def _recipient(self, cursor: Cursor, tools: Tools, output: Output) -> Reading[Emit | None]:
        """Where the message goes; None, in place, where none is addressed."""
        place = cursor.mark()
        name = yield from read_name(cursor)
        if (name != _ALL and name not in tools) or (yield from cursor.peek()) != "\n":
            cursor.back(place)
            return None
        cursor.pos += 1
        return output.content if name == _ALL else output.start(name, None)


FORMAT = FunctionaryFormat(
    "functionary", CallLayout((">>>",), ("\n",), ()), end="<|eot_id|>", answer=f"{_ALL}\n"
)  # fmt: skip


def find(template: ChatTemplate) -> ToolFormat | None:
    return FORMAT if f">>>{NAME}\n" in render_call(template) else None
