"""Gemma 4: arguments in a notation of its own, ``{city:<|"|>Paris<|"|>,days:3}``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openai_local.chat.tool_formats.arguments import alternatives, as_json, quoting, sequence
from openai_local.chat.tool_formats.cursor import MAX_DEPTH, Cursor, Emit, Reading
from openai_local.chat.tool_formats.derive import render_call
from openai_local.chat.tool_formats.format import ToolFormat
from openai_local.chat.tool_formats.input_grammar import InputGrammar
from openai_local.chat.tool_formats.json_reader import read_json
from openai_local.chat.tool_formats.lark import Lark
from openai_local.chat.tool_formats.layout import CallLayout
from openai_local.chat.tool_formats.schema import (
    ALL_TYPES,
    check_keywords,
    list_bounds,
    object_members,
    resolve,
    string_patterns,
    types_of,
    with_definitions,
)
from openai_local.chat.traits import NAME

if TYPE_CHECKING:
    from openai_local.chat.template import ChatTemplate

QUOTE = '<|"|>'
_SCALAR = re.compile(r"[^,}\]<]")
_LISTS = frozenset({"type", "items", "minItems", "maxItems"})


@dataclass(frozen=True, slots=True)
class GemmaArguments:
    """Objects and lists as in JSON without spaces, keys bare, strings between ``<|"|>``."""

    markers: tuple[str, ...] = (QUOTE,)

    def write(self, arguments: Mapping[str, Any]) -> str:
        return _written(arguments)

    def rule(self, grammar: Lark, schema: Mapping[str, Any]) -> str:
        return _Notation(grammar, schema).value({**schema, "type": "object"})

    def input_rule(self, grammar: Lark, key: str, text: InputGrammar) -> str:
        head, end = grammar.literal(f"{{{key}:{QUOTE}"), grammar.literal("}")
        return f"{head} {text.bare(grammar, QUOTE)} {end}"

    def read(self, cursor: Cursor, schema: Mapping[str, Any], emit: Emit) -> Reading[bool]:
        if (yield from cursor.peek()) != "{":
            return False
        return (yield from _read_value(cursor, emit))


FORMAT = ToolFormat(
    "gemma",
    CallLayout(
        ("<|tool_call>call:",), (), ("<tool_call|>",), arguments=GemmaArguments()
    ),
)  # fmt: skip


def find(template: ChatTemplate) -> ToolFormat | None:
    return FORMAT if f"<|tool_call>call:{NAME}{{" in render_call(template) else None


def _written(value: Any) -> str:
    if isinstance(value, str):
        return f"{QUOTE}{value}{QUOTE}"
    if isinstance(value, Mapping):
        return (
            "{"
            + ",".join(f"{key}:{_written(value[key])}" for key in sorted(value, key=str.lower))
            + "}"
        )
    if isinstance(value, Sequence):
        return "[" + ",".join(map(_written, value)) + "]"
    return json.dumps(value)


class _Notation:
    """Writes the rules of one schema, each part once."""

    def __init__(self, grammar: Lark, root: Mapping[str, Any]) -> None:
        self._grammar = grammar
        self._root = root
        self._names: dict[str, str] = {}

    def value(self, schema: Any) -> str:
        key = json.dumps(schema, sort_keys=True)
        if key not in self._names:
            self._names[key] = name = self._grammar.reserve("value")
            self._grammar.define(name, self._value(schema))
        return self._names[key]

    def _value(self, schema: Any) -> str:
        bodies: list[str] = []
        for option in alternatives(schema, self._root):
            types = types_of(option, self._root)
            option = resolve(option, self._root)
            nested = types & {"string", "object", "array"}
            if len(nested) > 1:
                check_keywords(option, frozenset({"type"}))
            bodies += [self._nested(kind, option if len(types) == 1 else {}) for kind in nested]
            if plain := types - nested:
                part = option if not nested else {"type": sorted(plain)}
                bodies.append(self._grammar.json(with_definitions(part, self._root)))
        return self._grammar.choice(sorted(bodies))

    def _nested(self, kind: str, schema: Mapping[str, Any]) -> str:
        if kind == "string":
            return self._string(schema)
        return self._list(schema) if kind == "array" else self._object(schema)

    def _string(self, schema: Mapping[str, Any]) -> str:
        grammar = self._grammar
        if "enum" in schema or "const" in schema:
            texts = schema["enum"] if "enum" in schema else [schema["const"]]
            return grammar.choice(grammar.literal(f"{QUOTE}{t}{QUOTE}") for t in texts)
        text = grammar.text([QUOTE], string_patterns(schema))
        return f"{grammar.literal(QUOTE)} {grammar.closed_text(text, QUOTE)}"

    def _list(self, schema: Mapping[str, Any]) -> str:
        check_keywords(schema, _LISTS)
        return f'"[" {list_bounds(self.value(schema.get("items", True)), schema, ",")} "]"'

    def _object(self, schema: Mapping[str, Any]) -> str:
        members, others = object_members(schema, self._root)
        members.sort(key=lambda member: member[0].lower())  # as the template has them
        if not members and others is not False:
            pair = f'{self._grammar.regex("[A-Za-z0-9_.-]+", "KEY")} ":" {self.value(others)}'
            return f'"{{" ( {pair} ( "," {pair} )* )? "}}"'

        def member(key: str, part: Any) -> str:
            return f"{self._grammar.literal(key + ':')} {self.value(part)}"

        return f'"{{" {sequence(self._grammar, members, member, chr(34) + "," + chr(34))} "}}"'


def _read_value(cursor: Cursor, emit: Emit, depth: int = 0) -> Reading[bool]:
    yield from cursor.skip_space()
    first = yield from cursor.peek()
    if first == '"':
        return (yield from read_json(cursor, emit))
    if first == "<" and (yield from cursor.accept(QUOTE)) is not None:
        emit('"')
        found = yield from cursor.until([QUOTE], quoting(emit))
        if found is not None:
            emit('"')
        return found is not None
    if first and first in "{[":
        return depth < MAX_DEPTH and (yield from _read_items(cursor, first, emit, depth + 1))
    word = yield from cursor.word(_SCALAR)
    if word:
        emit(as_json(word, ALL_TYPES))
    return bool(word) and (yield from cursor.more())


def _read_items(cursor: Cursor, opener: str, emit: Emit, depth: int) -> Reading[bool]:
    closer = "}" if opener == "{" else "]"
    cursor.pos += 1
    emit(opener)
    first = True
    while (yield from cursor.accept(closer)) is None:
        if not first:
            if (yield from cursor.accept(",")) is None:
                return False
            emit(", ")
        first = False
        if opener == "{":
            key: list[str] = []
            if (yield from cursor.until([":"], key.append, 256)) is None:
                return False
            name = "".join(key).strip().replace(QUOTE, "").strip('"')
            emit(f"{json.dumps(name, ensure_ascii=False)}: ")
        if not (yield from _read_value(cursor, emit, depth)):
            return False
    emit(closer)
    return True
