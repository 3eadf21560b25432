"""A constraint to the grammar that llguidance compiles. Knows no tokens; checks what it can."""

from __future__ import annotations

import json
import re
from typing import Any

from openai_local.engine.constraints.gbnf import gbnf_to_lark
from openai_local.engine.constraints.json_schema import load_schema, prepare_schema
from openai_local.engine.errors import ConstraintUnsupported, InvalidConstraint
from openai_local.engine.messages import Constraint

# One form of every value, Python's, so that what is between values is forced. SmolLM2 copied 60 of
# 60 numbers right in it, 46 without the spaces; where any whitespace may come, objects have a
# quarter more tokens. Without \u a name that a schema lists cannot be spelt in a second way, as one
# that it does not.
JSON_OPTIONS: dict[str, Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',
}

# What a schema within a grammar may say of the spaces in it: models were taught one way.
_SEPARATORS = {
    "item_separator": (", ", ","), "key_separator": (": ", ":"), "whitespace_flexible": (False,)
}  # fmt: skip

_JSON_BLOCK = re.compile(r"%json\s*(?={)")
_QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?![/*])(?:\\.|[^/\\\n])+/|(?://|#)[^\n]*')
_OPTION = re.compile(r"\b(temperature|stop|stop_capture)\s*=")


def grammar_of(constraint: Constraint, *, one_of: bool = False) -> str:
    """llguidance's own format; with ``one_of``, of a JSON schema without that keyword.

    Raises InvalidConstraint, ConstraintUnsupported.
    """
    return json.dumps({"grammars": [_grammar(constraint, one_of)]})


def _grammar(constraint: Constraint, one_of: bool) -> dict[str, Any]:
    text = constraint.text
    if constraint.kind == "json_schema":
        return {"json_schema": {**load_schema(text, one_of=one_of), "x-guidance": JSON_OPTIONS}}
    if constraint.kind == "json_object":
        return {"json_schema": {"type": "object", "x-guidance": JSON_OPTIONS}}
    if constraint.kind == "regex":
        return {"lark_grammar": f"start: /{_regex(text)}/\n"}
    if constraint.kind == "choice":
        return {"lark_grammar": f"start: /{_choice(text)}/\n"}
    if constraint.kind == "gbnf":
        return {"lark_grammar": gbnf_to_lark(text)}
    return {"lark_grammar": _lark(text)}


def _regex(text: str) -> str:
    """The whole answer matches; ``\\d`` and ``\\w`` are ASCII, as in JSON schemas."""
    from llguidance import regex_to_lark

    if text.startswith("^"):
        text = text[1:]
    if re.search(r"(?:^|[^\\])(?:\\\\)*\$$", text):
        text = text[:-1]
    if not text:
        raise InvalidConstraint("regex", "it matches nothing but the empty text")
    return regex_to_lark(f"(?:{text})", use_ascii="dw")


def _choice(text: str) -> str:
    try:
        choices = json.loads(text)
    except (ValueError, RecursionError):
        choices = None
    if not isinstance(choices, list) or not all(isinstance(c, str) and c for c in choices):
        raise InvalidConstraint("choice", "it must be a list of texts that are not empty")
    if not choices:
        raise InvalidConstraint("choice", "there is nothing to choose from")
    return "|".join("".join(map(_literal, choice)) for choice in choices)


def _literal(char: str) -> str:
    return char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}"


def _lark(text: str) -> str:
    """Schemas within are checked as all are; options that need a sampler's help are refused."""
    pieces, at = [], 0
    for block in _JSON_BLOCK.finditer(text):
        if block.start() < at:
            continue  # within a schema
        try:
            schema, end = json.JSONDecoder().raw_decode(text, block.end())
        except (ValueError, RecursionError) as error:
            raise InvalidConstraint("%json", f"it is not JSON: {error}") from None
        own = schema.pop("x-guidance", None)
        options = JSON_OPTIONS if own is None else _options(own)
        schema = {**prepare_schema(schema), "x-guidance": options}
        pieces += [text[at : block.start()], f"%json {json.dumps(schema)}"]
        at = end
    outside = [*pieces[::2], text[at:]]
    option = _OPTION.search(_QUOTED.sub(" ", " ".join(outside)))
    if option is not None:
        raise ConstraintUnsupported(option.group(1), "it is not known here")
    return "".join([*pieces, text[at:]])


def _options(own: Any) -> dict[str, Any]:
    if not isinstance(own, dict) or any(
        value not in _SEPARATORS.get(name, ()) for name, value in own.items()
    ):
        raise ConstraintUnsupported("x-guidance", "only separators of JSON can be chosen")
    return {**JSON_OPTIONS, **own}
