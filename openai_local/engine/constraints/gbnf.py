"""llama.cpp's grammar format, GBNF, to llguidance's Lark. Pure.

A lexeme of llguidance takes all that it can, where GBNF tries every way. So a grammar without
recursion becomes one regular expression, and one with it is spelt out character by character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from openai_local.engine.errors import ConstraintUnsupported, InvalidConstraint

MAX_DEPTH = 100
MAX_REPEAT = 2000  # llama.cpp's

_TOKEN = re.compile(
    r"(?P<space>[ \t]+|\#[^\n\r]*)|(?P<newline>\r\n|\r|\n)|(?P<name>[A-Za-z0-9_-]+)"
    r'|(?P<is>::=)|(?P<text>"(?:\\.|[^"\\\n])*")|(?P<chars>\[(?:\\.|[^\]\\\n])*\])'
    r"|(?P<repeat>[*+?]|\{[ \t]*\d+[ \t]*(?:,[ \t]*\d*[ \t]*)?\})|(?P<mark>[|().])"
    r"|(?P<token>!?<[^>\n]*>)",
    re.ASCII,
)
_CHAR = re.compile(
    r"\\x([0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})|\\([\\\"\[\]nrt])|([^\\])",
    re.DOTALL,
)
_SHORT = {"n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True, slots=True)
class _Chars:
    """One character of a set, as a regex."""

    regex: str


@dataclass(frozen=True, slots=True)
class _Name:
    name: str


@dataclass(frozen=True, slots=True)
class _Each:
    """Its parts, one after another."""

    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Any:
    """One of its parts."""

    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    part: _Node
    bounds: str


_Node = _Chars | _Name | _Each | _Any | _Repeat
_Rules = dict[str, _Node]


def gbnf_to_lark(text: str) -> str:
    """Raises InvalidConstraint, ConstraintUnsupported."""
    rules = _Parser(text).rules()
    if "root" not in rules:
        raise InvalidConstraint("gbnf", "there is no rule named root")
    names = _reachable(rules)
    prefix, head = ("r", "start: r0") if _is_recursive(rules, names) else ("R", "start: R0")
    numbers = {name: f"{prefix}{i}" for i, name in enumerate(names)}
    lines = [f"{numbers[name]}: {_lark(rules[name], numbers)}" for name in names]
    return "\n".join([head, *lines, ""])


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0
        self._depth = 0

    def rules(self) -> _Rules:
        rules: _Rules = {}
        self._skip_newlines()
        while self._kind() != "end":
            name = self._expect("name")
            self._expect("is")
            self._skip_newlines()
            if name in rules:
                raise InvalidConstraint("gbnf", f"the rule {name} is defined twice")
            rules[name] = self._alternatives()
            if self._kind() != "end":
                self._expect("newline")
            self._skip_newlines()
        return rules

    def _alternatives(self) -> _Node:
        parts = [self._sequence()]
        while self._kind() == "mark" and self._text() == "|":
            self._at += 1
            self._skip_newlines()
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else _Any(tuple(parts))

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while True:
            if self._depth:
                self._skip_newlines()
            # A name before ::= begins the next rule.
            if self._kind() == "name" and self._kind(1) != "is":
                parts.append(_Name(self._expect("name")))
            elif self._kind() == "text":
                chars = _chars(self._expect("text")[1:-1])
                parts.append(_Each(tuple(_Chars(_regex(char)) for char in chars)))
            elif self._kind() == "chars":
                parts.append(_Chars(_set(self._expect("chars")[1:-1])))
            elif self._kind() == "mark" and self._text() == ".":
                self._at += 1
                parts.append(_Chars("/(?s:.)/"))
            elif self._kind() == "mark" and self._text() == "(":
                parts.append(self._group())
            elif self._kind() == "repeat" and parts:
                parts[-1] = _Repeat(parts[-1], _bounds(self._expect("repeat")))
            else:
                return parts[0] if len(parts) == 1 else _Each(tuple(parts))

    def _group(self) -> _Node:
        self._at += 1
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ConstraintUnsupported("gbnf", "it is nested too deeply")
        self._skip_newlines()
        inner = self._alternatives()
        if self._text() != ")":
            raise InvalidConstraint("gbnf", "a ( is not closed")
        self._at += 1
        self._depth -= 1
        return inner

    def _kind(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at][0] if at < len(self._tokens) else "end"

    def _text(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _expect(self, kind: str) -> str:
        if self._kind() != kind:
            found = repr(self._text()) if self._kind() != "end" else "the end"
            raise InvalidConstraint("gbnf", f"{found} stands where {kind} is expected")
        self._at += 1
        return self._tokens[self._at - 1][1]

    def _skip_newlines(self) -> None:
        while self._kind() == "newline":
            self._at += 1


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise InvalidConstraint("gbnf", f"{text[at : at + 20]!r} is not understood")
        kind = str(match.lastgroup)
        if kind == "token":
            raise ConstraintUnsupported("gbnf", f"the token {match.group()} cannot be meant here")
        if kind != "space":
            yield kind, match.group()
        at = match.end()


def _chars(text: str) -> list[str]:
    chars, at = [], 0
    while at < len(text):
        match = _CHAR.match(text, at)
        code = match and (match.group(1) or match.group(2) or match.group(3))
        if match is None or (code and int(code, 16) > 0x10FFFF):
            raise InvalidConstraint("gbnf", f"{text[at : at + 2]!r} is no escape")
        if code:
            chars.append(chr(int(code, 16)))
        else:
            short = match.group(4)
            chars.append(_SHORT.get(short, short) if short else match.group(5))
        at = match.end()
    return chars


def _set(text: str) -> str:
    negated, text = text.startswith("^"), text.removeprefix("^")
    chars = _chars(text)
    if not chars:
        raise InvalidConstraint("gbnf", "[] has no characters")
    pieces, at = [], 0
    while at < len(chars):
        first = last = chars[at]
        if chars[at + 1 : at + 2] == ["-"] and at + 2 < len(chars):
            last = chars[at + 2]
            at += 2
        if first > last:
            raise InvalidConstraint("gbnf", f"[{first}-{last}] runs backwards")
        pieces.append(f"{_escape(first)}-{_escape(last)}")
        at += 1
    return f"/[{'^' if negated else ''}{''.join(pieces)}]/"


def _regex(char: str) -> str:
    return f"/{_escape(char)}/"


def _escape(char: str) -> str:
    if 0xD800 <= ord(char) < 0xE000:
        raise InvalidConstraint("gbnf", "half of a character")
    return f"\\x{{{ord(char):x}}}"


def _bounds(text: str) -> str:
    if text in "*+?":
        return text
    low, _, high = re.sub(r"[\s{}]", "", text).partition(",")
    if max(int(low), int(high or 0)) > MAX_REPEAT:
        raise ConstraintUnsupported("gbnf", f"{text} repeats more than {MAX_REPEAT} times")
    return f"{{{low},{high}}}" if "," in text else f"{{{low},{low}}}"


def _names_in(node: _Node) -> Iterator[str]:
    if isinstance(node, _Name):
        yield node.name
    elif isinstance(node, _Repeat):
        yield from _names_in(node.part)
    elif isinstance(node, (_Each, _Any)):
        for part in node.parts:
            yield from _names_in(part)


def _reachable(rules: _Rules) -> list[str]:
    names = ["root"]
    for name in names:
        for other in _names_in(rules[name]):
            if other not in rules:
                raise InvalidConstraint("gbnf", f"the rule {other} is not defined")
            if other not in names:
                names.append(other)
    return names


def _is_recursive(rules: _Rules, names: list[str]) -> bool:
    """Whether rules remain when those are taken away again and again that need none of the rest."""
    left = {name: set(_names_in(rules[name])) for name in names}
    while flat := [name for name, others in left.items() if not others & left.keys()]:
        for name in flat:
            del left[name]
    return bool(left)


def _lark(node: _Node, numbers: dict[str, str]) -> str:
    if isinstance(node, _Chars):
        return node.regex
    if isinstance(node, _Name):
        return numbers[node.name]
    if isinstance(node, _Repeat):
        return f"({_lark(node.part, numbers)}){node.bounds}"
    if isinstance(node, _Each):
        return " ".join(_lark(part, numbers) for part in node.parts) or '""'
    return "(" + " | ".join(_lark(part, numbers) for part in node.parts) + ")"
