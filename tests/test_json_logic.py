"""Negations, conditions and dependencies of JSON schemas, said by what can be enforced."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structured import accepts, check_values, compiled
from test_constraints import values

from openai_local.engine import ConstraintUnsupported, InvalidConstraint
from openai_local.engine.constraints.json_logic import Logic

ANY: dict[str, Any] = {"type": ["string", "integer", "null", "boolean", "object", "array"]}
leaves = st.sampled_from(
    [
        {"type": "string"},
        {"type": ["number", "null"]},
        {"type": ["object", "array"]},
        {"enum": ["a", "ab", "", 1, None, True]},
        {"enum": ["x\n", "xyz", 3]},
        {"const": "b"},
        {"const": 0.5},
        {"minLength": 2},
        {"maxLength": 0},
        {"minimum": 3},
        {"exclusiveMaximum": 0},
        {"required": ["a"]},
        {"required": ["a", "b"]},
        {"properties": {"a": {"type": "string"}}},
        {"properties": {"a": {"const": "x"}}, "required": ["a"]},
        {"type": "object", "properties": {"b": {"enum": [1, 2]}, "c\n": False}},
        {"minItems": 2},
        {"maxItems": 0},
        {"$ref": "#/$defs/one"},
        True,
        False,
    ]
)
conditions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
        st.builds(lambda a, b: {"allOf": [a, b]}, inner, inner),
        st.builds(lambda a, b: {"oneOf": [a, b]}, inner, inner),
        st.builds(lambda a: {"not": a}, inner),
    ),
    max_leaves=3,
)
named = st.sampled_from(["a", "b", "ab", "é"])
schemas = st.one_of(
    st.builds(lambda a: {"not": a}, conditions),
    st.builds(lambda a, b, c: {"if": a, "then": b, "else": c}, conditions, leaves, leaves),
    st.builds(lambda a, b: {"if": a, "then": b}, conditions, leaves),
    st.builds(lambda parts: {"oneOf": parts}, st.lists(leaves, min_size=2, max_size=3)),
    st.builds(
        lambda needed: {"dependentRequired": needed},
        st.dictionaries(named, st.lists(named, max_size=2, unique=True), max_size=2),
    ),
    st.builds(
        lambda needed: {"dependentSchemas": needed}, st.dictionaries(named, leaves, max_size=2)
    ),
)
whole = st.builds(
    lambda base, parts: {
        "allOf": [base, *parts], "$defs": {"one": {"enum": [[], 1, "a"]} if not parts else
                                                   {"enum": [1, "a"]}},
    },
    st.sampled_from([ANY, {"type": ["string", "integer"]}, {"type": "object"}, {}]),
    st.lists(schemas, min_size=1, max_size=2),
)  # fmt: skip


@settings(deadline=None, max_examples=400, suppress_health_check=list(HealthCheck))
@given(whole, st.lists(values, max_size=12))
def test_what_is_accepted_is_valid_and_the_other_way_round(
    schema: dict[str, Any], instances: list[Any]
) -> None:
    check_values(schema, instances)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "not": {"enum": ["yes", "yellow", ""]}},
         ["y", "yesx", "no", "yeah\n", "\U0001f600"], ["yes", "yellow", ""]),
        ({"not": {"type": ["object", "array", "number"]}}, ["a", True, None], [1, 0.5, {}, []]),
        ({"type": "integer", "not": {"const": 3}}, [2, 4, -3], [3, "3"]),
        ({"type": "object", "not": {"required": ["a"]}}, [{}, {"b": 1}], [{"a": 1}, 1]),
        ({"type": "object", "properties": {"kind": {"enum": ["a", "b"]}},
          "if": {"properties": {"kind": {"const": "a"}}, "required": ["kind"]},
          "then": {"required": ["x"]}, "else": {"properties": {"x": False}}},
         [{"kind": "a", "x": 1}, {"kind": "b"}, {}], [{"kind": "a"}, {"kind": "b", "x": 1}]),
        ({"type": "object", "properties": {"card": {}, "address": {"type": "string"}},
          "additionalProperties": False, "dependencies": {"card": ["address"]}},
         [{}, {"address": "x"}, {"card": 1, "address": "x"}], [{"card": 1}]),
        ({"oneOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 5}]},
         [2, 6], [3, 4, 5, "x"]),
        ({"oneOf": [{"type": "object", "properties": {"k": {"const": "a"}, "x": {"pattern": "q"}},
                     "required": ["k"]},
                    {"type": "object", "properties": {"k": {"enum": ["b", "c"]}},
                     "required": ["k"]},
                    {"type": "array", "items": {"pattern": "q"}}]},
         [{"k": "a", "x": "q"}, {"k": "c", "x": 1}, ["q"]], [{"k": "a", "x": "r"}, {"k": "d"}]),
        ({"oneOf": [{"type": "object", "properties": {"a": {"format": "date"}}, "required": ["a"],
                     "additionalProperties": False},
                    {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"],
                     "additionalProperties": False}]},
         [{"a": "2024-02-29"}, {"b": 1}], [{"a": "x"}, {"a": "2024-02-29", "b": 1}]),
        ({"type": "object", "minProperties": 2, "required": ["a", "b"]},
         [{"a": 1, "b": 2}], [{"a": 1}]),
        ({"then": False, "type": "integer"}, [1], ["a"]),
    ],
)  # fmt: skip
def test_what_they_mean(schema: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    constraint = compiled("json_schema", schema)
    for value in good:
        assert accepts(constraint, json.dumps(value, ensure_ascii=False)), value
    for value in bad:
        assert not accepts(constraint, json.dumps(value, ensure_ascii=False)), value


def test_what_branches_without_end_is_left_as_it_stands() -> None:
    looped = {"anyOf": [{"properties": {name: {"$ref": "#/$defs/l"}}} for name in "abcd"]}
    schema = {"not": {"$ref": "#/$defs/l"}, "$defs": {"l": looped}}
    before = copy.deepcopy(schema)
    Logic(schema).restate(schema)
    assert schema == before
    with pytest.raises(ConstraintUnsupported) as refused:
        compiled("json_schema", schema)
    assert refused.value.keyword == "not"


garbage = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-1, 2), st.sampled_from(["a", "#/", "null"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["not", "if", "then", "else", "dependencies", "dependentRequired", "oneOf", "anyOf",
                 "allOf", "required", "properties", "enum", "const", "type", "$ref", "minimum",
                 "minLength", "x"]
            ),
            inner, max_size=4,
        ),
    ),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(garbage, garbage)
def test_what_is_no_schema_ends_in_a_refusal_or_in_nothing(one: Any, other: Any) -> None:
    for schema in ({"not": one}, {"oneOf": [one, other]}, {"if": one, "then": other}, one):
        if isinstance(schema, dict):
            schema = copy.deepcopy(schema)
            Logic(schema, one_of=True).restate(schema)


def test_deep_and_wide_ones_end_soon() -> None:
    deep: Any = {"enum": ["a"]}
    for _ in range(400):
        deep = {"properties": {"a": deep}}
    wide: Any = {"type": "string"}
    for i in range(5):
        wide = {"oneOf": [{"properties": {f"{i}{j}": wide}, "pattern": "a"} for j in range(8)]}
    for schema in ({"not": deep}, {"if": deep, "then": deep}, wide):
        with pytest.raises(InvalidConstraint):
            compiled("json_schema", schema)
