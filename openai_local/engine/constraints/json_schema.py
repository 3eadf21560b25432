"""What of JSON Schema llguidance enforces exactly; all else is refused by the keyword's name.

Pure: a schema in, one to compile out. llguidance passes over what its draft does not know, and
some keywords mean something else to it than to the specification: none of that gets through.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from openai_local.engine.constraints.json_logic import Logic
from openai_local.engine.constraints.json_strings import (
    MAX_BOUND,
    check_pattern,
    is_never,
    restate_format,
)
from openai_local.engine.errors import ConstraintUnsupported, InvalidConstraint

Json = Any
Schema = dict[str, Any]

MAX_SUBSCHEMAS = 5000
# Of all multiples together: the lexer has a state for each remainder.
MAX_MULTIPLE = 100_000
# llguidance compares in doubles, and integers of 64 bits.
MAX_EXACT = 2**53

# Every draft's, whatever $schema says: who writes them means them.
_UNENFORCED = frozenset(
    {
        "$dynamicAnchor", "$dynamicRef", "$recursiveAnchor", "$recursiveRef", "contains",
        "dependencies", "dependentRequired", "dependentSchemas", "disallow", "divisibleBy", "else",
        "extends", "if", "maxContains", "minContains", "not", "propertyNames", "then",
        "unevaluatedItems", "unevaluatedProperties", "uniqueItems", "x-guidance",
    }
)  # fmt: skip
# What asks for nothing.
_NEUTRAL: dict[str, Json] = {"uniqueItems": False}
_OF_ARRAYS = frozenset({"contains", "maxContains", "minContains", "uniqueItems"})

_APPLICATORS = ("const", "enum", "allOf", "anyOf", "oneOf", "$ref")
_MAPS = ("properties", "patternProperties")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_DEFINITIONS = ("$defs", "definitions")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_DIALECT = re.compile(
    r"https?://json-schema\.org/((draft-0[4-7]|draft/20(19-09|20-12))/)?schema#?", re.ASCII
)


def load_schema(text: str, *, one_of: bool = False) -> Schema:
    """The schema to compile for the one in ``text``. With ``one_of``, without that keyword, of
    which llguidance takes only what has no two branches that both may hold.

    Raises InvalidConstraint, ConstraintUnsupported.
    """
    try:
        schema = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidConstraint(None, f"the schema is not JSON: {error}") from None
    return prepare_schema(schema, one_of=one_of)


def prepare_schema(schema: Json, *, one_of: bool = False) -> Schema:
    """As :func:`load_schema`, of parsed JSON, which is edited. A boolean becomes an object."""
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise InvalidConstraint(None, "the schema must be an object that something satisfies")
    _Check(schema, one_of).run()
    return schema


class _Check:
    """One walk over what a schema's root reaches, editing what llguidance reads otherwise."""

    def __init__(self, root: Schema, one_of: bool) -> None:
        self._root = root
        self._logic = Logic(root, one_of=one_of)
        self._seen: set[int] = set()
        self._multiples: set[tuple[int, int]] = set()  # digits, and how many are decimals
        self._open_ends: list[tuple[float, bool]] = []  # excluded bounds; whether the lower
        self._ends: list[float] = []
        self._inner_id: str | None = None
        self._has_references = False

    def run(self) -> None:
        dialect = self._root.get("$schema")
        if dialect is not None and not (
            isinstance(dialect, str) and _DIALECT.fullmatch(dialect.strip())
        ):
            raise ConstraintUnsupported("$schema", f"the dialect {dialect!r} is not known")
        stack: list[Json] = [self._root]
        while stack:
            stack += self._schema(stack.pop())
        if self._inner_id is not None and self._has_references:
            raise ConstraintUnsupported(self._inner_id, "it changes what a $ref beside it means")
        self._check_multiples()
        self._check_open_ends()

    def _schema(self, schema: Json) -> list[Json]:
        """Check one, for itself; the schemas that it leads to."""
        if isinstance(schema, bool):
            return []
        if not isinstance(schema, dict):
            raise InvalidConstraint(None, "a schema must be an object or a boolean")
        if id(schema) in self._seen:
            return []
        self._seen.add(id(schema))
        if len(self._seen) > MAX_SUBSCHEMAS:
            raise ConstraintUnsupported(None, f"the schema has more than {MAX_SUBSCHEMAS} parts")
        self._logic.restate(schema)
        self._keywords(schema)
        restate_format(schema)
        self._numbers(schema)
        self._arrays(schema)
        self._objects(schema)
        subschemas = list(self._subschemas(schema))
        _gather(schema)
        return subschemas

    def _keywords(self, schema: Schema) -> None:
        # Then every keyword of every draft is known, and refused or enforced.
        schema.pop("$schema", None)
        for keyword in ("$id", "id"):
            name = schema.pop(keyword, None)
            if isinstance(name, str) and not name.startswith("#") and schema is not self._root:
                self._inner_id = keyword
        for keyword in sorted(_UNENFORCED & schema.keys()):
            neutral = keyword in _NEUTRAL and schema[keyword] is _NEUTRAL[keyword]
            if neutral or (keyword in _OF_ARRAYS and is_never(schema, "array")):
                del schema[keyword]
            else:
                raise ConstraintUnsupported(keyword, "it cannot be enforced")
        for keyword in ("const", "enum"):
            for number in _numbers_in(schema.get(keyword)):
                if abs(number) > MAX_EXACT:
                    raise ConstraintUnsupported(keyword, f"{number} has too many digits")
        if isinstance(schema.get("pattern"), str):
            check_pattern("pattern", schema["pattern"])
        for pattern in _mapping(schema, "patternProperties"):
            check_pattern("patternProperties", pattern)

    def _numbers(self, schema: Schema) -> None:
        for keyword in _BOUNDS:
            bound = schema.get(keyword)
            if bound is None or isinstance(bound, bool):
                continue
            if not isinstance(bound, (int, float)) or not math.isfinite(bound):
                raise InvalidConstraint(keyword, "it must be a number")
            if abs(bound) > MAX_EXACT:
                _narrow(schema, keyword, bound)
            self._ends.append(float(bound))
        for end, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            bound = schema.get(exclusive)
            bound = schema.get(end) if bound is True else bound
            if isinstance(bound, (int, float)) and not isinstance(bound, bool):
                self._open_ends.append((float(bound), end == "minimum"))
        multiple = schema.get("multipleOf")
        if multiple is not None:
            self._multiples.add(_decimal(multiple))

    def _check_multiples(self) -> None:
        if not self._multiples:
            return
        n_decimals = max(n for _, n in self._multiples)
        scaled = math.lcm(*(digits * 10 ** (n_decimals - n) for digits, n in self._multiples))
        if scaled > MAX_MULTIPLE:
            raise ConstraintUnsupported(
                "multipleOf", f"multiples of more than {MAX_MULTIPLE} are not supported"
            )

    def _check_open_ends(self) -> None:
        """llguidance lets a whole number in that is excluded where less than one follows it."""
        for bound, lower in self._open_ends:
            if bound.is_integer() and any(
                0 < (end - bound if lower else bound - end) < 1 for end in self._ends
            ):
                keyword = "exclusiveMinimum" if lower else "exclusiveMaximum"
                raise ConstraintUnsupported(keyword, "the range is shorter than 1")

    def _arrays(self, schema: Schema) -> None:
        if "prefixItems" in schema and (
            "additionalItems" in schema or isinstance(schema.get("items"), list)
        ):
            raise ConstraintUnsupported("additionalItems", "it is not used beside prefixItems")
        if "additionalItems" in schema and not isinstance(schema.get("items"), list):
            del schema["additionalItems"]  # it has no meaning then

    def _objects(self, schema: Schema) -> None:
        fewest = schema.get("minProperties")
        required = schema.get("required")
        n_required = len(set(map(str, required))) if isinstance(required, list) else 0
        if isinstance(fewest, int) and fewest <= n_required:
            del schema["minProperties"]
        elif (
            isinstance(fewest, int)
            and fewest > n_required + 1
            and (schema.get("additionalProperties") is not False or "patternProperties" in schema)
        ):
            # Names that a schema does not list may come twice, and count twice.
            raise ConstraintUnsupported("minProperties", "distinct names cannot be counted")

    def _subschemas(self, schema: Schema) -> Iterator[Json]:
        for keyword in _MAPS:
            yield from _mapping(schema, keyword).values()
        for keyword in _LISTS:
            if isinstance(schema.get(keyword), list):
                yield from schema[keyword]
        for keyword in ("items", "additionalItems", "additionalProperties"):
            value = schema.get(keyword)
            if isinstance(value, list):
                yield from value
            elif value is not None:
                yield value
        reference = schema.get("$ref")
        if isinstance(reference, str):
            self._has_references = True
            yield from self._targets(reference)

    def _targets(self, reference: str) -> Iterator[Json]:
        if reference in ("#", ""):
            return
        if not reference.startswith("#"):
            raise ConstraintUnsupported("$ref", f"{reference!r} is not within the schema")
        if not reference.startswith("#/"):
            raise ConstraintUnsupported("$ref", f"{reference!r} is not a JSON pointer")
        target: Json = self._root
        for part in reference[2:].split("/"):
            part = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and part in target:
                target = target[part]
            elif isinstance(target, list) and part.isdecimal() and int(part) < len(target):
                target = target[int(part)]
            else:
                raise InvalidConstraint("$ref", f"{reference!r} points at nothing")
        yield target


