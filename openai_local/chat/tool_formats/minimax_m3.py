"""MiniMax M3: arguments as nested elements, each tag behind a mark of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openai_local.chat.tool_formats.arguments import alternatives, as_json, quoting, sequence
from openai_local.chat.tool_formats.cursor import MAX_DEPTH, Cursor, Emit, Reading
from openai_local.chat.tool_formats.derive import render_call
from openai_local.chat.tool_formats.format import ToolFormat
from openai_local.chat.tool_formats.input_grammar import InputGrammar
from openai_local.chat.tool_formats.lark import Lark
from openai_local.chat.tool_formats.layout import CallLayout
from openai_local.chat.tool_formats.schema import (
    SchemaUnsupported,
    check_keywords,
    items_of,
    list_bounds,
    object_members,
    properties_of,
    resolve,
    string_patterns,
    types_of,
    with_definitions,
)
from openai_local.chat.traits import NAME

if TYPE_CHECKING:
    from openai_local.chat.template import ChatTemplate

MARK = "]<]minimax[>["
_LISTS = frozenset({"type", "items", "minItems", "maxItems"})
_MAX_KEY = 256


@dataclass(frozen=True, slots=True)
class NestedArguments:
    """``<city>Paris</city><tags><item>a</item></tags>``"""

    markers: tuple[str, ...] = (MARK,)

    def write(self, arguments: Mapping[str, Any]) -> str:
        return _written(arguments)

    def rule(self, grammar: Lark, schema: Mapping[str, Any]) -> str:
        return _Notation(grammar, schema).members(schema)

    def input_rule(self, grammar: Lark, key: str, text: InputGrammar) -> str:
        head = grammar.literal(f"{MARK}<{key}>")
        return f"{head} {text.bare(grammar, f'{MARK}</{key}>')}"

    def read(self, cursor: Cursor, schema: Mapping[str, Any], emit: Emit) -> Reading[bool]:
        return (yield from _Reader(cursor, schema, emit).members(schema, 0))


FORMAT = ToolFormat(
    "minimax_m3",
    CallLayout(
        (f'{MARK}<invoke name="',),
        ('">',),
        (f"{MARK}</invoke>\n",),
        open=f"{MARK}<tool_call>\n",
        close=f"{MARK}</tool_call>",
        arguments=NestedArguments(),
    ),
)


def find(template: ChatTemplate) -> ToolFormat | None:
    return FORMAT if f'{MARK}<invoke name="{NAME}">' in render_call(template) else None


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return "".join(
            f"{MARK}<{key}>{_written(item)}{MARK}</{key}>"
            for key, item in value.items()
            if item is not None
        )
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "".join(f"{MARK}<item>{_written(item)}{MARK}</item>" for item in value)
    return value if isinstance(value, str) else json.dumps(value)


class _Notation:
    """Writes the rules of one schema, each part once."""

    def __init__(self, grammar: Lark, root: Mapping[str, Any]) -> None:
        self._grammar = grammar
        self._root = root
        self._names: dict[str, str] = {}

    def members(self, schema: Mapping[str, Any]) -> str:
        members, others = object_members(schema, self._root)
        if not members and others is not False:
            raise SchemaUnsupported("additionalProperties", reason="members have no names")
        return sequence(self._grammar, members, self._element, "")

    def _element(self, key: str, schema: Any) -> str:
        """A value with its tags."""
        name = f"{key} {json.dumps(schema, sort_keys=True)}"
        if name not in self._names:
            self._names[name] = rule = self._grammar.reserve("element")
            head = self._grammar.literal(f"{MARK}<{key}>")
            self._grammar.define(rule, f"{head} {self._value(schema, f'{MARK}</{key}>')}")
        return self._names[name]

    def _value(self, schema: Any, close: str) -> str:
        grammar = self._grammar
        end = grammar.literal(close)
        bodies: list[str] = []
        for option in alternatives(schema, self._root):
            types = types_of(option, self._root)
            option = resolve(option, self._root)
            if "string" in types and len(types) > 1:
                check_keywords(option, frozenset({"type"}))
                option = {"type": "string"}  # of anything, text is the least that can be said
                types = frozenset({"string"})
            if types == {"string"}:
                bodies.append(self._string(option, close))
            elif types == {"array"}:
                check_keywords(option, _LISTS)
                item = self._element("item", option.get("items", True))
                bodies.append(f"{list_bounds(item, option, '')} {end}")
            elif types == {"object"}:
                bodies.append(f"{self.members(option)} {end}")
            elif types != {"null"}:  # which this notation leaves out
                bodies.append(f"{grammar.json(with_definitions(option, self._root))} {end}")
        if not bodies:
            raise SchemaUnsupported("type", reason="null cannot be written")
        return grammar.choice(bodies)

    def _string(self, schema: Mapping[str, Any], close: str) -> str:
        grammar = self._grammar
        if "enum" in schema or "const" in schema:
            texts = schema["enum"] if "enum" in schema else [schema["const"]]
            return grammar.choice(grammar.literal(f"{text}{close}") for text in texts)
        text = grammar.text([MARK], string_patterns(schema))
        return grammar.closed_text(text, close)


class _Reader:
    """Reads the elements of one call, which has the schema ``root``."""

    def __init__(self, cursor: Cursor, root: Mapping[str, Any], emit: Emit) -> None:
        self._cursor = cursor
        self._root = root
        self._emit = emit

    def members(self, schema: Any, depth: int) -> Reading[bool]:
        cursor, emit = self._cursor, self._emit
        properties = properties_of(schema, self._root)
        emit("{")
        first = True
        while (yield from self._at_tag()):
            yield from cursor.accept(f"{MARK}<")
            key: list[str] = []
            if (yield from cursor.until([">"], key.append, _MAX_KEY)) is None:
                return False
            name = "".join(key)
            emit(f"{'' if first else ', '}{json.dumps(name, ensure_ascii=False)}: ")
            first = False
            part = properties.get(name, {})
            if not (yield from self._value(part, f"{MARK}</{name}>", depth + 1)):
                return False
        emit("}")
        return True

    def _at_tag(self) -> Reading[bool]:
        """Whether an element begins here; stays in place."""
        cursor = self._cursor
        place = cursor.mark()
        found = (yield from cursor.accept(f"{MARK}<")) is not None
        opens = found and (yield from cursor.peek()) not in ("/", "")
        cursor.back(place)
        return opens

    def _value(self, schema: Any, close: str, depth: int) -> Reading[bool]:
        cursor, emit = self._cursor, self._emit
        types = types_of(schema, self._root)
        if types == {"string"}:
            emit('"')
            found = yield from cursor.until([close], quoting(emit))
            if found is not None:
                emit('"')
            return found is not None
        if types & {"object", "array"} and depth < MAX_DEPTH:
            place = cursor.mark()
            items = (yield from cursor.accept(f"{MARK}<item>")) is not None
            cursor.back(place)
            if "array" in types and (items or "object" not in types):
                whole = yield from self._items(schema, depth)
                return whole and (yield from cursor.accept(close)) is not None
            if types == {"object"} or (yield from self._at_tag()):
                whole = yield from self.members(schema, depth)
                return whole and (yield from cursor.accept(close)) is not None
        text: list[str] = []
        found = yield from cursor.until([close], text.append)
        emit(as_json("".join(text), types))
        return found is not None

    def _items(self, schema: Any, depth: int) -> Reading[bool]:
        item = items_of(schema, self._root)
        self._emit("[")
        first = True
        while (yield from self._at_tag()):
            if (yield from self._cursor.accept(f"{MARK}<item>")) is None:
                return False
            if not first:
                self._emit(", ")
            first = False
            if not (yield from self._value(item, f"{MARK}</item>", depth + 1)):
                return False
        self._emit("]")
        return True
