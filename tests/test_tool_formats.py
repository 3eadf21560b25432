"""Formats read off small templates, and the grammars that bind calls to their schemas."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_chat_parser import CODER, DSML, FORMATS, GLM, HERMES, LLAMA
from tool_calls import ADD, TOOLS, WEATHER, Matcher, parse, tool

from openai_local.chat.reasoning import ReasoningFormat, Thought
from openai_local.chat.template import ChatTemplate
from openai_local.chat.tool_formats import SchemaUnsupported, ToolFormat, gemma, lfm2, minimax_m3
from openai_local.chat.tool_formats.arguments import TaggedArguments
from openai_local.chat.tool_formats.cursor import Slot

CHATML = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}CALL{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def derived(call: str) -> ToolFormat:
    found = ChatTemplate(CHATML.replace("CALL", call)).tool_format
    assert found is not None
    return found


def test_json_in_tags_is_read_off() -> None:
    found = derived('<call>{"name": "{{ c.function.name }}", "args": '
                    "{{ c.function.arguments | tojson }}}</call>")  # fmt: skip
    assert found.name == "derived"
    assert found.trigger == "<call>"
    assert found.layout.keys is not None
    assert found.layout.keys.arguments == "args"
    assert found.write([("f", {"a": "é"})]) == '<call>{"name": "f", "args": {"a": "é"}}</call>'


def test_a_list_of_calls_is_read_off() -> None:
    found = derived(
        "{{ '[T][' if loop.first else ', ' }}"
        '{"id": "{{ c.id }}", "tool": "{{ c.function.name }}", "with": '
        "{{ c.function.arguments | tojson }}}{{ ']' if loop.last }}"
    )
    assert (found.layout.open, found.layout.separator, found.layout.close) == ("[T][", ", ", "]")
    assert Slot.ID in found.layout.call_open


def test_tags_are_read_off_with_both_kinds_of_values() -> None:
    found = derived(
        "<do {{ c.function.name }}>{% for k, v in c.function.arguments | items %}"
        "<arg {{ k }} {{ 'text' if v is string else 'json' }}>{{ v if v is string else v | tojson"
        " }}</arg>{% endfor %}</do>"
    )
    arguments = found.layout.arguments
    assert isinstance(arguments, TaggedArguments)
    assert (arguments.close_key, arguments.close_key_json) == (" text>", " json>")


def test_a_call_with_a_number_is_read_off() -> None:
    found = derived("<|b|>{{ c.function.name }}#{{ loop.index0 }}<|a|>"
                    "{{ c.function.arguments | tojson }}<|e|>")  # fmt: skip
    assert found.layout.close_name == ("#", Slot.INDEX, "<|a|>")
    assert found.write([("f", {}), ("g", {})]) == "<|b|>f#0<|a|>{}<|e|><|b|>g#1<|a|>{}<|e|>"


def test_a_template_without_calls_gets_hermes_and_the_tools_in_words() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    assert template.tool_format is not None
    assert template.tool_format.name == "hermes"
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    prompt = template.render(
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "I add.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ],
        tools=[ADD],
    ).text
    assert prompt.startswith("system: # Tools")
    assert json.dumps(ADD) in prompt
    assert 'I add.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in prompt
    assert "tool: 2" in prompt


def test_a_syntax_that_cannot_be_read_off_is_told() -> None:
    source = CHATML.replace(
        "CALL", "{{ c.function.arguments | length }} of {{ c.function.name | reverse }}"
                " {{ c.function.name }} {{ c.function.arguments | dictsort }}"
    )  # fmt: skip
    assert ChatTemplate(source).tool_format is None


def matched(found: ToolFormat, tools: list[Any], text: str, **options: Any) -> tuple[str, bool]:
    options = {"required": True, "parallel": False, **options}
    return Matcher().matched(found.grammar(tools, **options), text)


def call_with(found: ToolFormat, written: str) -> str:
    """A call of ``f`` whose argument ``x`` is written so."""
    marked = found.write([("f", {"x": "@@"})])
    for mark in ('"@@"', '<|"|>@@<|"|>', "@@"):
        if mark in marked:
            return marked.replace(mark, written)
    raise AssertionError(marked)


GOOD_AND_BAD: list[tuple[Any, list[str], list[str]]] = [
    ({"type": "string"}, ["a", "<b>\n", "", "漢", "3", "null"], []),
    ({"type": "string", "enum": ["a", "ab"]}, ["a", "ab"], ["b", "abc", ""]),
    ({"type": "string", "const": "a"}, ["a"], ["b"]),
    ({"type": "string", "enum": ["\\", '"', "\x01", "\U0001f600", "a\nb"]},
     ["\\", '"', "\x01", "\U0001f600", "a\nb"], ["/"]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["aé", "abc"], ["a", "abcd"]),
    ({"type": "string", "pattern": "^[a-c]+$"}, ["abc"], ["abd", ""]),
    ({"type": "string", "pattern": "b"}, ["abc", "b"], ["acd"]),
    ({"type": "string", "pattern": "^a/", "maxLength": 4}, ["a/b"], ["a/bcd", "ab"]),
    ({"type": "string", "format": "date"}, ["2024-02-29"], ["2024-13-01", "x"]),
    ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123"]),
    ({"type": "integer"}, ["3", "-12"], ["3.5", "x", "true"]),
    ({"type": "integer", "minimum": 3, "maximum": 5}, ["3", "5"], ["2", "6"]),
    ({"type": "number"}, ["3.5"], ["x"]),
    ({"type": "boolean"}, ["true", "False"], ["yes"]),
    ({"type": "array", "items": {"type": "integer"}}, ["[1, 2]", "[]"], ['["a"]']),
    ({"type": ["string", "null"]}, ["a", "null", "nullable", "None"], []),
    ({"type": ["integer", "null"]}, ["3", "null"], ["a"]),
    ({"anyOf": [{"type": "integer"}, {"type": "string", "enum": ["all"]}]}, ["3", "all"], ["al"]),
    ({"enum": ["a", 1]}, ["a", "1"], ["2", "b"]),
    ({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 5}]}, ["a", "a5"], ["3"]),
    ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]},
     ["a", "[1, 2]", "a[b"], ["[b", '["a"]']),
    ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, ["a", "3"], []),
    ({}, ["a", "3", '{"a": 1}', "[]", "{a"], []),
    ({"$ref": "#/$defs/n"}, ["3"], ["x"]),
    ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
     ['{"a": 1}'], ['{"b": 1}', '{"a": "x"}', "{}"]),
]  # fmt: skip


@pytest.mark.parametrize("found", [CODER, GLM, DSML], ids=lambda found: found.name)
@pytest.mark.parametrize(("schema", "good", "bad"), GOOD_AND_BAD)
def test_a_value_in_tags_is_bound_to_its_schema(
    found: ToolFormat, schema: Any, good: list[str], bad: list[str]
) -> None:
    parameters = {
        "type": "object",
        "properties": {"x": schema},
        "required": ["x"],
        "$defs": {"n": {"type": "integer"}},
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    for written in [*good, *bad]:
        text = call_with(found, written)
        if found is DSML and schema.get("type") not in ("string", ["string", "null"]):
            text = text.replace('string="true"', 'string="false"')
        takes = matched(found, tools, text) == (text, True)
        if found is DSML and (not isinstance(schema.get("type"), str)):
            continue  # there the mark tells which of the types it is
        assert takes == (written in good), (written, text)


@pytest.mark.parametrize("found", [CODER, GLM, minimax_m3.FORMAT, gemma.FORMAT, lfm2.FORMAT])
def test_what_is_required_must_come_and_the_rest_may(found: ToolFormat) -> None:
    tools = [tool("f", a={"type": "integer"}, b={"type": "integer", "optional": True},
                  c={"type": "integer"}, d={"type": "integer", "optional": True})]  # fmt: skip
    for keys in ("ac", "abc", "acd", "abcd"):
        text = found.write([("f", {key: 1 for key in keys})])
        assert matched(found, tools, text) == (text, True), keys
    for keys in ("a", "c", "ab", "ca", "aac", "abce", ""):
        text = found.write([("f", dict.fromkeys(keys, 1))])
        text = text.replace("a=1", "a=1, a=1") if keys == "aac" else text
        if keys == "aac" or (found is gemma.FORMAT and keys == "ca"):
            continue
        assert matched(found, tools, text) != (text, True), keys


def test_optional_arguments_alone() -> None:
    tools = [tool("f", a={"type": "integer", "optional": True},
                  b={"type": "integer", "optional": True})]  # fmt: skip
    for found in (CODER, gemma.FORMAT, lfm2.FORMAT, minimax_m3.FORMAT):
        for keys in ("", "a", "b", "ab"):
            text = found.write([("f", dict.fromkeys(keys, 1))])
            assert matched(found, tools, text) == (text, True), (found.name, keys)


NESTED = tool(
    "f",
    x={
        "type": "object",
        "properties": {
            "names": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2},
            "kind": {"type": "string", "enum": ["a", "b"]},
        },
        "required": ["names"],
    },
)


@pytest.mark.parametrize("found", [gemma.FORMAT, minimax_m3.FORMAT], ids=lambda found: found.name)
def test_values_within_values_are_bound_too(found: ToolFormat) -> None:
    def call(value: Any) -> str:
        return found.write([("f", {"x": value})])

    good: list[Any] = [{"names": ["q"]}, {"names": ["q", "r"], "kind": "a"}]
    bad: list[Any] = [{}, {"names": []}, {"names": ["q"] * 3}, {"names": ["q"], "kind": "c"}]
    for value in good:
        assert matched(found, [NESTED], call(value)) == (call(value), True)
        assert parse(call(value), tools=[NESTED], tool_format=found).objects == [
            ("f", {"x": value})
        ]
    for value in bad:
        assert matched(found, [NESTED], call(value)) != (call(value), True)


def test_a_schema_may_refer_to_itself() -> None:
    properties = {"next": {"$ref": "#/$defs/node"}, "v": {"type": "integer"}}
    node = {"type": "object", "properties": properties, "required": ["v"]}
    parameters = {"type": "object", "properties": {"x": {"$ref": "#/$defs/node"}},
                  "required": ["x"], "$defs": {"node": node}}  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    for found in (HERMES, CODER, gemma.FORMAT, minimax_m3.FORMAT):
        text = found.write([("f", {"x": {"next": {"next": {"v": 1}, "v": 2}, "v": 3}})])
        assert matched(found, tools, text) == (text, True), found.name


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "object", "properties": {"x": {"type": "string", "format": "odd"}}}, "format"),
        ({"type": "object", "properties": {}, "minProperties": 1}, "minProperties"),
        ({"type": "object", "patternProperties": {"^a": {}}}, "patternProperties"),
        ({"anyOf": [{"type": "object"}]}, "anyOf"),
        ({"type": "object", "properties": {"x": {"type": "string", "pattern": "(?=a)"}}},
         "pattern"),
        ({"type": "object", "properties": {"x": {"not": {"type": "string"}}}}, "not"),
        ({"type": "object", "properties": {"x": {"$ref": "#/$defs/none"}}}, "$ref"),
        ({"type": "object", "properties": {"x": {"$ref": "http://a/b"}}}, "$ref"),
        ({"type": "object", "properties": {}, "required": ["x"], "additionalProperties": False},
         "required"),
        ({"type": "object", "properties": 3}, "properties"),
        ({"type": "object", "required": 3}, "required"),
        ({"type": "object", "properties": {"x": False}}, "not"),
        ({"type": "object", "properties": {"x": {"$ref": "#/properties/x"}}}, "$ref"),
        ({"type": "object", "properties": {"x": {"anyOf": [{"$ref": "#/properties/x"}]}}},
         "parameters"),
    ],
)  # fmt: skip
def test_what_cannot_be_bound_is_refused_by_name(schema: Any, keyword: str) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    for found in (CODER, gemma.FORMAT, minimax_m3.FORMAT):
        with pytest.raises(SchemaUnsupported, match="of the tool f has") as caught:
            found.grammar(tools, required=True, parallel=False)
        assert caught.value.keyword == keyword


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "odd"}, "format"),
        ({"type": "string", "pattern": "(?=a)b"}, "pattern"),
        ({"not": {"type": "string", "pattern": "a"}}, "not"),
        ({"if": {"type": "string", "pattern": "a"}, "then": {"minLength": 1}}, "if"),
        ({"$ref": "http://a/b"}, "$ref"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "pattern": "a"}]}, "oneOf"),
        ({"type": "odd"}, "type"),
    ],
)
def test_what_llguidance_cannot_bind_in_json_is_refused_by_name(schema: Any, keyword: str) -> None:
    with pytest.raises(SchemaUnsupported) as caught:
        HERMES.grammar([tool("f", x=schema)], required=True, parallel=False)
    assert (caught.value.tool, caught.value.keyword) == ("f", keyword)


@pytest.mark.parametrize("found", FORMATS, ids=lambda found: found.name)
def test_a_tool_without_parameters(found: ToolFormat) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    text = found.write([("f", {})]).removeprefix(">>>")
    assert matched(found, tools, text) == (text, True)


def test_a_thought_may_come_first_and_an_open_one_must_end() -> None:
    think = ReasoningFormat("<think>", "</think>")
    call = HERMES.write([("add", {"numbers": [1]})])
    for required in (True, False):
        options: dict[str, Any] = {"required": required, "reasoning": think}
        maybe = {**options, "thought": Thought.MAYBE}
        for text in (call, f"<think>\nHm <tool_call> é\n</think>\n\n{call}"):
            assert matched(HERMES, TOOLS, text, **maybe) == (text, True)
        opened = {**options, "thought": Thought.OPEN}
        text = f"Hm\n</think>{call}"
        assert matched(HERMES, TOOLS, text, **opened) == (text, True)
        assert not matched(HERMES, TOOLS, call, **opened)[1]
    text = f"<think>Hm</think>{call}"
    taken, _ = matched(HERMES, TOOLS, text, required=True, reasoning=think)
    assert taken == "<t"


def test_a_text_trigger_binds_where_its_token_was_spelled_out_too() -> None:
    matcher = Matcher(["<tool_call>", "</tool_call>"])
    grammar = HERMES.grammar(TOOLS, required=False, parallel=True, special=matcher.special)
    call = HERMES.write([("add", {"numbers": [1]})])
    assert matcher.accepts(grammar, f"a {call}\n b {call}")
    spelled = Matcher().tokens("<tool_call>nothing")
    import llguidance

    guide = llguidance.LLMatcher(matcher._tokenizer, grammar)
    assert guide.try_consume_tokens(spelled) == len("<tool_call>")


def test_llama_calls_or_answers() -> None:
    call = '{"name": "get_weather", "parameters": {"city": "Paris"}}'
    for text in (call, f"<|python_tag|>{call}", "Yes.", '{"a": 1}', ""):
        assert matched(LLAMA, TOOLS, text, required=False) == (text, True)
    taken, _ = matched(LLAMA, TOOLS, '{"name": "launch"}', required=False)
    assert taken == '{"name": "'


@settings(max_examples=60, deadline=None)
@given(
    found=st.sampled_from([f for f in FORMATS if f.name not in ("functionary", "harmony")]),
    calls=st.lists(
        st.one_of(
            st.builds(
                lambda city, days: ("get_weather", {"city": city, "days": days}),
                st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12),
                st.integers(-999, 999),
            ),
            st.builds(
                lambda numbers, exact: ("add", {"numbers": numbers, "exact": exact}),
                st.lists(st.integers(-99, 99), max_size=3),
                st.booleans(),
            ),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_what_is_written_is_taken_and_comes_back(found: ToolFormat, calls: list[Any]) -> None:
    assume("call" not in repr(calls))  # as the ids that are written
    text = found.write(calls)
    n = len(calls) if found is not LLAMA else 1
    text = text if n == len(calls) else found.write(calls[:1])
    grammar = found.grammar(TOOLS, required=True, parallel=True)
    if found is gemma.FORMAT:
        calls = [(name, dict(sorted(arguments.items()))) for name, arguments in calls]
    taken = Matcher().matched(grammar, text.replace("callid", "").replace("call0", "abcd0"))
    if found.name not in ("mistral", "nemo"):
        assert taken == (text, True)
    assert parse(list(text), tool_format=found).objects == calls[:n]


def test_calls_are_not_parallel_unless_they_may_be() -> None:
    calls = HERMES.write([("add", {"numbers": [1]}), ("add", {"numbers": [2]})])
    single = HERMES.write([("add", {"numbers": [1]})])
    for required in (True, False):
        assert matched(HERMES, TOOLS, calls, required=required, parallel=True) == (calls, True)
        assert matched(HERMES, TOOLS, calls, required=required) == (single, True)


def test_unused_names_are_not_called() -> None:
    grammar = HERMES.grammar([WEATHER], required=True, parallel=False)
    taken, _ = Matcher().matched(grammar, HERMES.write([("add", {"numbers": [1]})]))
    assert taken == '<tool_call>\n{"name": "'


def test_arguments_are_an_object_of_the_members_that_are_named() -> None:
    for parameters in ({"properties": {"a": {"type": "integer"}}}, {"type": "object"}):
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
        call = '<tool_call>\n{"name": "f", "arguments": %s}\n</tool_call>'
        assert matched(HERMES, tools, call % '{"a": 1}') == (call % '{"a": 1}', True)
        assert not matched(HERMES, tools, call % "[1]")[1]
        made_up = matched(HERMES, tools, call % '{"b": 1}')[1]
        assert made_up is ("properties" not in parameters)