def _narrow(schema: Schema, keyword: str, bound: float) -> None:
    """A bound beyond what doubles tell apart: only the ends of 64 bits are understood."""
    lower = keyword in ("minimum", "exclusiveMinimum")
    if not (bound <= -MAX_BOUND if lower else bound >= MAX_BOUND):
        raise ConstraintUnsupported(keyword, f"{bound} has too many digits")
    schema[keyword] = -MAX_BOUND if lower else MAX_BOUND


def _gather(schema: Schema) -> None:
    """Put the keywords that are read together side by side, in place, where properties stand.

    llguidance compiles what stands between applicators as one schema, and so would read an
    ``additionalItems`` behind an ``anyOf`` without its ``items``.
    """
    simple = {k: v for k, v in schema.items() if k not in _APPLICATORS}
    if len(simple) == len(schema):
        return
    items = list(schema.items())
    schema.clear()
    if "properties" not in simple:
        schema.update(simple)
    for keyword, value in items:
        if keyword == "properties":
            schema.update(simple)
        elif keyword in _APPLICATORS:
            schema[keyword] = value


def _mapping(schema: Schema, keyword: str) -> Schema:
    value = schema.get(keyword)
    return value if isinstance(value, dict) else {}


def _numbers_in(value: Json) -> Iterator[float]:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack += item.values()
        elif isinstance(item, list):
            stack += item
        elif isinstance(item, (int, float)) and not isinstance(item, bool):
            yield item


def _decimal(multiple: Json) -> tuple[int, int]:
    """The digits of a positive number, and how many of them are decimals."""
    if isinstance(multiple, bool) or not isinstance(multiple, (int, float)) or not multiple > 0:
        raise InvalidConstraint("multipleOf", "it must be a number above 0")
    digits, n_decimals = Decimal(str(multiple)).normalize(), 0
    exponent = digits.as_tuple().exponent
    if isinstance(exponent, int) and abs(exponent) > 18:
        raise ConstraintUnsupported("multipleOf", f"{multiple} has too many digits")
    n_decimals = max(0, -int(exponent))
    return int(digits.scaleb(n_decimals)), n_decimals


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")
