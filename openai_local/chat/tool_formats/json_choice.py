"""Calls that are JSON objects beside an answer that is JSON: one schema, and what tells them apart.

Pure. The objects of a call have a name and arguments; an answer that never has such a member as
the arguments is none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openai_local.chat.tool_formats.json_reader import JsonKeys
from openai_local.chat.tool_formats.schema import (
    SchemaUnsupported,
    name_of,
    parameters_of,
    resolve,
    types_of,
)

MAX_DEPTH = 16
# What stands there is a value, and no schema.
_VALUES = frozenset({"const", "default", "enum", "example", "examples"})


def call_or_answer(
    tools: Sequence[Mapping[str, Any]], keys: JsonKeys, answer: Mapping[str, Any]
) -> dict[str, Any]:
    """The schema of a call of one of ``tools``, or of ``answer``."""
    parts: dict[str, Any] = {"answer": answer}
    options = []
    for i, tool in enumerate(tools):
        parts[f"tool{i}"] = parameters_of(tool)
        members = {
            keys.name: {"const": name_of(tool)},
            keys.arguments: {"$ref": f"#/$defs/tool{i}"},
        }
        options.append({"type": "object", "properties": members, "required": list(members),
                        "additionalProperties": False})  # fmt: skip
    return {
        "anyOf": [*options, {"$ref": "#/$defs/answer"}],
        "$defs": {name: _moved(part, f"#/$defs/{name}") for name, part in parts.items()},
    }


def may_have_member(schema: Any, name: str, root: Mapping[str, Any], depth: int = 0) -> bool:
    """Whether an object of ``schema`` may have a member of that name, as far as can be told."""
    if "object" not in types_of(schema, root):
        return False
    if depth > MAX_DEPTH:
        return True
    try:
        schema = resolve(schema, root)
    except SchemaUnsupported:
        return True

    def may(part: Any) -> bool:
        return may_have_member(part, name, root, depth + 1)

    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list):
        return any(isinstance(value, Mapping) and name in value for value in values)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list) and not any(map(may, schema[key])):
            return False
    if isinstance(schema.get("allOf"), list) and not all(map(may, schema["allOf"])):
        return False
    listed = name in (schema.get("properties") or {})
    closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
    return listed or not closed


def _moved(schema: Any, place: str) -> Any:
    """``schema`` where it is no document of its own any more."""
    if isinstance(schema, list):
        return [_moved(part, place) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {}
    for key, part in schema.items():
        if key == "$ref" and isinstance(part, str) and part.startswith("#"):
            moved[key] = place + part[1:].removesuffix("/")
        else:
            moved[key] = part if key in _VALUES else _moved(part, place)
    return moved
