"""A caller's Lark grammar where it stands within a call: as it is, or as of a JSON string. Pure.

It is read as far as its texts: its rules stay what they are. What could reach out of it, or would
mean something else within a call, is refused. What is ignored may stand at the end, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from openai_local.chat.tool_formats.lark import Lark
from openai_local.chat.tool_formats.quoted_regex import NotFollowed, QuotedRegex
from openai_local.chat.tool_formats.schema import InputUnsupported

_STRING = r'"(?:\\.|[^"\\\n])*"'
_TOKEN = re.compile(
    rf"""(?P<space>\s+|//[^\n]*|\#[^\n]*|%llguidance[ \t]*\{{[ \t]*\}})
    |%import[ \t]+common\.(?P<common>\w+)(?:[ \t]*->[ \t]*(?P<alias>[A-Z_][A-Z0-9_]*))?
    |(?P<range>{_STRING}[ \t]*\.\.[ \t]*{_STRING})
    |(?P<string>{_STRING}i?)
    |(?P<regex>/(?:\\.|[^/\\\n])+/[a-z]*)
    |(?P<repeat>\{{[ \t]*[0-9]+[ \t]*(?:,[ \t]*[0-9]*[ \t]*)?\}}|~[ \t]*[0-9]+(?:\.\.[0-9]+)?)
    |(?P<define>[?!]?[A-Za-z_][A-Za-z0-9_]*)[ \t]*:
    |[A-Za-z_][A-Za-z0-9_]*|->|%ignore\b|[|&~()\[\]?*+]""",
    re.VERBOSE,
)
_OTHER = re.compile(r"%\w+|\S{1,12}")
_ESCAPE = re.compile(r"\\(?:[\\\"/bfnrt]|u[0-9A-Fa-f]{4}|x([0-9A-Fa-f]{2}))")

# Lark's common terminals, as llguidance has them.
_FLOAT = r"([0-9]+\.[0-9]*|\.[0-9]+)([eE](\+|-)?[0-9]+)?|[0-9]+[eE](\+|-)?[0-9]+"
_COMMON = {
    "CNAME": "[_A-Za-z][_A-Za-z0-9]*",
    "CPP_COMMENT": r"\/\/[^\n]*",
    "CR": r"\r",
    "C_COMMENT": r"\/\*[^*]*\*+(?:[^\/*][^*]*\*+)*\/",
    "DECIMAL": r"[0-9]+\.[0-9]*|\.[0-9]+",
    "DIGIT": "[0-9]",
    "ESCAPED_STRING": r"\"([^\"\\]|\\.)*\"",
    "FLOAT": _FLOAT,
    "HEXDIGIT": "[a-fA-F0-9]",
    "INT": "[0-9]+",
    "LCASE_LETTER": "[a-z]",
    "LETTER": "[A-Za-z]",
    "LF": r"\n",
    "NEWLINE": r"(\r?\n)+",
    "NUMBER": rf"[0-9]+|{_FLOAT}",
    "SH_COMMENT": r"#[^\n]*",
    "SIGNED_FLOAT": rf"(\+|-)?({_FLOAT})",
    "SIGNED_INT": r"(\+|-)?[0-9]+",
    "SIGNED_NUMBER": rf"(\+|-)?([0-9]+|{_FLOAT})",
    "SQL_COMMENT": r"--[^\n]*",
    "UCASE_LETTER": "[A-Z]",
    "WORD": "[A-Za-z]+",
    "WS": r"[ \t\f\r\n]+",
    "WS_INLINE": r"[ \t]+",
}

MAX_DEFINITIONS = 1000

Piece = QuotedRegex | str


@dataclass(slots=True)
class _Definition:
    """A rule, a terminal, or one that has no name since it is for ``%ignore``."""

    name: str
    body: list[Piece]

    @property
    def is_terminal(self) -> bool:
        return self.name.isupper()

    @property
    def head(self) -> str:
        return self.name if self.name == "%ignore" else f"{self.name}:"


class InputGrammar:
    """Raises InputUnsupported for what is not followed here."""

    def __init__(self, definition: str) -> None:
        try:
            self._definitions = list(_definitions(definition))
        except NotFollowed as error:
            raise InputUnsupported(f"it has {error}") from None
        if len(self._definitions) > MAX_DEFINITIONS:
            raise InputUnsupported(f"it has more than {MAX_DEFINITIONS} rules")

    def quoted(self, lark: Lark) -> str:
        """A rule of ``lark`` for the inside of a JSON string."""
        try:
            return lark.within(_Quoted(self._definitions).text)
        except NotFollowed as error:
            raise InputUnsupported(f"it has {error}") from None

    def bare(self, lark: Lark, closer: str) -> str:
        """A rule of ``lark`` for the text as it is, and what closes it."""
        mark = closer.strip()
        if self.may_have(mark):
            raise InputUnsupported(f"its texts may have {mark!r} in them, which ends them")
        # A lexer that may take a beginning of what follows as text does not come back to it.
        if lark.begins(closer) is not None and self.may_have(closer[0]):
            raise InputUnsupported(f"its texts may have {closer[0]!r} in them, as {closer!r} has")
        return f"{lark.within(self.plain)} {lark.literal(closer)}"

    def may_have(self, text: str) -> bool:
        """Whether ``text`` may be a part of a text of it, as far as its characters tell."""
        pieces = [piece for found in self._definitions for piece in found.body]
        sets = [has for piece in pieces if isinstance(piece, QuotedRegex) for has in piece.sets]
        return "~" in pieces or all(
            any(has(form) for has in sets for form in (char, char.swapcase())) for char in text
        )

    @property
    def plain(self) -> str:
        """The grammar itself."""
        return "\n".join(f"{found.head} {_expression(found.body)}" for found in self._definitions)


class _Quoted:
    """Terminals whose texts are written in another way there become rules of other names. What is
    ignored then stands behind each terminal, since within such a rule it would be, too."""

    def __init__(self, definitions: list[_Definition]) -> None:
        self._definitions = definitions
        self._names: dict[str, str] = {}
        # Terminals are one to a lexer, with all that they are made of.
        self._parts = {piece for found in definitions if found.is_terminal
                       for piece in found.body if isinstance(piece, str)}  # fmt: skip
        self._prefix = "quoted"
        while any(found.name.startswith(self._prefix) for found in definitions):
            self._prefix += "_"
        self._skip = f"{self._prefix}_skip"
        self._find_names()
        ignored = [found.body for found in definitions if found.name == "%ignore"]
        self._skips = bool(ignored) and any(self._is_escaped(d.body) for d in definitions)
        lines = [self._written(d) for d in definitions if d.name != "%ignore" or not self._skips]
        if self._skips:
            units = [unit for body in ignored for unit in self._units(body)]
            lines.append(f"{self._skip}: ( {' | '.join(units)} )*")
        self.text = "\n".join(lines)

    def _find_names(self) -> None:
        n_known = -1
        while n_known < len(self._names):
            n_known = len(self._names)
            for found in self._definitions:
                if found.is_terminal and self._is_escaped(found.body):
                    self._names[found.name] = f"{self._prefix}_{found.name.lower()}"

    def _is_escaped(self, body: list[Piece]) -> bool:
        return any(
            piece in self._names if isinstance(piece, str) else piece.is_escaped for piece in body
        )

    def _written(self, found: _Definition) -> str:
        body = found.body
        if ("&" in body and self._is_escaped(body)) or ("~" in body and not _is_narrowed(body)):
            raise NotFollowed(f"{found.name}, which combines texts with quotes or line breaks")
        name = self._names.get(found.name, found.name)
        head = replace(found, name=name).head
        if not self._skips or found.is_terminal:
            whole = len(body) == 1 and found.name not in self._parts
            alone = whole or not found.is_terminal
            return f"{head} {_expression(body, self._names, alone=alone)}"
        if "&" in body or "~" in body:
            raise NotFollowed(f"{found.name}, which combines texts beside %ignore")
        words = []
        for piece, before in zip(body, [None, *body], strict=False):
            word = _expression([piece], self._names)
            is_terminal = isinstance(piece, QuotedRegex) or (piece.isupper() and before != "->")
            words.append(f"( {word} {self._skip} )" if is_terminal else word)
        return f"{head} {' '.join(words)}"

    def _units(self, body: list[Piece]) -> list[str]:
        """Of what is ignored: single characters, or runs of them, any number of times."""
        own = {found.name: found.body for found in self._definitions}
        for _ in own:
            if len(body) == 1 and isinstance(body[0], str):
                body = own.get(body[0], [])
        units = body[0].units if len(body) == 1 and isinstance(body[0], QuotedRegex) else None
        if units is None:
            raise NotFollowed("%ignore of more than single characters")
        return units


def _expression(
    body: list[Piece], names: Mapping[str, str] | None = None, *, alone: bool = True
) -> str:
    """With ``names``, of texts within a JSON string; ``alone``, each piece is a lexer's own."""
    return " ".join(
        (names or {}).get(piece, piece) if isinstance(piece, str)
        else piece.as_it_is if names is None or not piece.is_escaped
        else piece.rule(alone=alone)
        for piece in body
    )  # fmt: skip


def _is_narrowed(body: list[Piece]) -> bool:
    """Whether all that a negation leaves is in something else, too, which is no negation."""
    if not {"|", "(", "["}.isdisjoint(piece for piece in body if isinstance(piece, str)):
        return False
    parts: list[list[Piece]] = [[]]
    for piece in body:
        if piece == "&":
            parts.append([])
        else:
            parts[-1].append(piece)
    return any("~" not in part for part in parts)


def _definitions(definition: str) -> Iterator[_Definition]:
    """Raises NotFollowed."""
    found: _Definition | None = None
    for token in _tokens(definition):
        begun = _begun(token)
        if begun is not None:
            if found is not None:
                yield found
            found = begun
        elif found is None:
            raise NotFollowed(token.group())
        else:
            found.body.append(_piece(token))
    if found is not None:
        yield found


def _begun(token: re.Match[str]) -> _Definition | None:
    if token["define"]:
        return _Definition(token["define"].lstrip("?!"), [])
    if token["common"]:
        return _Definition(token["alias"] or token["common"], [_common(token["common"])])
    return _Definition("%ignore", []) if token.group() == "%ignore" else None


def _piece(token: re.Match[str]) -> Piece:
    text = token.group()
    if token["range"]:
        low, high = (_string(part) for part in re.findall(_STRING, text))
        if len(low) != 1 or len(high) != 1:
            raise NotFollowed(text)
        return QuotedRegex(rf"[\x{{{ord(low):x}}}-\x{{{ord(high):x}}}]")
    if token["string"]:
        body = "".join(f"\\x{{{ord(char):x}}}" for char in _string(text.removesuffix("i")))
        return QuotedRegex(body, "i" if text.endswith("i") else "")
    if token["regex"]:
        pattern, _, flags = text[1:].rpartition("/")
        return QuotedRegex(pattern, flags)
    return text


def _common(name: str) -> QuotedRegex:
    if name not in _COMMON:
        raise NotFollowed(f"common.{name}")
    return QuotedRegex(_COMMON[name])


def _tokens(definition: str) -> Iterator[re.Match[str]]:
    """Without what has no meaning. Raises NotFollowed."""
    at = 0
    while at < len(definition):
        token = _TOKEN.match(definition, at)
        if token is None:
            found = _OTHER.match(definition, at)
            raise NotFollowed(found.group() if found else definition[at : at + 1])
        at = token.end()
        if not token["space"]:
            yield token


def _string(source: str) -> str:
    """Raises NotFollowed."""
    body = source[1:-1]
    for escape in re.findall(r"\\.", body):
        if escape[1] not in '\\"/bfnrtux':
            raise NotFollowed(source)
    body = _ESCAPE.sub(lambda m: f"\\u00{m[1]}" if m[1] else m[0], body)
    try:
        text: str = json.loads(f'"{body}"', strict=False)
        text.encode()
    except ValueError:
        raise NotFollowed(source) from None
    return text
