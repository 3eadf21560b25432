"""Writes a Lark grammar for llguidance, rule by rule. Knows no tools."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from openai_local.chat.tool_formats.cursor import Marker, Slot
from openai_local.chat.tool_formats.schema import SchemaUnsupported, enforceable

_SLOTS = {Slot.ID: "/[A-Za-z0-9]{9}/", Slot.INDEX: "/[0-9]{1,4}/"}


class Lark:
    """A grammar in the making.

    ``special`` maps the text of each token that the grammar's tokenizer holds as special to its
    id: in a marker such a text is that token, and free text never has one.
    """

    def __init__(self, special: Mapping[str, int] | None = None) -> None:
        self._special = dict(special or {})
        texts = sorted((text for text in self._special if text), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, texts))) if texts else None
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def rule(self, body: str, hint: str = "r") -> str:
        """The name of a rule of that body; one of the same body is reused."""
        if body not in self._names:
            name = f"{hint}_{len(self._names)}"
            self._names[body] = name
            self._rules[name] = body
        return self._names[body]

    def reserve(self, hint: str) -> str:
        """The name of a rule whose body :meth:`define` gives, so that it may contain itself."""
        name = f"{hint}_{len(self._names)}"
        self._names[f"reserved {name}"] = name
        return name

    def define(self, name: str, body: str) -> None:
        self._rules[name] = body

    def literal(self, marker: str | Marker) -> str:
        """An expression for exactly that text."""
        parts: list[str] = []
        for piece in (marker,) if isinstance(marker, str) else marker:
            parts += [_SLOTS[piece]] if isinstance(piece, Slot) else self._literal(piece)
        return " ".join(parts)

    def _literal(self, text: str) -> list[str]:
        if self._pattern is None:
            return [_quoted(text)] if text else []
        parts: list[str] = []
        at = 0
        for match in self._pattern.finditer(text):
            if match.start() > at:
                parts.append(_quoted(text[at : match.start()]))
            parts.append(f"<[{self._special[match.group()]}]>")
            at = match.end()
        if at < len(text):
            parts.append(_quoted(text[at:]))
        return parts

    def is_special(self, text: str) -> bool:
        return text in self._special

    def choice(self, bodies: Iterable[str]) -> str:
        """One of them."""
        options = list(dict.fromkeys(bodies))
        return options[0] if len(options) == 1 else f"( {' | '.join(options)} )"

    def regex(self, pattern: str, hint: str = "T") -> str:
        """A terminal."""
        escaped = pattern.replace("/", r"\/")
        return self._terminal(f"/{escaped}/", hint)

    def text(
        self, markers: Sequence[str] = (), within: Sequence[str] = (), unlike: Sequence[str] = ()
    ) -> str:
        """A terminal for text without ``markers``, ``within`` each expression, ``unlike`` any."""
        parts = [_slashed(pattern) for pattern in within or ["(?s:.*)"]]
        texts = [_escaped(marker) for marker in markers if marker and marker not in self._special]
        if texts:
            joined = "|".join(texts)
            parts.append("~" + _slashed(f"(?s:.*)({joined})(?s:.*)"))
        parts += [f"~{_slashed(pattern)}" for pattern in unlike]
        return self._terminal(" & ".join(parts), "TEXT")

    def closed_text(self, terminal: str, marker: str) -> str:
        """``terminal``, which is free text without ``marker``, and then ``marker``."""
        found = self._pattern.search(marker) if self._pattern else None
        if found is None:
            return self.lazy(f"{terminal} {_quoted(marker)}")
        lead, rest = marker[: found.start()], self.literal(marker[found.start() :])
        if lead:  # the text would take it, so it is a part of the text
            terminal = self._terminal(f"{terminal} {_quoted(lead)}", "TEXT")
        return f"{terminal} {rest}"

    def up_to(self, text: str, marker: str) -> str:
        """``text``, a terminal, up to ``marker``, also where its token is spelled by others."""
        spelled = self.lazy(f"{text} {_quoted(marker)}")
        return self.choice([self.closed_text(text, marker), spelled])

    def begins(self, text: str) -> str | None:
        """An expression for what begins with ``text``; None where free text cannot."""
        if self._pattern is not None and self._pattern.match(text):
            return None
        return rf"\s*{_escaped(text)}(?s:.*)"

    def lazy(self, body: str) -> str:
        return self.rule_with("[lazy]", body, "lead")

    def rule_with(self, attributes: str, body: str, hint: str) -> str:
        key = f"{attributes} {body}"
        if key not in self._names:
            name = f"{hint}_{len(self._names)}"
            self._names[key] = name
            self._rules[name + attributes] = body
        return self._names[key]

    def json(self, schema: Any, separators: tuple[str, str] = (", ", ": ")) -> str:
        """A JSON value of ``schema``, written without free whitespace."""
        options = {
            "whitespace_flexible": False,
            "item_separator": separators[0],
            "key_separator": separators[1],
        }
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            raise SchemaUnsupported("not", reason="nothing is allowed")
        held = json.loads(enforceable(json.dumps(schema)))
        text = json.dumps({**held, "x-guidance": options}, ensure_ascii=False)
        return self.rule(f"%json {text}", "json")

    def within(self, grammar: str) -> str:
        """A rule for the texts of another grammar, which shares no names with this one."""
        return self.rule(f"%lark {{\n{grammar}\n}}", "within")

    def _terminal(self, body: str, hint: str) -> str:
        if body not in self._names:
            name = f"{hint.upper()}_{len(self._names)}"
            self._names[body] = name
            self._rules[name] = body
        return self._names[body]

    def build(self, start: str) -> str:
        """The whole grammar."""
        lines = ["%llguidance {}", f"start: {start}"]
        lines += [f"{name}: {body}" for name, body in self._rules.items()]
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    # re.escape knows more than llguidance's expressions: to them \\< is the start of a word.
    return re.sub(r"([.^$*+?{}\[\]\\|()])", r"\\\1", text).replace("\n", r"\n")


def _slashed(pattern: str) -> str:
    escaped = re.sub(r"(?<!\\)/", r"\\/", pattern)
    return f"/{escaped}/"
