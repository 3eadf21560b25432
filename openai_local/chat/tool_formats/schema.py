"""The part of JSON Schema that is written in other syntaxes than JSON. Pure.

In JSON a schema is enforced whole by llguidance. Where a model writes arguments in tags or in a
notation of its own, the rules are written here, for the keywords that can be held; any other is
refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from openai_local.engine.constraints.json_schema import load_schema
from openai_local.engine.errors import InvalidConstraint

ALL_TYPES = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})

ANNOTATIONS = frozenset(
    {
        "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated",
        "description", "example", "examples", "readOnly", "strict", "title", "writeOnly",
    }
)  # fmt: skip
OBJECT = frozenset({"type", "properties", "required", "additionalProperties"})
STRING = frozenset({"type", "enum", "const", "minLength", "maxLength", "pattern", "format"})

_DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9\-]*[A-Za-z0-9])?"
_WORD = r"[A-Za-z0-9_+\-]+"
_OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
# Those of the formats that llguidance knows in JSON that tools have.
FORMATS = {
    "date": _DATE,
    "date-time": f"{_DATE}T{_TIME}",
    "email": rf"{_WORD}(\.{_WORD})*@({_LABEL}\.)+[A-Za-z]{{2,}}",
    "hostname": rf"{_LABEL}(\.{_LABEL})*",
    "ipv4": rf"({_OCTET}\.){{3}}{_OCTET}",
    "time": _TIME,
    "uri": r"[A-Za-z][A-Za-z0-9+.\-]*:[^\s<>\"{}|\\^`]+",
    "uuid": r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
}


class SchemaUnsupported(Exception):
    """A tool's schema has a keyword that cannot be enforced."""

    def __init__(self, keyword: str, tool: str = "", reason: str = "") -> None:
        self.keyword = keyword
        self.tool = tool
        self.reason = reason
        where = f" of the tool {tool}" if tool else ""
        why = f": {reason}" if reason else ""
        super().__init__(f"the schema{where} has {keyword!r}, which cannot be enforced{why}")


class InputUnsupported(SchemaUnsupported):
    """The grammar of a custom tool's input has something that cannot stand within a call."""

    def __init__(self, found: str, tool: str = "") -> None:
        super().__init__("grammar", tool, found)
        where = f" of the tool {tool}" if tool else ""
        self.args = (f"the grammar{where} cannot stand within a call: {found}",)


def parameters_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments: an object, of the members that are named, if any are."""
    function: Mapping[str, Any] = tool.get("function", tool)
    parameters = function.get("parameters")
    if not parameters or not isinstance(parameters, Mapping):
        return {"type": "object", "properties": {}, "additionalProperties": False}
    schema = {"type": "object", **parameters}
    named, required = schema.get("properties"), schema.get("required") or []
    others = {"additionalProperties", "unevaluatedProperties", "patternProperties", "$ref"}
    others |= {"anyOf", "allOf", "oneOf", "minProperties"}
    if isinstance(named, Mapping) and isinstance(required, list) and not others & set(schema):
        if all(isinstance(name, str) and name in named for name in required):
            # Without this a model may go on with members of names that it makes up.
            schema["additionalProperties"] = False
    return schema


def name_of(tool: Mapping[str, Any]) -> str:
    function: Mapping[str, Any] = tool.get("function", tool)
    name: str = function["name"]
    return name


def resolve(schema: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    """``schema`` behind its references into ``root``. Raises SchemaUnsupported."""
    for _ in range(32):
        if not isinstance(schema, Mapping):
            return {} if schema is True else {"not": {}}
        ref = schema.get("$ref")
        if ref is None:
            return dict(schema)
        found: Any = root
        if not isinstance(ref, str) or not ref.startswith("#"):
            raise SchemaUnsupported("$ref")
        for part in ref[1:].strip("/").split("/") if ref != "#" else ():
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or part not in found:
                raise SchemaUnsupported("$ref", reason=f"{ref} leads nowhere")
            found = found[part]
        schema = found
    raise SchemaUnsupported("$ref", reason="it refers to itself")


def with_definitions(schema: Any, root: Mapping[str, Any]) -> Any:
    """``schema`` as a document of its own, with what it may refer to."""
    if not isinstance(schema, Mapping):
        return schema
    shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
    if '"#"' in json.dumps(schema):
        raise SchemaUnsupported("$ref", reason="it refers to the whole schema")
    return {**shared, **schema}


def types_of(schema: Any, root: Mapping[str, Any], depth: int = 0) -> frozenset[str]:
    """The JSON types that ``schema`` allows, as far as they can be told."""
    if depth > 16:
        return ALL_TYPES
    try:
        schema = resolve(schema, root)
    except SchemaUnsupported:
        return ALL_TYPES
    types = ALL_TYPES
    given = schema.get("type")
    if isinstance(given, str):
        types &= {given}
    elif isinstance(given, list):
        types &= frozenset(kind for kind in given if isinstance(kind, str))
    if "integer" not in types and "number" in types:
        types |= {"integer"}
    if isinstance(schema.get("enum"), list):
        types &= frozenset(type_of(value) for value in schema["enum"])
    if "const" in schema:
        types &= {type_of(schema["const"])}
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            parts = [types_of(part, root, depth + 1) for part in schema[key]]
            types &= frozenset().union(*parts) if parts else types
    all_of = schema.get("allOf")
    for part in all_of if isinstance(all_of, list) else ():
        types &= types_of(part, root, depth + 1)
    return types


def type_of(value: Any) -> str:
    if value is None:
        return "null"
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string")):
        if isinstance(value, kind):
            return name
    return "object" if isinstance(value, Mapping) else "array"


def properties_of(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """Name → schema, for those who read; empty where it cannot be told."""
    try:
        found = resolve(schema, root).get("properties")
    except SchemaUnsupported:
        return {}
    return dict(found) if isinstance(found, Mapping) else {}


def items_of(schema: Any, root: Mapping[str, Any]) -> Any:
    """The schema of a list's items, for those who read; any where it cannot be told."""
    try:
        return resolve(schema, root).get("items", {})
    except SchemaUnsupported:
        return {}


