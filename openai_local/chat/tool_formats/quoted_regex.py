"""A regular expression whose texts stand within a JSON string, as a rule of Lark for those.

Reads Rust's syntax, and refuses what it cannot follow. It becomes a rule and no expression, since
a lexer looks one byte ahead: behind text that may go on with a quote it takes the backslash of any
other escape for that quote's.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

Has = Callable[[str], bool]

# Characters that cannot stand for themselves, as they are written.
ESCAPES = {char: json.dumps(char)[1:-1] for char in '\b\f\n\r\t"\\'}
_SPECIAL = frozenset({*ESCAPES, *map(chr, range(32))})
_PLAIN = r'[^"\\\x00-\x1f]'

_CONTROLS = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_ESCAPE = re.compile(
    r"\\(?:x\{(?P<braced>[0-9A-Fa-f]{1,6})\}|x(?P<x>[0-9A-Fa-f]{2})|u\{(?P<u>[0-9A-Fa-f]{1,6})\}"
    r"|u(?P<u4>[0-9A-Fa-f]{4})|U(?P<u8>[0-9A-Fa-f]{8})|(?P<set>[dDsSwW])"
    r"|(?P<p>[pP])(?:\{(?P<category>\w+)\}|(?P<letter>[A-Z]))|(?P<control>[afnrtv])"
    r"|(?P<mark>[^\w\s<>]))"
)
_CATEGORIES = frozenset("C L M N P S Z Cc Cf Ll Lm Lo Lt Lu Mc Me Mn Nd Nl No Pc Pd Pe Pf Pi Po "
                        "Ps Sc Sk Sm So Zl Zp Zs".split())  # fmt: skip
_GROUP = re.compile(r"\((?:\?(?:P?<\w+>|(?P<on>[is]*)(?:-(?P<off>[is]+))?(?P<end>[:)])))?")
_REPEAT = re.compile(r"\{[0-9]+(?:,[0-9]*)?\}")


class NotFollowed(Exception):
    """Something of the syntax whose meaning is not known here."""


@dataclass(frozen=True, slots=True)
class _Char:
    """One character that ``has`` is true of."""

    source: str
    has: Has
    ignores_case: bool

    @property
    def written(self) -> list[str]:
        """Of those that are escaped."""
        return [json.dumps(text) for char, text in ESCAPES.items() if self.has(char)]

    def terminals(self, repeat: str = "") -> list[str]:
        """Of which it is one; ``repeat`` is for a run of those that are not escaped."""
        if self.source[0] not in ".[" and not _is_set(self.source):
            if self.written:
                return self.written[:1]
            if _char(self.source) < " ":
                raise NotFollowed(f"{self.source}, which JSON strings do not have as it is")
            return [self._terminal(f"{self.source}{repeat}")]
        own = r"[\s\S]" if self.source == "." and self.has("\n") else self.source
        own = r"[^\n]" if own == "." else own
        plain = self._terminal(f"[{own}&&{_PLAIN}]{repeat}")
        return [plain, *self.written]

    def _terminal(self, pattern: str) -> str:
        return f"/(?i:{pattern})/" if self.ignores_case else f"/{pattern}/"


class QuotedRegex:
    """Raises NotFollowed."""

    def __init__(self, pattern: str, flags: str = "") -> None:
        if set(flags) - {"i", "s"}:
            raise NotFollowed(f"the flags {flags}")
        self.source = f"(?{flags}:{pattern})" if flags else pattern
        self._pattern = pattern
        self._at = 0
        self._flags = [frozenset(flags)]  # of each group that is open
        self._parts: list[_Char | str] = []  # characters, and what is between them
        while self._at < len(pattern):
            part = self._next()
            if part:
                self._parts.append(part)
        if len(self._flags) > 1:
            raise NotFollowed(f"a group that is not closed: {pattern}")
        # Whether a text of it may be another within a JSON string.
        self.is_escaped = any(has(char) for has in self.sets for char in _SPECIAL)

    @property
    def as_it_is(self) -> str:
        """A terminal, as Lark has it: of nothing it would be a comment."""
        return f"/{self.source}/" if self.source else '""'

    @property
    def sets(self) -> list[Has]:
        """Which characters its texts have."""
        return [part.has for part in self._parts if isinstance(part, _Char)]

    @property
    def units(self) -> list[str] | None:
        """Where it is any number of single characters: terminals that together are those."""
        match self._parts:
            case [_Char() as char] | [_Char() as char, "+" | "*"]:
                return char.terminals("+")
        return None

    def rule(self, *, alone: bool) -> str:
        """An expression of a rule for its texts within a JSON string; ``alone``, nothing that
        follows goes before what it could take."""
        pieces: list[str] = []
        for i, part in enumerate(self._parts):
            if isinstance(part, _Char):
                options = part.terminals("+" if alone and self._runs(i, part) else "")
                pieces.append(options[0] if len(options) == 1 else f"( {' | '.join(options)} )")
                continue
            if part in ("|", ")") and (not pieces or pieces[-1] in ("|", "(")):
                pieces.append('""')
            pieces.append(part)
        if not pieces or pieces[-1] == "|":
            pieces.append('""')
        return f"( {' '.join(pieces)} )"

    def _runs(self, i: int, char: _Char) -> bool:
        """Whether all that follow of ``char`` are its own: then they may be taken together."""
        if self._parts[i + 1 : i + 2] not in (["*"], ["+"]):
            return False
        rest = self._parts[i + 2 :]
        if all(part == ")" for part in rest):
            return True
        after, more = rest[0], rest[1:2]
        return (
            isinstance(after, _Char)
            and (not more or isinstance(more[0], _Char))
            and not any(isinstance(part, str) for part in self._parts[: i + 1])
            and not _is_set(after.source)
            and after.source[0] not in ".["
            and not char.has(_char(after.source))
        )

    def _next(self) -> _Char | str:
        pattern, at = self._pattern, self._at
        char = pattern[at]
        if (char == "^" and at == 0) or (char == "$" and at == len(pattern) - 1):
            self._at += 1
            return ""
        if char == "(":
            return self._group()
        if char == ")":
            self._flags.pop()
            if not self._flags:
                raise NotFollowed(f"a group that was not opened: {pattern}")
        if char in ")|":
            self._at += 1
            return char
        if char in "*+?" or (char == "{" and _REPEAT.match(pattern, at)):
            return self._repeat()
        if char in "^${}":
            raise NotFollowed(char)
        if char == ".":
            self._at += 1
            dot_all = "s" in self._flags[-1]
            return self._char(".", lambda c: dot_all or c != "\n")
        if char == "[":
            return self._class()
        has = self._item()
        return self._char(pattern[at : self._at], has)

    def _char(self, source: str, has: Has) -> _Char:
        return _Char(source, has, "i" in self._flags[-1])

    def _repeat(self) -> str:
        pattern, at = self._pattern, self._at
        found = _REPEAT.match(pattern, at)
        self._at = found.end() if found else at + 1
        # How eager it is makes no difference to which texts there are.
        self._at += pattern.startswith("?", self._at)
        return found.group() if found else pattern[at]

    def _group(self) -> str:
        found = _GROUP.match(self._pattern, self._at)
        if found is None or (found.group() == "(" and self._pattern.startswith("(?", self._at)):
            raise NotFollowed(self._pattern[self._at : self._at + 4])
        self._at = found.end()
        flags = (self._flags[-1] | set(found["on"] or "")) - set(found["off"] or "")
        if found["end"] == ")":
            self._flags[-1] = flags
            return ""
        self._flags.append(flags)
        return "("

    def _class(self) -> _Char:
        """Of characters, not of other classes."""
        pattern, start = self._pattern, self._at
        self._at += 1
        negated = pattern.startswith("^", self._at)
        self._at += negated
        items: list[Has] = []
        first = self._at
        while True:
            rest = pattern[self._at : self._at + 2]
            if not rest or rest[0] == "[" or rest in ("&&", "--", "~~"):
                raise NotFollowed(pattern[start : self._at + 2])
            if rest[0] == "]" and self._at > first:
                break
            items.append(self._range())
        self._at += 1
        return self._char(
            pattern[start : self._at], lambda c: any(has(c) for has in items) is not negated
        )

    def _range(self) -> Has:
        pattern, at = self._pattern, self._at
        low = self._item()
        if not pattern.startswith("-", self._at) or pattern[self._at : self._at + 2] == "-]":
            return low
        first = _char(pattern[at : self._at])
        self._at += 1
        at = self._at
        self._item()
        last = _char(pattern[at : self._at])
        return lambda c: first <= c <= last

    def _item(self) -> Has:
        """One character, or an escape."""
        pattern, at = self._pattern, self._at
        if pattern[at : at + 1] != "\\":
            self._at += 1
            char = pattern[at : self._at]
            if not char:
                raise NotFollowed(pattern)
            return lambda c: c == char
        found = _ESCAPE.match(pattern, at)
        if found is None:
            raise NotFollowed(pattern[at : at + 2])
        self._at = found.end()
        if name := found["set"]:
            inner = _SETS[name.lower()]
            return inner if name.islower() else lambda c: not inner(c)
        if found["p"]:
            category = found["category"] or found["letter"]
            if category not in _CATEGORIES:
                raise NotFollowed(found.group())
            inside = found["p"] == "p"
            return lambda c: unicodedata.category(c).startswith(category) is inside
        char = _char(found.group())
        return lambda c: c == char


_SETS: dict[str, Has] = {
    "d": str.isdecimal,
    "s": str.isspace,
    "w": lambda c: c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M",
}


def _is_set(source: str) -> bool:
    return source[0] == "\\" and source[1] in "dDsSwWpP"


def _char(source: str) -> str:
    """The character that is written so. Raises NotFollowed where it is a set of them."""
    if source[0] != "\\":
        return source
    found = _ESCAPE.fullmatch(source)
    if found is None or found["set"] or found["p"]:
        raise NotFollowed(source)
    code = found["braced"] or found["x"] or found["u"] or found["u4"] or found["u8"]
    if code:
        if int(code, 16) > 0x10FFFF or 0xD800 <= int(code, 16) <= 0xDFFF:
            raise NotFollowed(source)
        return chr(int(code, 16))
    return _CONTROLS[found["control"]] if found["control"] else found["mark"]
