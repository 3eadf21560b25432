"""What a constraint lets through, and what is refused since it could not be held."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from structured import accepts, bench_schemas, check_values, compiled, compiler, judge

from openai_local.engine import Constraint, ConstraintUnsupported, InvalidConstraint
from openai_local.engine.constraints import compiler as compiling
from openai_local.engine.constraints.compiler import Compiled
from openai_local.engine.constraints.json_schema import MAX_SUBSCHEMAS

OPEN = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("keyword", "schema"),
    [
        ("uniqueItems", {"type": "array", "uniqueItems": True}),
        ("contains", {"contains": {"type": "string"}}),
        ("minContains", {"minContains": 2}),
        ("not", {"not": {"type": "string", "pattern": "a"}}),
        ("not", {"not": {"type": "integer"}}),
        ("not", {"not": {"enum": [[1]]}}),
        ("not", {"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "not": {"$ref": "#/$defs/a"}}),
        ("if", {"if": {"pattern": "a"}, "then": {"minLength": 3}}),
        ("divisibleBy", {"divisibleBy": 3}),
        ("propertyNames", {"propertyNames": {"pattern": "^a"}}),
        ("unevaluatedProperties", {"unevaluatedProperties": False}),
        ("unevaluatedItems", {"properties": {"x": {"items": {"unevaluatedItems": False}}}}),
        ("$dynamicRef", {"$dynamicRef": "#x"}),
        ("x-guidance", {"x-guidance": {"lenient": True}}),
        ("$schema", {"$schema": "http://json-schema.org/draft-03/schema#"}),
        ("$ref", {"$ref": "http://example.com/schema"}),
        ("$ref", {"$ref": "file:///etc/passwd"}),
        ("$ref", {"$ref": "#anchor"}),
        (
            "$id",
            {"items": {"$id": "http://x/y", "items": {"$ref": "#/$defs/a"}}, "$defs": {"a": {}}},
        ),
        ("format", {"type": "string", "format": "regex"}),
        ("format", {"format": "int32"}),
        ("oneOf", {"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}),
        ("minProperties", {"type": "object", "minProperties": 2}),
        ("minProperties", {**OPEN, "minProperties": 1, "additionalProperties": {}}),
        ("maxProperties", {**OPEN, "maxProperties": 1}),
        ("additionalItems", {"prefixItems": [{}], "additionalItems": False}),
        ("multipleOf", {"multipleOf": 0.07}),
        ("multipleOf", {"allOf": [{"multipleOf": 99999}, {"multipleOf": 100000}]}),
        ("multipleOf", {"multipleOf": 1e-300}),
        ("const", {"const": 2**53 + 1}),
        ("enum", {"enum": [[{"a": 2**60}]]}),
        ("minimum", {"minimum": 2**53 + 1}),
        ("maximum", {"type": "integer", "maximum": -1e30}),
        # llguidance would let 0 through.
        ("exclusiveMinimum", {"exclusiveMinimum": 0, "maximum": 0.5}),
        ("exclusiveMaximum", {"allOf": [{"exclusiveMaximum": -1}, {"minimum": -1.5}]}),
        ("pattern", {"pattern": "(?=a)a"}),
        ("pattern", {"pattern": r"\bword\b"}),
        ("pattern", {"pattern": r"(a)\1"}),
        # Rust's classes within classes are ECMA's characters.
        ("pattern", {"pattern": "^[a&&b]$"}),
        ("pattern", {"pattern": "^[[a]]$"}),
        ("pattern", {"pattern": r"^\Aa\z$"}),
        ("patternProperties", {"patternProperties": {"^[[a]]$": {}}}),
        ("patternProperties", {"patternProperties": {"^a": {}, "b$": {}}}),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(keyword: str, schema: dict[str, Any]) -> None:
    with pytest.raises(ConstraintUnsupported) as refused:
        compiled("json_schema", schema)
    expected = {keyword} | ({"minProperties"} if keyword == "maxProperties" else set())
    assert refused.value.keyword in expected


@pytest.mark.parametrize(
    ("keyword", "schema"),
    [
        (None, "{"),
        (None, "[]"),
        (None, "false"),
        (None, '{"const": NaN}'),
        (None, {"items": 3}),
        (None, {"type": "string", "minLength": 3, "maxLength": 2}),
        (None, {"$ref": "#"}),
        (None, {"enum": []}),
        ("$ref", {"$ref": "#/$defs/x"}),
        ("multipleOf", {"multipleOf": 0}),
        ("minimum", {"minimum": "1"}),
    ],
)
def test_what_is_wrong_is_refused(keyword: str | None, schema: Any) -> None:
    with pytest.raises(InvalidConstraint) as refused:
        compiled("json_schema", schema)
    assert refused.value.keyword == keyword


@pytest.mark.parametrize(
    ("schema", "text", "accepted"),
    [
        # A name that is listed cannot be spelt in another way as one that is not.
        ({**OPEN, "additionalProperties": {"type": "string"}}, r'{"\u0061": "x"}', False),
        ({**OPEN, "additionalProperties": {"type": "string"}}, '{"a": 1, "b": "x"}', True),
        ({"format": "date"}, '"2024-02-29"', True),
        ({"format": "date"}, '"2023-02-29"', False),
        ({"format": "date"}, '"1900-02-29"', False),
        ({"format": "date"}, '"2000-02-29"', True),
        ({"format": "date", "pattern": "^2"}, '"1999-01-01"', False),
        ({"format": "date-time"}, '"2023-04-31T00:00:00Z"', False),
        ({"format": "date-time"}, '"2023-04-30T00:00:00.5+01:30"', True),
        ({"format": "time"}, '"23:59:60Z"', False),
        ({"format": "byte"}, '"YWJj"', True),
        ({"format": "byte"}, '"YWJ"', False),
        ({"format": "json-pointer"}, '"/a~1b//c"', True),
        ({"format": "json-pointer"}, '"/a~2"', False),
        ({"format": "json-pointer"}, '"a"', False),
        ({"format": "relative-json-pointer"}, '"1/a"', True),
        ({"format": "relative-json-pointer"}, '"0#"', True),
        ({"format": "relative-json-pointer"}, '"01"', False),
        ({"format": "uri-template"}, '"http://a/{+b,c*}{?d.e:3}/é%2F"', True),
        ({"format": "uri-template"}, '"{b"', False),
        ({"format": "uri-template"}, '"a{!}"', False),
        ({"format": "uri-template"}, '"a b"', False),
        ({"type": ["integer", "null"], "format": "int32"}, "2147483648", False),
        ({"type": ["integer", "null"], "format": "int32"}, "null", True),
        ({"type": "integer", "maximum": 2**63 - 1}, "9223372036854774784", True),
        ({"type": "integer", "maximum": 2**63 - 1}, "9223372036854775808", False),
        # What is read together stands together, whatever is between.
        ({"items": [{}], "anyOf": [{}], "additionalItems": False}, "[1, 2]", False),
        ({"minimum": 1, "anyOf": [{}], "exclusiveMinimum": True}, "1", False),
        (
            {"patternProperties": {"^a": {}}, "anyOf": [{}], "additionalProperties": False},
            '{"ab": 1}',
            True,
        ),
        # What another draft would pass over.
        ({"$schema": "http://json-schema.org/draft-04/schema#", "const": 1}, "2", False),
        ({"$schema": "http://json-schema.org/draft-07/schema", "prefixItems": [{"const": 1}]},
         "[2]", False),
        ({"uniqueItems": False}, "[1, 1]", True),
        ({"type": "string", "uniqueItems": True}, '"x"', True),
        ({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"const": 1}}}, "1", True),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"const": 1}, "unused": {"not": {}}}}, "1", True),
        ({"minProperties": 1, "type": "object"}, "{}", False),
        ({"pattern": r"^\d\w$"}, '"٣a"', False),
        ({"pattern": r"^\[&&\]$"}, '"[&&]"', True),
        ({"multipleOf": 0.01}, "19.99", True),
        ({"multipleOf": 0.01}, "19.999", False),
        ({"type": "string", "maxLength": 1}, '"😀"', True),
        ({"type": "string", "maxLength": 1}, '"😀😀"', False),
        ({"oneOf": [{"const": "a"}, {"enum": ["b", "c"]}]}, '"c"', True),
        # One way to write every value.
        ({"type": "array"}, "[1,2]", False),
        ({"type": "array"}, "[1, 2]", True),
        ({"type": "array"}, "[ ]", False),
        ({"type": "string"}, r'"\u00e9"', False),
        ({"type": "string"}, '"é\\n"', True),
    ],
)  # fmt: skip
def test_schemas_mean_what_their_specification_says(
    schema: dict[str, Any], text: str, accepted: bool
) -> None:
    assert accepts(compiled("json_schema", schema), text) is accepted


def test_any_object_is_an_object_and_nothing_else() -> None:
    anything = compiled("json_object", "")
    assert accepts(anything, '{"a": [1, {"b": null}], "c": -1.5e3}')
    assert not accepts(anything, "[]") and not accepts(anything, '{"a": }')


@pytest.mark.parametrize(
    ("kind", "text", "yes", "no"),
    [
        ("regex", r"^\d{3}-\d{4}$", "123-4567", "123-456"),
        ("regex", r"a/b\$", "a/b$", "a/b"),
        ("regex", "a|bc", "bc", "ac"),
        ("choice", ["yes", 'é/"\n.', "a|b"], 'é/"\n.', "é"),
        ("choice", ["yes", "yes please"], "yes please", "yes "),
        ("choice", ["a.b"], "a.b", "axb"),
        ("lark", 'start: "a" x\nx: %json {"format": "date"}', 'a"2024-02-29"', 'a"2023-02-29"'),
        ("lark", 'start: "temperature=1" // stop="x"', "temperature=1", ""),
        ("gbnf", 'root ::= [a-z]+ "b" # all ways', "aab", "aa"),
        ("gbnf", 'root ::= x "b"\nx ::= "a" | "ab"', "ab", "a"),
        ("gbnf", 'root ::= r\nr ::= "(" r ")" | x "b"\nx ::= "a" | "ab"', "((ab))", "((ab)"),
        ("gbnf", 'root ::= ("é" | [^\\x00-\\x7F"])\n{2,3}'.replace("\n", ""), "éü", "éa"),
        ("gbnf", 'root ::= . [a&&\\]-] "\\u00e9\\x41"', "\n]éA", "\nbéA"),
        ("gbnf", 'root ::= (a-1 |\n "q")*\na-1 ::= "x"{2}\na_1 ::= "y"', "xxq", "x"),
    ],
)
def test_grammars_accept_what_they_say(kind: Any, text: Any, yes: str, no: str) -> None:
    constraint = compiled(kind, text)
    assert accepts(constraint, yes)
    assert not accepts(constraint, no)


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("regex", "(", "unclosed group"),
        ("regex", "^$", "empty"),
        ("regex", r"a\b", "lookarounds"),
        ("choice", [], "nothing to choose"),
        ("choice", [1], "list of texts"),
        ("choice", [""], "not empty"),
        ("choice", "yes", "list of texts"),
        ("lark", 'start: "a', "lexer error"),
        ("lark", '{"grammars": [{"json_schema": {"x-guidance": {"lenient": true}}}]}', "lark: "),
        ("lark", 'start: x\nx[temperature=0.5]: "a"', "temperature"),
        ("lark", 'start: x "b"\nx[stop="b"]: /.*/', "stop"),
        ("lark", 'start: %json {"x-guidance": {"lenient": true}}', "x-guidance"),
        ("lark", 'start: %json {"x-guidance": {"item_separator": ";"}}', "x-guidance"),
        ("lark", 'start: %json {"x-guidance": 1}', "x-guidance"),
        ("lark", 'start: "a" %json\n {"divisibleBy": 2}', "divisibleBy"),
        ("lark", 'start: "a" %json\n {"not": {}}', "Unsatisfiable"),
        ("lark", "start: %json {", "not JSON"),
        ("gbnf", 'x ::= "a"', "root"),
        ("gbnf", "root ::= y", "y is not defined"),
        ("gbnf", 'root ::= ("a"', "not closed"),
        ("gbnf", 'root ::= "\\q"', "no escape"),
        ("gbnf", 'root ::= <think> "a"', "token <think>"),
        ("gbnf", 'root ::= "a"{9999}', "more than 2000"),
        ("gbnf", "root ::= [z-a]", "backwards"),
        ("gbnf", 'root ::= ""', "empty text"),
        ("gbnf", "root ::= " + "(" * 500, "nested"),
    ],
)
def test_grammars_that_say_nothing_are_refused(kind: Any, text: Any, reason: str) -> None:
    with pytest.raises(InvalidConstraint, match=reason):
        compiled(kind, text)


numbers = st.one_of(
    st.integers(-12, 12),
    st.integers(-(10**6), 10**6),
    st.decimals(-20, 20, places=2).map(float),
    st.decimals(-1, 1, places=4).map(float),
)


@settings(deadline=None)
@given(st.data())
def test_bounds_of_numbers_are_the_specifications(data: st.DataObject) -> None:
    schema: dict[str, Any] = {"type": data.draw(st.sampled_from(["number", "integer"]))}
    for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if data.draw(st.booleans()):
            schema[keyword] = data.draw(numbers)
    try:
        constraint = compiled("json_schema", schema)
    except InvalidConstraint:
        assume(False)
    bounds = [v for v in schema.values() if not isinstance(v, str)]
    near = [st.sampled_from([b, b - 1, b + 1, b + 0.5, -b]) for b in bounds]
    for number in data.draw(st.lists(st.one_of(numbers, *near), min_size=1, max_size=20)):
        number = int(number) if float(number).is_integer() else float(number)
        valid = jsonschema.Draft202012Validator(schema).is_valid(number)
        text = f"{number:.10f}".rstrip("0").rstrip(".")
        # Where a bound is 0.2001, llguidance does not know 0.2 for 0.2000: narrower, never wider.
        if not any(text in f"{bound:.10f}" for bound in bounds if bound != number):
            assert accepts(constraint, text) is valid, number
        elif not valid:
            assert not accepts(constraint, text), number


leaves = st.sampled_from(
    [
        {"type": "string", "maxLength": 3},
        {"type": "string", "pattern": "^[ab]{1,3}$"},
        {"type": "integer", "minimum": -5, "maximum": 30},
        {"type": "boolean"},
        {"type": "null"},
        {"const": "x"},
        {"enum": ["a", 1, None, [2]]},
        {"type": ["integer", "string"], "maximum": 3, "minimum": 0, "maxLength": 2},
        {"$ref": "#/$defs/leaf"},
    ]
)
names = st.sampled_from(["a", "b", "ab", "c\n", 'q"', "é"])


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda properties, required, extra: {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if required],
            "additionalProperties": extra,
        },
        st.dictionaries(names, inner, max_size=3),
        st.booleans(),
        st.sampled_from([False, False, {"type": "boolean"}]),
    )


def _schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    items = st.integers(0, 2)
    return st.one_of(
        _objects(inner),
        st.builds(lambda i, n, m: {"type": "array", "items": i, "minItems": n, "maxItems": n + m},
                  inner, items, items),
        st.builds(lambda p, i: {"type": "array", "prefixItems": p, "items": i, "maxItems": 4},
                  st.lists(inner, max_size=2), st.one_of(st.just(False), inner)),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda a, b: {"allOf": [a, b]}, inner, inner),
    )  # fmt: skip


schemas = st.builds(
    lambda schema: {**schema, "$defs": {"leaf": {"type": "integer", "minimum": 0, "maximum": 9}}},
    st.recursive(leaves, _schemas, max_leaves=6),
)
values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-7, 33), st.text("abx", max_size=4), st.just(0.5)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=5,
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.filter_too_much])
@given(schemas, st.lists(values, max_size=12))
def test_what_is_accepted_is_valid_and_the_other_way_round(
    schema: dict[str, Any], instances: list[Any]
) -> None:
    check_values(schema, instances)


def test_the_benchmarks_schemas_are_compiled_or_refused_and_their_instances_judged_right() -> None:
    rows = bench_schemas()
    if not rows:
        pytest.skip("the JSONSchemaBench sample is not here")
    counts = judge(rows)
    assert counts.false_accepts == counts.false_rejects == []
    assert counts.n_compiled + sum(counts.refused.values()) == len(rows)
    assert None not in counts.refused, "a refusal names its keyword"
    # More may come to be compiled, no fewer.
    assert counts.n_compiled >= 218, counts.refused


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "((a{100}){100}){100}"),
        ("json_schema", {"type": "object", "properties": {f"p{i}": {} for i in range(4000)}}),
        ("json_schema", {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(10)]}
                                   for i in range(6)]}),
        ("lark", 'start: (("a" "b"){1000} "c"){1000}'),
    ],
)  # fmt: skip
def test_what_is_beyond_llguidances_limits_is_refused_before_it_runs(kind: Any, text: Any) -> None:
    with pytest.raises(InvalidConstraint):
        compiled(kind, text)


def test_what_was_compiled_is_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "CACHE_ENTRIES", 2)
    cache = compiler()

    def get(i: int) -> Compiled:
        return cache.compile(Constraint("json_schema", json.dumps({"const": i})))

    first = get(0)
    assert get(0) is first
    get(1)
    assert get(0) is first
    get(2)
    assert get(0) is first
    second = get(1)
    assert get(1) is second
    assert len(cache._compiled) == 2
    assert cache._n_bytes == sum(len(c.text) for c in cache._compiled)


def test_what_failed_is_not_kept() -> None:
    cache = compiler()
    for _ in range(2):
        with pytest.raises(ConstraintUnsupported):
            cache.compile(Constraint("json_schema", '{"divisibleBy": 2}'))
    assert not cache._compiled and cache._n_bytes == 0


def test_the_same_constraint_is_compiled_once_for_all_who_wait() -> None:
    cache = compiler()
    results: list[Compiled] = []
    constraint = Constraint("json_schema", json.dumps({"enum": list(range(500))}))
    threads = [
        threading.Thread(target=lambda: results.append(cache.compile(constraint))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len(set(map(id, results))) == 1


def test_what_takes_too_long_to_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = compiler()
    release = threading.Event()

    def slow(constraint: Constraint) -> str:
        release.wait(30)
        raise InvalidConstraint(None, "too late")

    monkeypatch.setattr(compiling, "MAX_SECONDS", 0.05)
    monkeypatch.setattr(compiling, "grammar_of", slow)
    with pytest.raises(ConstraintUnsupported, match=r"more than 0\.05 s"):
        cache.compile(Constraint("json_object"))
    release.set()
    with pytest.raises(InvalidConstraint, match="too late"):
        for _ in range(100):
            try:
                cache.compile(Constraint("json_object"))
            except ConstraintUnsupported:
                time.sleep(0.05)


def test_large_and_deep_schemas_are_refused_and_do_not_end_the_process() -> None:
    with pytest.raises(ConstraintUnsupported, match="bytes"):
        compiled("json_schema", {"const": "x" * 300_000})
    with pytest.raises(InvalidConstraint):
        compiled("json_schema", '{"items":' * 20_000 + "{}" + "}" * 20_000)
    n = MAX_SUBSCHEMAS
    chain: dict[str, Any] = {
        f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(n)
    }
    for length, fits in ((n // 2 - 10, True), (n - 10, False)):
        defs = {f"d{i}": chain[f"d{i}"] for i in range(length)} | {f"d{length}": {"const": 1}}
        schema = {"$ref": "#/$defs/d0", "$defs": defs}
        if fits:
            assert accepts(compiled("json_schema", schema), "[]")
        else:
            with pytest.raises(ConstraintUnsupported, match=f"{n} parts|too deeply|bytes"):
                compiled("json_schema", schema)


def test_a_schema_within_a_grammar_may_choose_its_separators() -> None:
    options = {"item_separator": ",", "key_separator": ":", "whitespace_flexible": False}
    schema = {"type": "object", "x-guidance": options}
    bound = compiled("lark", f"start: %json {json.dumps(schema)}")
    assert accepts(bound, '{"a":1,"b":2}')
    assert not accepts(bound, '{"a": 1, "b": 2}')