def check_keywords(schema: Mapping[str, Any], known: frozenset[str]) -> None:
    """Raises SchemaUnsupported for the first keyword that is not in ``known``."""
    for keyword in schema:
        if keyword not in known and keyword not in ANNOTATIONS and not keyword.startswith("x-"):
            raise SchemaUnsupported(keyword)


def object_members(
    schema: Mapping[str, Any], root: Mapping[str, Any]
) -> tuple[list[tuple[str, Any, bool]], Any]:
    """(name, schema, required) of each member; and the schema of others, or False.

    Where members are named no others are written: what is left out is valid all the same.
    """
    schema = resolve(schema, root)
    check_keywords(schema, OBJECT)
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    if not isinstance(properties, Mapping):
        raise SchemaUnsupported("properties", reason="it is no object")
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise SchemaUnsupported("required", reason="it is no list of names")
    properties = dict(properties)
    others = schema.get("additionalProperties", True)
    for name in required:
        if name not in properties:
            if others is False:
                raise SchemaUnsupported("required", reason=f"{name} is not allowed")
            properties[name] = others
    members = [(name, part, name in required) for name, part in properties.items()]
    return members, (False if members else others)


def string_patterns(schema: Mapping[str, Any]) -> list[str]:
    """Regular expressions that a string of ``schema`` matches, all of them, as a whole."""
    check_keywords(schema, STRING)
    patterns: list[str] = []
    if "pattern" in schema:
        patterns.append(_unanchored(schema["pattern"]))
    if "format" in schema:
        if schema["format"] not in FORMATS:
            raise SchemaUnsupported("format", reason=f"{schema['format']} is unknown")
        patterns.append(FORMATS[schema["format"]])
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    if low or high is not None:
        patterns.append(f"(?s:.{{{low},{'' if high is None else high}}})")
    return patterns


def _unanchored(pattern: str) -> str:
    """JSON Schema searches; a terminal matches the whole text."""
    if re.search(r"\(\?[=!<]|\\[bB1-9]", pattern):
        raise SchemaUnsupported("pattern", reason="it looks around or back")
    head = "" if pattern.startswith("^") else "(?s:.*)"
    ends = pattern.endswith("$") and not pattern.endswith(r"\$")
    body = pattern.removeprefix("^")
    body = body[:-1] if ends else body
    return f"{head}({body}){'' if ends else '(?s:.*)'}"


def list_bounds(item: str, schema: Mapping[str, Any], separator: str) -> str:
    """As many of the rule ``item`` as ``schema`` allows, ``separator`` between them."""
    low, high = schema.get("minItems", 0), schema.get("maxItems")
    if not separator:
        return f"( {item} ){{{low},{'' if high is None else high}}}"
    if high == 0:
        return '""'
    top = "" if high is None else high - 1
    some = f'{item} ( "{separator}" {item} ){{{max(low - 1, 0)},{top}}}'
    return f"( {some} )?" if low == 0 else f"( {some} )"


@lru_cache(maxsize=1024)
def enforceable(schema: str) -> str:
    """A schema, given as JSON, so that llguidance can hold it. Raises SchemaUnsupported."""
    error = _error(schema, one_of=False)
    if not error:
        return schema
    if "oneOf" in error:
        with suppress(SchemaUnsupported):
            if not _error(schema, one_of=True):
                return json.dumps(load_schema(schema, one_of=True))
    reason = error.partition("failed to compile JSON schema: ")[2] or error
    reason = reason.strip().splitlines()[0]
    for pattern, keyword in _REASONS:
        found = re.search(pattern, reason)
        if found:
            raise SchemaUnsupported(keyword or found[1], reason=reason)
    raise SchemaUnsupported("parameters", reason=reason)


def _error(schema: str, *, one_of: bool) -> str:
    from llguidance import LLMatcher

    try:
        text = json.dumps(load_schema(schema, one_of=one_of))
        return LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(text), None)
    except InvalidConstraint as failure:
        raise SchemaUnsupported(failure.keyword or "parameters", reason=str(failure)) from None
    except ValueError as failure:
        return str(failure)


# llguidance's words, and the keyword they are about.
_REASONS = (
    (r'Unimplemented keys: \["([^"]+)"', ""),
    (r"Unknown format", "format"),
    (r"regex", "pattern"),
    (r"(oneOf|anyOf|allOf|enum|const|type|required|minimum|maximum|pattern)\b", ""),
    (r"Resource|[Rr]eference|\$ref|[Pp]ointer", "$ref"),
)
