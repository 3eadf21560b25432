"""What holds just where a JSON schema does not, by keywords that can be enforced. Pure.

A negation is the alternatives of what may be otherwise, each of one type.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Json = Any
Schema = dict[str, Any]

# Numbers that are whole, and those that are not.
WHOLE, FRACTION = "integer", "fraction"
ALL = frozenset({"null", "boolean", "string", "array", "object", WHOLE, FRACTION})
NUMBERS = frozenset({WHOLE, FRACTION})

MAX_DEPTH = 24
MAX_EXCLUDED_CHARS = 2000
MAX_STEPS = 20_000

ANNOTATIONS = frozenset(
    {
        "$comment", "$defs", "$schema", "default", "definitions", "deprecated", "description",
        "example", "examples", "readOnly", "title", "writeOnly",
    }
)  # fmt: skip
_COMPARED = {
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
}
_BOUNDS = {
    "minimum": "exclusiveMaximum",
    "maximum": "exclusiveMinimum",
    "exclusiveMinimum": "maximum",
    "exclusiveMaximum": "minimum",
}


_SHAPES: dict[str, type] = {
    "allOf": list, "anyOf": list, "enum": list, "oneOf": list, "properties": dict, "required": list,
}  # fmt: skip
# Of all drafts, those of which nothing here says the opposite. Any other name is an annotation.
_ASSERTIONS = frozenset(
    {
        "$dynamicRef", "$id", "$recursiveRef", "additionalItems", "additionalProperties",
        "contains", "dependencies", "dependentRequired", "dependentSchemas", "disallow",
        "divisibleBy", "else", "extends", "format", "id", "if", "items", "maxContains",
        "maxProperties", "minContains", "minProperties", "multipleOf", "oneOf", "pattern",
        "patternProperties", "prefixItems", "propertyNames", "then", "unevaluatedItems",
        "unevaluatedProperties", "uniqueItems",
    }
)  # fmt: skip


class CannotNegate(Exception):
    """A keyword of which no other says the opposite."""


class Opposites:
    """Of the schemas of one document."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._n_left = MAX_STEPS

    def types(self, schema: Json, depth: int = 0) -> frozenset[str]:
        """Those that a value of ``schema`` may have, as far as can be told."""
        if schema is False:
            return frozenset()
        self._n_left -= 1
        if not isinstance(schema, dict) or depth > MAX_DEPTH or self._n_left < 0:
            return ALL
        types = ALL
        if "$ref" in schema:
            try:
                types &= self.types(self.resolved(schema["$ref"]), depth + 1)
            except CannotNegate:
                return ALL
        if "type" in schema:
            types &= _expanded(schema["type"])
        if isinstance(schema.get("enum"), list):
            types &= frozenset(type_of(value) for value in schema["enum"])
        if "const" in schema:
            types &= {type_of(schema["const"])}
        for part in list_of(schema, "allOf"):
            types &= self.types(part, depth + 1)
        for keyword in ("anyOf", "oneOf"):
            parts = list_of(schema, keyword)
            if parts:
                types &= frozenset().union(*(self.types(part, depth + 1) for part in parts))
        return types

    def negated(self, schema: Json, types: frozenset[str], depth: int = 0) -> Json:
        """What holds of just those values of ``types`` that ``schema`` does not hold of."""
        if isinstance(schema, bool):
            return not schema
        self._n_left -= 1
        if not isinstance(schema, dict) or depth > MAX_DEPTH or self._n_left < 0:
            raise CannotNegate("not")
        options: list[Json] = []
        own = types & self.types(schema, depth)
        if types - own:
            options.append(_typed(types - own))
        for keyword in schema:
            if keyword not in ANNOTATIONS and keyword != "type":
                options += self._opposites(schema, keyword, own, depth + 1)
        return any_of(options)

    def _opposites(
        self, schema: Schema, keyword: str, own: frozenset[str], depth: int
    ) -> Iterator[Json]:
        """How a value of a type of ``own`` may be against ``keyword``."""
        value: Any = schema[keyword]
        if keyword in _SHAPES and not isinstance(value, _SHAPES[keyword]):
            raise CannotNegate(keyword)
        if keyword == "$ref":
            yield self.negated(self.resolved(value), own, depth)
        elif keyword == "not":
            yield all_of([copy.deepcopy(value), _typed(own)])
        elif keyword == "anyOf":
            yield all_of(self.negated(part, own, depth) for part in value)
        elif keyword == "allOf":
            for part in value:
                yield self.negated(part, own, depth)
        elif keyword == "oneOf" and len(value) == 2:
            yield all_of(self.negated(part, own, depth) for part in value)
            yield all_of([*copy.deepcopy(value), _typed(own)])
        elif keyword in ("enum", "const"):
            yield from _other_values(value if keyword == "enum" else [value], own)
        elif keyword == "required":
            for name in map(str, value) if "object" in own else ():
                yield {"type": "object", "properties": {name: False}}
        elif keyword == "properties":
            for name, part in value.items() if "object" in own else ():
                opposite = self.negated(part, ALL, depth)
                yield _typed_if(opposite, "object", required=[name], properties={name: opposite})
        else:
            yield from _compared(schema, keyword, own)

    def resolved(self, reference: Json) -> Json:
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise CannotNegate("$ref")
        target: Json = self._root
        for part in reference[2:].split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or part not in target:
                raise CannotNegate("$ref")
            target = target[part]
        return target


