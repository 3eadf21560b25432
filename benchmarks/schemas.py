"""The schemas of `structured.py`, and whether an answer obeys one. Asks no server."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator

TEXT = {"type": "string", "maxLength": 40}


def object_of(**properties: Any) -> dict[str, Any]:
    """All of them, and nothing else: what OpenAI calls strict."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


# What applications ask for: a record, labels, a list of records, a choice of shapes, nesting. Texts
# are bounded, since a small model left alone may not find their end.
SCHEMAS: dict[str, dict[str, Any]] = {
    "person": object_of(
        name=TEXT, age={"type": "integer", "minimum": 0, "maximum": 120},
        email={"type": "string", "pattern": "^[a-z]{1,12}@[a-z]{1,12}\\.(com|org)$"},
        married={"type": "boolean"},
    ),
    "labels": object_of(
        sentiment={"enum": ["positive", "neutral", "negative"]},
        topic={"enum": ["politics", "sport", "culture", "science", "economy"]},
        spam={"type": "boolean"}, stars={"type": "integer", "minimum": 1, "maximum": 5},
    ),
    "order": object_of(
        number={"type": "integer", "minimum": 1, "maximum": 99999},
        items={
            "type": "array", "minItems": 2, "maxItems": 4,
            "items": object_of(
                product=TEXT, quantity={"type": "integer", "minimum": 1, "maximum": 99}
            ),
        },
        paid={"type": "boolean"},
    ),
    "step": object_of(
        action={
            "anyOf": [
                object_of(kind={"const": "search"}, query=TEXT),
                object_of(kind={"const": "open"}, page={"type": "integer", "maximum": 500}),
            ]
        },
        reason=TEXT,
    ),
    "place": object_of(
        name=TEXT,
        address=object_of(street=TEXT, city=TEXT, country={"type": ["string", "null"],
                                                           "maxLength": 20}),
        tags={"type": "array", "maxItems": 3, "items": {"type": "string", "maxLength": 12}},
    ),
}  # fmt: skip


def check(name: str, text: str) -> str | None:
    """What is wrong with an object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"no JSON, {error}: {text[:200]!r}"
    problems = [error.message for error in Draft202012Validator(SCHEMAS[name]).iter_errors(value)]
    return f"invalid, {problems[0]}: {text[:200]!r}" if problems else None
