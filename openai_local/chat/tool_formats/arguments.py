"""The two usual ways to write a call's arguments: as JSON, and one by one in tags."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from openai_local.chat.tool_formats.cursor import Cursor, Emit, Reading
from openai_local.chat.tool_formats.input_grammar import InputGrammar
from openai_local.chat.tool_formats.json_reader import read_json
from openai_local.chat.tool_formats.lark import Lark
from openai_local.chat.tool_formats.schema import (
    ANNOTATIONS,
    check_keywords,
    object_members,
    properties_of,
    resolve,
    string_patterns,
    type_of,
    types_of,
    with_definitions,
)

_MAX_KEY = 256
_WORDS = {"True": True, "False": False, "None": None}
# How a value of each type begins, or is, so that a string beside it is told from it.
_LOOKS_LIKE = {
    "null": r"\s*(null|None)\s*",
    "boolean": r"\s*([Tt]rue|[Ff]alse)\s*",
    "integer": r"\s*-?[0-9][0-9.eE+\-]*\s*",
    "number": r"\s*-?[0-9][0-9.eE+\-]*\s*",
    "object": r"\s*\{(?s:.*)",
    "array": r"\s*\[(?s:.*)",
}


class Arguments(Protocol):
    """How a model writes the arguments of a call."""

    @property
    def markers(self) -> Sequence[str]:
        """Texts of its own that may be control tokens."""
        ...

    def write(self, arguments: Mapping[str, Any]) -> str: ...

    def rule(self, grammar: Lark, schema: Mapping[str, Any]) -> str:
        """An expression for arguments of ``schema``. Raises SchemaUnsupported."""
        ...

    def input_rule(self, grammar: Lark, key: str, text: InputGrammar) -> str:
        """An expression for one argument, a text of another grammar. Raises InputUnsupported."""
        ...

    def read(self, cursor: Cursor, schema: Mapping[str, Any], emit: Emit) -> Reading[bool]:
        """Pass on the arguments as JSON; False where they are cut off."""
        ...


@dataclass(frozen=True, slots=True)
class JsonArguments:
    """``{"city": "Paris"}``"""

    separators: tuple[str, str] = (", ", ": ")
    markers: tuple[str, ...] = ()

    def write(self, arguments: Mapping[str, Any]) -> str:
        return json.dumps(arguments, ensure_ascii=False, separators=self.separators)

    def rule(self, grammar: Lark, schema: Mapping[str, Any]) -> str:
        return grammar.json(schema, self.separators)

    def input_rule(self, grammar: Lark, key: str, text: InputGrammar) -> str:
        head = grammar.literal(f'{{"{key}"{self.separators[1]}"')
        return f"{head} {text.quoted(grammar)} {grammar.literal(chr(34) + '}')}"

    def read(self, cursor: Cursor, schema: Mapping[str, Any], emit: Emit) -> Reading[bool]:
        return read_json(cursor, emit)


@dataclass(frozen=True, slots=True)
class TaggedArguments:
    """``<parameter=city>Paris</parameter>``: strings as they are, all else as JSON."""

    open: str  # before a name
    close_key: str  # between the name and a string
    close_value: str
    close_key_json: str  # between the name and anything else
    separator: str = ""
    cdata: bool = False  # <![CDATA[…]]> around what would read as markup
    python_words: bool = False  # True, False and None

    @property
    def markers(self) -> Sequence[str]:
        return (self.open, self.close_key, self.close_key_json, self.close_value)

    def write(self, arguments: Mapping[str, Any]) -> str:
        return self.separator.join(self._written(*item) for item in arguments.items())

    def _written(self, key: str, value: Any) -> str:
        if isinstance(value, str):
            if self.cdata and any(char in value for char in "<&\n"):
                value = f"<![CDATA[{value}]]>"
            return f"{self.open}{key}{self.close_key}{value}{self.close_value}"
        word = self.python_words and (value is None or isinstance(value, bool))
        text = str(value) if word else json.dumps(value, ensure_ascii=False)
        return f"{self.open}{key}{self.close_key_json}{text}{self.close_value}"

    def rule(self, grammar: Lark, schema: Mapping[str, Any]) -> str:
        members, others = object_members(schema, schema)
        if not members and others is not False:
            return self._others(grammar, schema, others)

        def member(key: str, part: Any) -> str:
            return self._member(grammar, grammar.literal(f"{self.open}{key}"), part, schema)

        return sequence(grammar, members, member, grammar.literal(self.separator))

    def input_rule(self, grammar: Lark, key: str, text: InputGrammar) -> str:
        head = grammar.literal(f"{self.open}{key}{self.close_key}")
        return f"{head} {text.bare(grammar, self.close_value)}"

    def _others(self, grammar: Lark, root: Mapping[str, Any], part: Any) -> str:
        key = grammar.literal(self.open) + " " + grammar.regex("[A-Za-z0-9_.-]+", "KEY")
        return f"( {self._member(grammar, key, part, root)} )*"

    def _member(self, grammar: Lark, head: str, part: Any, root: Mapping[str, Any]) -> str:
        """A value with what is around it.

        Where nothing marks a string, text that reads as a value of another type is one: that is
        well where any value of the type will do, and else such text is left out.
        """
        options = [(resolve(option, root), option) for option in alternatives(part, root)]
        bodies: list[str] = []
        bound: set[str] = set()
        for schema, _ in options:
            if set(schema) - ANNOTATIONS - {"type"}:
                bound |= types_of(schema, root) - {"string"}
        for schema, option in options:
            types = types_of(schema, root)
            others = types - {"string"}
            if "string" in types:
                if others:
                    check_keywords(schema, frozenset({"type"}))
                doubtful = bound if self.close_key == self.close_key_json else set()
                text = self._strings(grammar, schema, frozenset(doubtful))
                bodies.append(f"{grammar.literal(self.close_key)} {text}")
                option = {"type": sorted(others)}
            if others:
                bodies.append(self._value(grammar, option, root, others))
        return f"{head} {grammar.choice(bodies)}"

    def _value(self, grammar: Lark, part: Any, root: Mapping[str, Any], types: Any) -> str:
        start, end = grammar.literal(self.close_key_json), grammar.literal(self.close_value)
        values = [grammar.json(with_definitions(part, root))]
        if not {"enum", "const"} & set(part):
            # Templates print these as Python does, so models may, too.
            values += ['"True"', '"False"'] if "boolean" in types else []
            values += ['"None"'] if "null" in types else []
        return f"{start} {grammar.choice(values)} {end}"

    def _strings(self, grammar: Lark, schema: Mapping[str, Any], others: frozenset[str]) -> str:
        """Raw text and what closes it; none that would read as one of ``others``."""
        closer = self.close_value.strip()
        if "enum" in schema or "const" in schema:
            values = schema["enum"] if "enum" in schema else [schema["const"]]
            return grammar.choice(grammar.literal(f"{v}{self.close_value}") for v in values
                                  if isinstance(v, str))  # fmt: skip
        within = string_patterns(schema)
        without = [_LOOKS_LIKE[kind] for kind in sorted(others)]
        if not self.cdata:
            text = grammar.text([closer], within, without)
            return grammar.closed_text(text, self.close_value)
        plain = grammar.text([closer], [*within, "[^<&\\n]*"], without)
        marked = grammar.text(["]]>"], within)
        end = grammar.literal(self.close_value)
        return grammar.choice(
            [
                grammar.closed_text(plain, self.close_value),
                f'"<![CDATA[" {grammar.closed_text(marked, "]]>")} {end}',
            ]
        )

    def read(self, cursor: Cursor, schema: Mapping[str, Any], emit: Emit) -> Reading[bool]:
        properties = properties_of(schema, schema)
        emit("{")
        first = True
        while True:
            if not first and self.separator.strip():
                yield from cursor.accept(self.separator)
            if (yield from cursor.accept(self.open)) is None:
                break
            key: list[str] = []
            is_text = yield from self._read_key(cursor, key)
            if is_text is None:
                return False
            name = "".join(key)
            emit(f"{'' if first else ', '}{json.dumps(name, ensure_ascii=False)}: ")
            first = False
            types = types_of(properties.get(name, {}), schema)
            if self.close_key != self.close_key_json:
                types = frozenset({"string"}) if is_text else types - {"string"}
            if not (yield from self._read_value(cursor, types, emit)):
                return False
        emit("}")
        return True

    def _read_key(self, cursor: Cursor, key: list[str]) -> Reading[bool | None]:
        """Whether what follows is marked as a string; None where the text ends."""
        markers = (self.close_key, self.close_key_json)
        heads = tuple(marker.split()[0] for marker in markers)
        if (yield from cursor.until(tuple(dict.fromkeys(heads)), key.append, _MAX_KEY)) is None:
            return None
        for marker, head, is_text in zip(markers, heads, (True, False), strict=True):
            if (yield from cursor.accept(marker[len(head) :])) is not None:
                return is_text
        return None

    def _read_value(self, cursor: Cursor, types: frozenset[str], emit: Emit) -> Reading[bool]:
        if self.cdata and (yield from cursor.accept("<![CDATA[")) is not None:
            emit('"')
            end = yield from cursor.until(["]]>"], quoting(emit))
            emit('"') if end is not None else None
            return end is not None and (yield from cursor.accept(self.close_value)) is not None
        closers = _loose(self.close_value)
        if types == {"string"}:
            emit('"')
            end = yield from cursor.until(closers, quoting(emit))
            emit('"') if end is not None else None
            return end is not None
        value: list[str] = []
        end = yield from cursor.until(closers, value.append)
        emit(as_json("".join(value), types))
        return end is not None


def _loose(*markers: str) -> tuple[str, ...]:
    """The markers, and each without the space around it."""
    return tuple(dict.fromkeys([*markers, *(marker.strip() for marker in markers)]))


def quoting(emit: Emit) -> Emit:
    """Passes text on as the inside of a JSON string."""
    return lambda text: emit(json.dumps(text, ensure_ascii=False)[1:-1])


def as_json(text: str, types: frozenset[str]) -> str:
    """What a model wrote for a value of one of ``types``, as JSON; else as a JSON string."""
    word = text.strip()
    try:
        value = _WORDS[word] if word in _WORDS else json.loads(word, parse_constant=_no_constant)
    except ValueError:
        return json.dumps(text, ensure_ascii=False)
    if isinstance(value, str) or ("string" in types and not _is_of(value, types)):
        return json.dumps(value if "string" not in types else text, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False) if word in _WORDS else word


def _is_of(value: Any, types: frozenset[str]) -> bool:
    return type_of(value) in types


def _no_constant(text: str) -> None:
    raise ValueError(text)


def alternatives(schema: Any, root: Mapping[str, Any]) -> list[Any]:
    """The schemas of which one must hold, strings apart from the rest."""
    resolved = resolve(schema, root)
    if "anyOf" in resolved and set(resolved) - {"anyOf"} <= {"description", "title", "default"}:
        return [part for option in resolved["anyOf"] for part in alternatives(option, root)]
    kinds = resolved.get("type")
    if isinstance(kinds, list) and "string" in kinds and len(kinds) > 1:
        rest = [kind for kind in kinds if kind != "string"]
        return [{**_only(resolved, "string"), "type": "string"},
                {**_only(resolved, *rest), "type": rest}]  # fmt: skip
    if "enum" in resolved:
        texts = [value for value in resolved["enum"] if isinstance(value, str)]
        others = [value for value in resolved["enum"] if not isinstance(value, str)]
        return [{"enum": part} for part in (texts, others) if part]
    return [schema]


_KEYWORDS_OF = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties", "patternProperties"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}
_KEYWORDS_OF["integer"] = _KEYWORDS_OF["number"]
_TYPED = frozenset().union(*_KEYWORDS_OF.values())


def _only(schema: Mapping[str, Any], *types: str) -> dict[str, Any]:
    """``schema`` without the keywords of other types, and of enum what is of these types."""
    own = frozenset().union(*(_KEYWORDS_OF.get(kind, set()) for kind in types))
    kept = {key: value for key, value in schema.items() if key not in _TYPED or key in own}
    if "enum" in kept:
        kept["enum"] = [value for value in kept["enum"] if type_of(value) in types]
    return kept


def sequence(
    grammar: Lark,
    members: Sequence[tuple[str, Any, bool]],
    member: Callable[[str, Any], str],
    separator: str,
) -> str:
    """The members in order, those that are not required at will, with separators between."""
    rests = {False: "", True: ""}
    for key, part, required in reversed(members):
        taken = grammar.rule(member(key, part), "arg")
        nexts: dict[bool, str] = {}
        for started in (False, True):
            lead = f"{separator} " if started and separator else ""
            body = f"{lead}{taken} {rests[True]}".strip()
            if not required:
                body = f"( {body} )?" if not rests[started] else f"{body} | {rests[started]}"
            nexts[started] = grammar.rule(body, "args")
        rests = nexts
    return rests[False] or '""'