def _compared(schema: Schema, keyword: str, own: frozenset[str]) -> Iterator[Json]:
    """A bound turned round."""
    value = schema[keyword]
    if keyword in _COMPARED or keyword in _BOUNDS:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CannotNegate(keyword)
    if keyword in _COMPARED:
        kind, opposite, step = _COMPARED[keyword]
        if kind in own and value + step >= 0:
            yield {"type": kind, opposite: int(value) + step}
    elif keyword in _BOUNDS:
        # Draft 4 has a mark beside the bound that changes its meaning.
        if isinstance(schema.get(f"exclusive{keyword.title()}"), bool):
            raise CannotNegate(keyword)
        if own & NUMBERS:
            yield {**_typed(own & NUMBERS), _BOUNDS[keyword]: value}
    elif keyword in _ASSERTIONS:
        raise CannotNegate(keyword)


def _other_values(values: Json, own: frozenset[str]) -> Iterator[Json]:
    """Values of types of ``own`` that are none of ``values``."""
    excluded = [value for value in values if type_of(value) in own]
    # A whole number may be between two that are not, and the other way round.
    kinds = {kind for value in excluded for kind in (NUMBERS if _is_number(value) else
                                                     {type_of(value)})}  # fmt: skip
    if own - kinds:
        yield _typed(own - kinds)
    if {"array", "object"} & kinds:
        raise CannotNegate("enum")
    if "boolean" in kinds:
        left = [flag for flag in (False, True) if not any(flag is value for value in excluded)]
        yield {"enum": left} if left else False
    texts = sorted({value for value in excluded if isinstance(value, str)})
    if texts:
        yield {"type": "string", "pattern": _other_texts(texts)}
    numbers = sorted({value for value in excluded if _is_number(value)})
    for low, high in zip([None, *numbers], [*numbers, None], strict=True) if numbers else ():
        between: Schema = _typed(own & NUMBERS)
        if low is not None:
            between["exclusiveMinimum"] = low
        if high is not None:
            between["exclusiveMaximum"] = high
        yield between


def _other_texts(texts: list[str]) -> str:
    """An expression for all texts but those."""
    if sum(map(len, texts)) > MAX_EXCLUDED_CHARS:
        raise CannotNegate("enum")

    def behind(rests: list[str], depth: int) -> str:
        if depth > MAX_DEPTH * 8:
            raise CannotNegate("enum")
        firsts = sorted({rest[0] for rest in rests if rest})
        options = [] if "" in rests else [""]
        for first in firsts:
            more = behind([rest[1:] for rest in rests if rest[:1] == first], depth + 1)
            options.append(f"{_escaped(first)}{more}")
        others = "".join(map(_escaped, firsts))
        options.append(f"[^{others}][\\s\\S]*" if others else "[\\s\\S]+")
        return f"(?:{'|'.join(options)})"

    return f"^{behind(texts, 0)}$"


def _escaped(char: str) -> str:
    return char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}"


def any_of(parts: Iterable[Json]) -> Json:
    kept = [part for part in parts if part is not False]
    if any(part is True or part == {} for part in kept):
        return True
    return {"anyOf": kept} if len(kept) > 1 else kept[0] if kept else False


def all_of(parts: Iterable[Json]) -> Json:
    kept = [copy.deepcopy(part) for part in parts if part is not True and part != {}]
    if any(part is False for part in kept):
        return False
    return {"allOf": kept} if len(kept) > 1 else kept[0] if kept else True


def _typed_if(condition: Json, kind: str, **keywords: Json) -> Json:
    return False if condition is False else {"type": kind, **keywords}


def _typed(types: frozenset[str]) -> Schema:
    """A schema of just those types."""
    if FRACTION in types and WHOLE not in types:
        raise CannotNegate("type")
    if types == ALL:
        return {}
    return {"type": sorted("number" if t == FRACTION else t for t in types
                           if t != WHOLE or FRACTION not in types)}  # fmt: skip


def _expanded(given: Json) -> frozenset[str]:
    names = given if isinstance(given, list) else [given]
    found = {name for name in names if isinstance(name, str)}
    return frozenset(found | NUMBERS if "number" in found else found) & ALL


def type_of(value: Json) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if _is_number(value):
        return WHOLE if math.isfinite(value) and value == int(value) else FRACTION
    if isinstance(value, str):
        return "string"
    return "object" if isinstance(value, Mapping) else "array"


def _is_number(value: Json) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def list_of(schema: Schema, keyword: str) -> list[Json]:
    value = schema.get(keyword)
    return value if isinstance(value, list) else []
