"""Tools in POST /chat/completions, over a fake that says what it is told to say."""

from __future__ import annotations

import json
from typing import Any

import anyio
import jsonschema
import pytest
from clients import MESSAGES, MODEL, events_of, serving
from fakes import FakeBackend, spelling
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tool_calls import ADD, TOOLS, WEATHER

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"

_MESSAGES = (
    "{% if tools %}<tools>{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}CALL{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
HERMES = _MESSAGES.replace(
    "CALL",
    '\n<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}\n</tool_call>",
)
LLAMA = _MESSAGES.replace(
    "CALL",
    '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}',
)
TAGGED = _MESSAGES.replace(
    "CALL",
    "<tool_call>\n<function={{ c.function.name }}>\n{% for k, v in c.function.arguments.items() %}"
    "<parameter={{ k }}>\n{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}"
    "</function>\n</tool_call>",
)
PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

_HERMES_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
CALLS = {
    HERMES: _HERMES_CALL,
    PLAIN: _HERMES_CALL,
    LLAMA: '{"name": "get_weather", "parameters": {"city": "Paris"}}',
    TAGGED: "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
    "</function>\n</tool_call>",
}
FAMILIES = list(CALLS)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": MESSAGES, "temperature": 0, "tools": TOOLS, **fields}


def says(text: str, template: str = HERMES) -> FakeBackend:
    return FakeBackend(n_ctx=8192, n_batch=512, chat_template=template, next_token=spelling(text))


def put_together(chunks: list[Any]) -> dict[int, dict[str, Any]]:
    """What a client makes of a stream: message and finish reason by choice."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            choice = choices.setdefault(part["index"], {"content": "", "calls": [], "reason": None})
            assert choice["reason"] is None, "nothing comes after the end"
            choice["reason"] = part["finish_reason"]
            choice["content"] += part["delta"].get("content") or ""
            for call in part["delta"].get("tool_calls", ()):
                if call["index"] == len(choice["calls"]):
                    assert call["id"] and call["function"]["arguments"] == ""
                    choice["calls"].append(json.loads(json.dumps(call)))
                else:
                    assert call.keys() == {"index", "function"}
                    known = choice["calls"][call["index"]]["function"]
                    known["arguments"] += call["function"]["arguments"]
    return choices


async def ask(backend: FakeBackend, **fields: Any) -> dict[str, Any]:
    """The only choice, which is the same streamed and whole."""
    async with serving(backend) as client:
        whole = await client.post(PATH, json=body(**fields))
        streamed = await client.post(PATH, json=body(stream=True, **fields))
    assert whole.status_code == 200, whole.text
    ChatCompletion.model_validate(whole.json(), strict=True, extra="forbid")
    (choice,) = whole.json()["choices"]
    for chunk in events_of(streamed):
        ChatCompletionChunk.model_validate(chunk, strict=True, extra="forbid")
    (pieces,) = put_together(events_of(streamed)).values()
    message = choice["message"]
    calls = message.get("tool_calls", [])
    assert pieces["content"] == (message["content"] or "")
    assert pieces["reason"] == choice["finish_reason"]
    assert [c["function"] for c in pieces["calls"]] == [c["function"] for c in calls]
    return dict(choice)


@pytest.mark.parametrize("template", FAMILIES)
@pytest.mark.parametrize("choice", ["auto", "required", "named"])
async def test_a_call_in_each_syntax_is_a_call_in_openais(template: str, choice: str) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    given = named if choice == "named" else choice
    answer = await ask(says(CALLS[template], template), tool_choice=given)
    (call,) = answer["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    assert answer["message"]["content"] is None
    assert answer["finish_reason"] == "tool_calls"


async def test_text_before_calls_is_content_and_several_calls_have_their_indices() -> None:
    more = '<tool_call>\n{"name": "add", "arguments": {"numbers": [1, 2]}}\n</tool_call>'
    answer = await ask(says(f"I look.\n{_HERMES_CALL}\n{more}"))
    assert answer["message"]["content"] == "I look."
    calls = answer["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["get_weather", "add"]
    assert len({call["id"] for call in calls}) == 2


async def test_without_parallel_calls_there_is_one() -> None:
    two = f"{_HERMES_CALL}\n{_HERMES_CALL}"
    answer = await ask(says(two), parallel_tool_calls=False, tool_choice="required")
    assert len(answer["message"]["tool_calls"]) == 1


async def test_a_tool_that_is_named_is_called_once() -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = await ask(says(f"{_HERMES_CALL}\n{_HERMES_CALL}"), tool_choice=choice)
    assert len(answer["message"]["tool_calls"]) == 1


async def test_an_answer_without_calls_is_an_answer() -> None:
    answer = await ask(says("It rains < snows."))
    assert answer["message"] == {
        "role": "assistant", "content": "It rains < snows.", "refusal": None,
    }  # fmt: skip
    assert answer["finish_reason"] == "stop"


async def test_with_none_the_tools_are_left_out_and_no_calls_are_looked_for() -> None:
    backend = says(_HERMES_CALL)
    async with serving(backend) as client:
        response = await client.post(PATH, json=body(tool_choice="none"))
    (choice,) = response.json()["choices"]
    assert choice["message"]["content"] == _HERMES_CALL
    assert "tool_calls" not in choice["message"]
    assert b"get_weather</tools>" not in bytes(t % 256 for t in backend.slots[0])
    assert bytes(t % 256 for t in backend.slots[0]).startswith(b"<user>")


async def test_a_model_that_would_only_talk_is_bound_to_a_call() -> None:
    answer = await ask(says("no " * 300), tool_choice="required", max_tokens=400)
    for call in answer["message"]["tool_calls"]:
        assert call["function"]["name"] in ("get_weather", "add")


async def test_tokens_that_run_out_within_a_call_give_length() -> None:
    answer = await ask(says(_HERMES_CALL), max_tokens=len(_HERMES_CALL) - 20)
    assert answer["finish_reason"] == "length"
    assert answer["message"]["tool_calls"][0]["function"]["arguments"].startswith('{"city')


@pytest.mark.parametrize("template", FAMILIES)
@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_a_stop_string_ends_what_is_said_and_no_call(template: str, choice: str) -> None:
    said = CALLS[template]
    for stop in ("Paris", "{", "<", "\n", '"', "name", "weather", "}"):
        answer = await ask(says(said, template), tool_choice=choice, stop=stop)
        (call,) = answer["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}, stop
        assert answer["finish_reason"] == "tool_calls"
    if template != LLAMA and choice == "auto":
        answer = await ask(says(f"I look. END{said}", template), stop="END")
        assert answer["message"] == {"role": "assistant", "content": "I look. ", "refusal": None}
        assert answer["finish_reason"] == "stop"


async def test_tokens_that_run_out_within_a_second_opener_leave_no_content() -> None:
    two = f"I look.\n{_HERMES_CALL}\n{_HERMES_CALL}"
    for n in range(len(_HERMES_CALL) + 9, len(_HERMES_CALL) + 40):
        answer = await ask(says(two), max_tokens=n)
        assert answer["message"]["content"] == "I look."
        assert answer["finish_reason"] == "length"
        assert len(answer["message"]["tool_calls"]) == 1


async def test_all_tools_are_shown_and_only_the_allowed_may_be_called() -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "add"}}]}
    backend = says(_HERMES_CALL)
    async with serving(backend) as client:
        choice = {"type": "allowed_tools", "allowed_tools": allowed}
        response = await client.post(PATH, json=body(tool_choice=choice, max_tokens=200))
    (call,) = response.json()["choices"][0]["message"]["tool_calls"][:1]
    assert call["function"]["name"] == "add"
    assert b'"get_weather"' in bytes(t % 256 for t in backend.slots[0])


async def test_every_choice_has_calls_of_its_own() -> None:
    async with serving(says(_HERMES_CALL)) as client:
        response = await client.post(PATH, json=body(n=3, stream=True))
    choices = put_together(events_of(response))
    assert sorted(choices) == [0, 1, 2]
    ids = {choice["calls"][0]["id"] for choice in choices.values()}
    assert len(ids) == 3
    assert all(choice["reason"] == "tool_calls" for choice in choices.values())


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_are_of_all_tokens_of_calls_too(stream: bool) -> None:
    async with serving(says(_HERMES_CALL)) as client:
        asked = body(logprobs=True, top_logprobs=1, stream=stream)
        response = await client.post(PATH, json=asked)
    answers = events_of(response) if stream else [response.json()]
    entries = [
        entry for answer in answers for choice in answer["choices"]
        for entry in (choice["logprobs"] or {}).get("content", ())
    ]  # fmt: skip
    assert "".join(entry["token"] for entry in entries) == _HERMES_CALL
    assert all(len(entry["top_logprobs"]) == 1 for entry in entries)


@pytest.mark.parametrize("stream", [False, True])
async def test_functions_are_answered_in_the_deprecated_shape(stream: bool) -> None:
    functions = [tool["function"] for tool in TOOLS]
    for choice in (None, "auto", {"name": "get_weather"}):
        async with serving(says(_HERMES_CALL)) as client:
            asked = body(tools=None, functions=functions, function_call=choice, stream=stream)
            response = await client.post(PATH, json=asked)
        if stream:
            parts = [chunk["choices"][0] for chunk in events_of(response)]
            calls = [p["delta"]["function_call"] for p in parts if "function_call" in p["delta"]]
            assert calls[0] == {"name": "get_weather", "arguments": ""}
            arguments = "".join(call["arguments"] for call in calls)
            reason = parts[-1]["finish_reason"]
        else:
            (whole,) = response.json()["choices"]
            assert whole["message"]["function_call"]["name"] == "get_weather"
            arguments = whole["message"]["function_call"]["arguments"]
            reason = whole["finish_reason"]
            assert "tool_calls" not in whole["message"]
        assert json.loads(arguments) == {"city": "Paris"}
        assert reason == "function_call"


CUSTOM = {"type": "custom", "custom": {"name": "run", "description": "Runs it."}}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_custom_tool_has_text_as_its_input(stream: bool) -> None:
    code = 'print("né \\ 😀")\n'
    said = '<tool_call>\n{"name": "run", "arguments": {"input": CODE}}\n</tool_call>'
    backend = says(said.replace("CODE", json.dumps(code, ensure_ascii=False)))
    async with serving(backend) as client:
        asked = body(tools=[CUSTOM, WEATHER], stream=stream)
        response = await client.post(PATH, json=asked)
    if stream:
        parts = [
            call for chunk in events_of(response)
            for call in chunk["choices"][0]["delta"].get("tool_calls", ())
        ]  # fmt: skip
        assert (parts[0]["type"], parts[0]["custom"]) == ("custom", {"name": "run", "input": ""})
        text = "".join(part["custom"]["input"] for part in parts)
    else:
        (call,) = response.json()["choices"][0]["message"]["tool_calls"]
        assert (call["type"], call["custom"]["name"]) == ("custom", "run")
        text = call["custom"]["input"]
    assert text == code


async def test_a_custom_tool_with_a_regex_is_bound_to_it() -> None:
    grammar = {"syntax": "regex", "definition": "[0-9]{3}"}
    custom = {"name": "dial", "format": {"type": "grammar", "grammar": grammar}}
    choice = {"type": "custom", "custom": {"name": "dial"}}
    said = '<tool_call>\n{"name": "dial", "arguments": {"input": "12abcdef'
    async with serving(says(said)) as client:
        asked = body(tools=[{"type": "custom", "custom": custom}], tool_choice=choice)
        response = await client.post(PATH, json={**asked, "max_tokens": 200})
    (call,) = response.json()["choices"][0]["message"]["tool_calls"]
    assert len(call["custom"]["input"]) == 3 and call["custom"]["input"].isdigit()


PATCH = """
start: "*** Begin" LF line+ "*** End"
line: "+" /(.*)/ LF
%import common.LF
"""


def custom(definition: str) -> dict[str, Any]:
    grammar = {"syntax": "lark", "definition": definition}
    format = {"type": "grammar", "grammar": grammar}
    return {"type": "custom", "custom": {"name": "patch", "format": format}}


@pytest.mark.parametrize("choice", ["auto", "required", "named"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_custom_tool_with_a_lark_grammar_is_bound_to_it(choice: str, stream: bool) -> None:
    named = {"type": "custom", "custom": {"name": "patch"}}
    text = '*** Begin\n+print("a\\n")\n+\n*** End'
    said = f'<tool_call>\n{{"name": "patch", "arguments": {{"input": {json.dumps(text)} never'
    async with serving(says(said)) as client:
        asked = body(tools=[WEATHER, custom(PATCH)], stream=stream, max_tokens=400,
                     tool_choice=named if choice == "named" else choice,
                     parallel_tool_calls=False)  # fmt: skip
        response = await client.post(PATH, json=asked)
    if stream:
        parts = [
            call["custom"]["input"] for chunk in events_of(response)
            for call in chunk["choices"][0]["delta"].get("tool_calls", ())
        ]  # fmt: skip
        assert "".join(parts) == text
        return
    (call,) = response.json()["choices"][0]["message"]["tool_calls"]
    assert call["custom"] == {"name": "patch", "input": text}


async def test_a_lark_grammar_is_told_to_the_model() -> None:
    backend = says("No.")
    async with serving(backend) as client:
        await client.post(PATH, json=body(tools=[custom('start: "a"')]))
    assert b'start: \\"a\\"' in bytes(t % 256 for t in backend.slots[0])


async def test_a_grammar_that_a_syntax_cannot_hold_is_refused_there_alone() -> None:
    statuses = {}
    for template in (HERMES, TAGGED):
        async with serving(says("No.", template)) as client:
            response = await client.post(PATH, json=body(tools=[custom(PATCH)]))
        statuses[template] = response.status_code
        if response.status_code == 400:
            assert response.json()["error"]["param"] == "tools.[0].custom.format"
            assert "may have" in response.json()["error"]["message"]
    assert statuses == {HERMES: 200, TAGGED: 400}


async def test_a_lark_grammar_is_refused_beside_a_format_where_both_are_bare_json() -> None:
    fields = {"tools": [custom('start: "a"')], "response_format": FORMAT}
    async with serving(says("", LLAMA)) as client:
        auto = await client.post(PATH, json=body(**fields))
        must = await client.post(PATH, json=body(**fields, tool_choice="required"))
    assert auto.json()["error"]["param"] == "tools.[0].custom.format"
    (call,) = must.json()["choices"][0]["message"]["tool_calls"]
    assert call["custom"]["input"] == "a"


SKY = {
    "type": "object", "properties": {"sky": {"enum": ["blue", "grey"]}}, "required": ["sky"],
    "additionalProperties": False,
}  # fmt: skip
FORMAT = {"type": "json_schema", "json_schema": {"name": "sky", "schema": SKY}}


@pytest.mark.parametrize("template", [HERMES, PLAIN, TAGGED])
async def test_beside_a_response_format_it_calls_or_answers_in_that(template: str) -> None:
    calls = await ask(says(CALLS[template], template), response_format=FORMAT)
    answers = await ask(says('{"sky": "grey"}', template), response_format=FORMAT)
    must = await ask(
        says(CALLS[template], template), response_format=FORMAT, tool_choice="required"
    )
    assert calls["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
    assert (answers["message"]["content"], answers["finish_reason"]) == ('{"sky": "grey"}', "stop")
    assert must["finish_reason"] == "tool_calls"
    talks = await ask(says("It is a nice day", template), response_format=FORMAT, max_tokens=300)
    if talks["finish_reason"] == "stop":
        assert json.loads(talks["message"]["content"])["sky"] in ("blue", "grey")
    else:
        assert talks["message"]["content"] in (None, '{"sky": "')


NAMED = {
    "type": "object", "required": ["name", "age"], "additionalProperties": False,
    "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/age"}},
    "$defs": {"age": {"type": "integer", "maximum": 99}},
}  # fmt: skip


def formatted(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (SKY, '{"sky": "grey"}'),
        # These begin as calls do.
        (NAMED, '{"name": "Rex", "age": 3}'),
        (NAMED, '{"name": "get_weather", "age": 3}'),
        ({"anyOf": [NAMED, {"type": "array", "items": {"type": "integer"}}],
          "$defs": NAMED["$defs"]}, "[1, 2]"),
        ({"type": "object", "properties": {"name": {"const": "add"}}, "required": ["name"],
          "additionalProperties": False}, '{"name": "add"}'),
    ],
)  # fmt: skip
async def test_calls_that_are_json_are_told_from_an_answer_in_json(
    schema: dict[str, Any], said: str
) -> None:
    format = formatted(schema)
    call = await ask(says(CALLS[LLAMA], LLAMA), response_format=format)
    answer = await ask(says(said, LLAMA), response_format=format)
    assert call["message"]["tool_calls"][0]["function"] == {
        "name": "get_weather", "arguments": '{"city": "Paris"}',
    }  # fmt: skip
    assert (answer["message"]["content"], answer["finish_reason"]) == (said, "stop")
    assert "tool_calls" not in answer["message"]


async def test_an_answer_that_might_be_a_call_that_is_json_is_refused_unless_one_must_come() -> (
    None
):
    arguments = {"type": "object", "properties": {"parameters": {}}, "additionalProperties": False}
    async with serving(says(CALLS[LLAMA], LLAMA)) as client:
        for format in (
            {"type": "json_object"}, formatted(arguments), formatted({}),
            formatted({"anyOf": [SKY, arguments]}), formatted({"$ref": "#/$defs/a",
                                                              "$defs": {"a": arguments}}),
            formatted({"enum": [{"parameters": 1}]}),
        ):  # fmt: skip
            auto = await client.post(PATH, json=body(response_format=format))
            must = body(response_format=format, tool_choice="required")
            must = (await client.post(PATH, json=must)).json()
            assert (auto.status_code, auto.json()["error"]["param"]) == (400, "response_format")
            assert "parameters" in auto.json()["error"]["message"]
            assert must["choices"][0]["finish_reason"] == "tool_calls"


def function(name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


_BAD: dict[str, Any] = {"type": "object", "properties": {"a": {"not": {"pattern": "a"}}}}
# What llguidance would pass over.
_BAD_HERE = {"type": "object", "properties": {"a": {"divisibleBy": 2}}}
# One that no call could hold, and one that says nothing.
_LARK = {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: %json {}"}}
_LARK_BAD = {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: nowhere"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [function("a b")]}, "tools.[0].function.name"),
        ({"tools": [function("x" * 65)]}, "tools.[0].function.name"),
        ({"tools": [function(), function()]}, "tools.[1].function.name"),
        ({"tools": [function(foo=1)]}, "tools.[0].function.foo"),
        ({"tools": [function(parameters={"type": "array"})]}, "tools.[0].function.parameters"),
        ({"tools": [function("g"), function(parameters=_BAD)]}, "tools.[1].function.parameters"),
        ({"tools": [function("g"), function(parameters=_BAD_HERE)]},
         "tools.[1].function.parameters"),
        ({"tools": [function(f"f{i}") for i in range(129)]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "f", "format": _LARK}}]},
         "tools.[0].custom.format"),
        ({"tools": [{"type": "custom", "custom": {"name": "f", "format": _LARK_BAD}}]},
         "tools.[0].custom.format"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tool_choice": {"type": "function", "function": {"name": "nope"}}},
         "tool_choice.function.name"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "add"}}}, "tool_choice.custom.name"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {
            "mode": "auto", "tools": [{"type": "function", "function": {"name": "nope"}}]}}},
         "tool_choice.allowed_tools.tools.[0].function.name"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {
            "mode": "auto", "tools": [{"name": "add"}]}}},
         "tool_choice.allowed_tools.tools.[0]"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tools": None, "functions": [{"name": "f"}], "function_call": {"name": "g"}},
         "function_call.name"),
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"response_format": {"type": "json_object", "schema": _BAD}}, "response_format.schema"),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_tools_is_refused_by_its_path(
    fields: dict[str, Any], param: str
) -> None:
    async with serving(says("")) as client:
        response = await client.post(PATH, json=body(**fields))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


async def test_the_keyword_that_cannot_be_enforced_is_named() -> None:
    async with serving(says("")) as client:
        response = await client.post(PATH, json=body(tools=[function(parameters=_BAD)]))
    assert "not" in response.json()["error"]["message"]


def call(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {
        "id": call_id, "type": "function",
        "function": {"name": "get_weather", "arguments": arguments},
    }  # fmt: skip


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize("template", FAMILIES)
async def test_calls_and_results_of_a_history_reach_the_template(template: str) -> None:
    history = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call("c1", '{"city": "Rome"}')]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny there"},
    ]
    backend = says("Fine.", template)
    async with serving(backend) as client:
        response = await client.post(PATH, json=body(messages=history))
    assert response.json()["choices"][0]["message"]["content"] == "Fine."
    prompt = bytes(t % 256 for t in backend.slots[0]).decode()
    assert "Rome" in prompt and "sunny there" in prompt and '\\"city' not in prompt


async def test_the_deprecated_shape_of_a_history_is_taken_too() -> None:
    history = [
        USER,
        {"role": "assistant", "content": None,
         "function_call": {"name": "get_weather", "arguments": '{"city": "Rome"}'}},
        {"role": "function", "name": "get_weather", "content": "sunny there"},
    ]  # fmt: skip
    backend = says("Fine.")
    async with serving(backend) as client:
        response = await client.post(PATH, json=body(messages=history, tools=None))
    assert response.json()["choices"][0]["message"]["content"] == "Fine."
    prompt = bytes(t % 256 for t in backend.slots[0]).decode()
    assert '{"name": "get_weather", "arguments": {"city": "Rome"}}' in prompt
    assert "sunny there" in prompt


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([USER, {"role": "tool", "tool_call_id": "c1", "content": "x"}],
         "messages.[1].tool_call_id"),
        ([USER, {"role": "assistant", "tool_calls": [call("c1")]}, USER],
         "messages.[1].tool_calls"),
        ([USER, {"role": "assistant", "tool_calls": [call("c1")]}], "messages.[1].tool_calls"),
        ([USER, {"role": "assistant", "tool_calls": [call("c1", "[]")]},
          {"role": "tool", "tool_call_id": "c1", "content": "x"}],
         "messages.[1].tool_calls.[0].function.arguments"),
        ([{"role": "assistant", "tool_calls": [{"id": "1", "type": "function"}]}],
         "messages.[0].tool_calls.[0].function"),
        ([{"role": "assistant", "function_call": {"name": "f", "arguments": "{"}}],
         "messages.[0].function_call.arguments"),
    ],
)  # fmt: skip
async def test_a_history_that_does_not_hold_together_is_refused_by_its_path(
    messages: list[Any], param: str
) -> None:
    async with serving(says("")) as client:
        response = await client.post(PATH, json=body(messages=messages))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_a_tool_without_parameters_is_called_without() -> None:
    said = '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>'
    answer = await ask(says(said), tools=[function("now")], tool_choice="required", max_tokens=200)
    assert answer["message"]["tool_calls"][0]["function"]["arguments"] == "{}"
    assert ADD["function"]["name"] == "add"


_PIECES = (
    "<tool_call>", "\n", '{"name": "', "get_weather", '", "arguments": ', '{"city": "', 'Paris"}',
    "}", "</tool_call>", "<function=add>", "<parameter=numbers>", "[1, 2]", "</parameter>",
    "</function>", '", "parameters": ', "add", "Hm < é.", "<tool", " ",
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    pieces=st.lists(st.sampled_from(_PIECES), max_size=12),
    template=st.sampled_from(FAMILIES),
    required=st.booleans(),
)
def test_whatever_a_model_would_say_its_calls_are_valid(
    pieces: list[str], template: str, required: bool
) -> None:
    schemas = {t["function"]["name"]: t["function"]["parameters"] for t in TOOLS}

    async def check() -> None:
        choice = "required" if required else "auto"
        said = says("".join(pieces), template)
        got = await ask(said, tool_choice=choice, max_tokens=300)
        calls = got["message"].get("tool_calls", [])
        if got["finish_reason"] == "length":
            calls = calls[:-1]  # the last was cut off
        else:
            assert bool(calls) == (got["finish_reason"] == "tool_calls")
            assert calls or not required
        for call in calls:
            arguments = json.loads(call["function"]["arguments"])
            jsonschema.validate(arguments, schemas[call["function"]["name"]])

    anyio.run(check)
