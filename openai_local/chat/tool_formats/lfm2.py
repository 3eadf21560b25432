"""LFM2: calls as Python would have them, ``[get_weather(city="Paris"), …]``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openai_local.chat.tool_formats.arguments import as_json, quoting, sequence
from openai_local.chat.tool_formats.cursor import MAX_DEPTH, Cursor, Emit, Reading
from openai_local.chat.tool_formats.derive import render_call
from openai_local.chat.tool_formats.format import ToolFormat
from openai_local.chat.tool_formats.input_grammar import InputGrammar
from openai_local.chat.tool_formats.lark import Lark
from openai_local.chat.tool_formats.layout import CallLayout
from openai_local.chat.tool_formats.schema import (
    ALL_TYPES,
    object_members,
    resolve,
    types_of,
    with_definitions,
)
from openai_local.chat.traits import NAME, Probe, tool, user

if TYPE_CHECKING:
    from openai_local.chat.template import ChatTemplate

_SCALAR = re.compile(r"[^,)\]}\s]")
_KEY = re.compile(r"[^=\s(),]")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_HEX = {"x": 2, "u": 4, "U": 8}
_CLOSERS = {"[": "]", "(": ")", "{": "}"}


@dataclass(frozen=True, slots=True)
class PythonArguments:
    """``city="Paris", days=3``"""

    markers: tuple[str, ...] = ()

    def write(self, arguments: Mapping[str, Any]) -> str:
        return ", ".join(f"{key}={_written(value)}" for key, value in arguments.items())

    def rule(self, grammar: Lark, schema: Mapping[str, Any]) -> str:
        members, others = object_members(schema, schema)
        if not members and others is not False:
            key = grammar.regex("[A-Za-z_][A-Za-z0-9_]*", "KEY")
            one = f'{key} "=" {grammar.json(with_definitions(others, schema))}'
            return f'( {one} ( ", " {one} )* )?'

        def member(key: str, part: Any) -> str:
            values = [grammar.json(with_definitions(part, schema))]
            types = types_of(part, schema)
            if not {"enum", "const"} & set(resolve(part, schema)):
                values += ['"True"', '"False"'] if "boolean" in types else []
                values += ['"None"'] if "null" in types else []
            return f"{grammar.literal(key + '=')} {grammar.choice(values)}"

        return sequence(grammar, members, member, '", "')

    def input_rule(self, grammar: Lark, key: str, text: InputGrammar) -> str:
        head, end = grammar.literal(f'{key}="'), grammar.literal('"')
        return f"{head} {text.quoted(grammar)} {end}"

    def read(self, cursor: Cursor, schema: Mapping[str, Any], emit: Emit) -> Reading[bool]:
        emit("{")
        first = True
        while True:
            yield from cursor.skip_space()
            if (yield from cursor.peek()) in (")", ""):
                break
            if not first and (yield from cursor.accept(",")) is None:
                return False
            yield from cursor.skip_space()
            key = yield from cursor.word(_KEY)
            if not key or (yield from cursor.accept("=")) is None:
                return False
            emit(f"{'' if first else ', '}{json.dumps(key, ensure_ascii=False)}: ")
            first = False
            if not (yield from _read_value(cursor, emit)):
                return False
        if not (yield from cursor.more()):
            return False
        emit("}")
        return True


FORMAT = ToolFormat(
    "lfm2",
    CallLayout(
        (),
        ("(",),
        (")",),
        open="<|tool_call_start|>[",
        separator=", ",
        close="]<|tool_call_end|>",
        arguments=PythonArguments(),
    ),
)


def find(template: ChatTemplate) -> ToolFormat | None:
    if template.traits.tool_calls:
        return FORMAT if f"{FORMAT.layout.open}{NAME}(" in render_call(template) else None
    # The older ones have a list of tools of their own, and calls only in the content.
    told = Probe(template).render([user()], [tool(NAME)])
    return FORMAT if template.traits.tools and "List of tools: " in told else None


def _written(value: Any) -> str:
    words = {True: "True", False: "False", None: "None"}
    if value is None or isinstance(value, bool):
        return words[value]
    if isinstance(value, Mapping):
        items = (f"{_written(key)}: {_written(item)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_written, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _read_value(cursor: Cursor, emit: Emit, depth: int = 0) -> Reading[bool]:
    """A Python literal, passed on as JSON."""
    yield from cursor.skip_space()
    first = yield from cursor.peek()
    if first and first in "\"'":
        return (yield from _read_string(cursor, emit))
    if first in _CLOSERS:
        return depth < MAX_DEPTH and (yield from _read_items(cursor, first, emit, depth + 1))
    word = yield from cursor.word(_SCALAR)
    if word:
        emit(as_json(word, ALL_TYPES))
    return bool(word) and (yield from cursor.more())


def _read_items(cursor: Cursor, opener: str, emit: Emit, depth: int) -> Reading[bool]:
    cursor.pos += 1
    emit("{" if opener == "{" else "[")
    first = True
    while True:
        yield from cursor.skip_space()
        if (yield from cursor.accept(_CLOSERS[opener])) is not None:
            emit("}" if opener == "{" else "]")
            return True
        if not first:
            if (yield from cursor.accept(",")) is None:
                return False
            if (yield from cursor.accept(_CLOSERS[opener])) is not None:
                emit("}" if opener == "{" else "]")
                return True
            emit(", ")
        first = False
        if not (yield from _read_value(cursor, emit, depth)):
            return False
        if opener == "{":
            if (yield from cursor.accept(":")) is None:
                return False
            emit(": ")
            if not (yield from _read_value(cursor, emit, depth)):
                return False


def _read_string(cursor: Cursor, emit: Emit) -> Reading[bool]:
    quote = cursor.text[cursor.pos]
    cursor.pos += 1
    inside = quoting(emit)
    emit('"')
    while True:
        found = yield from cursor.until([quote, "\\"], inside)
        if found is None:
            return False
        if found == quote:
            emit('"')
            return True
        if not (yield from cursor.more()):
            return False
        char = cursor.text[cursor.pos]
        cursor.pos += 1
        if char not in _HEX:
            inside(_ESCAPES.get(char, char if char in "\\'\"/" else f"\\{char}"))
            continue
        size = _HEX[char]
        code = ""
        while len(code) < size and (yield from cursor.more()):
            code += cursor.text[cursor.pos]
            cursor.pos += 1
        if re.fullmatch(f"[0-9a-fA-F]{{{size}}}", code) is None or int(code, 16) > 0x10FFFF:
            inside(f"\\{char}{code}")
        elif char == "U":
            inside(chr(int(code, 16)))
        else:
            emit(f"\\u{code:0>4}")  # half of a surrogate pair, perhaps
