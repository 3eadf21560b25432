"""Response formats and other constraints over the fake, in chats and text completions."""

from __future__ import annotations

import json
from typing import Any

import anyio
import jsonschema
import pytest
from clients import MESSAGES, MODEL, OpenRequest, events_of, serving
from fakes import FakeBackend, fake_app, spelling

from openai_local.engine.constraints.compiler import ConstraintCompiler

pytestmark = pytest.mark.anyio

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"enum": [1, 22, 333]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}<think>"
    "{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and "
    "not enable_thinking %}<think></think>{% endif %}{% endif %}"
)


def body(path: str = CHAT, **fields: Any) -> dict[str, Any]:
    prompt = {"messages": MESSAGES} if path == CHAT else {"prompt": "<assistant>"}
    return {"model": MODEL, "temperature": 0, "max_tokens": 400, **prompt, **fields}


def says(text: str, **options: Any) -> FakeBackend:
    return FakeBackend(n_ctx=4096, n_batch=512, next_token=spelling(text), **options)


def text_of(answer: Any) -> str:
    (choice,) = answer.json()["choices"]
    assert choice["finish_reason"] == "stop", "it is complete"
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
FORMATS: list[dict[str, Any]] = [
    {"response_format": JSON_SCHEMA},
    {"response_format": {"type": "json_object", "schema": PERSON}},
    {"json_schema": PERSON},
    {"structured_outputs": {"json": PERSON}},
    {"structured_outputs": {"json": json.dumps(PERSON)}},
]


@pytest.mark.parametrize("fields", FORMATS)
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_schema_by_any_of_its_names_binds_the_answer(
    path: str, fields: dict[str, Any]
) -> None:
    async with serving(says("I would rather talk about something else, if I may.")) as client:
        whole = await client.post(path, json=body(path, **fields))
        streamed = await client.post(path, json=body(path, stream=True, **fields))
    value = json.loads(text_of(whole))
    jsonschema.validate(value, PERSON)
    parts = [chunk["choices"][0] for chunk in events_of(streamed)]
    pieces = [p["text"] if path == TEXT else p["delta"].get("content") or "" for p in parts]
    assert "".join(pieces) == text_of(whole)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"response_format": {"type": "text"}}, "perhaps"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes"),
        ({"structured_outputs": {"regex": "[a-c]er"}}, "aer"),
        ({"structured_outputs": {"grammar": 'start: "pe" "n"'}}, "pen"),
        ({"structured_outputs": {"grammar": 'root ::= "pe" "g"'}}, "peg"),
        ({"grammar": 'root ::= "per" ("x" | "y")'}, "perx"),
        ({"grammar": ""}, "perhaps"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_grammars_regexes_and_choices_bind_it_too(
    path: str, fields: dict[str, Any], text: str
) -> None:
    async with serving(says("perhaps")) as client:
        answer = text_of(await client.post(path, json=body(path, **fields)))
    if "choice" in fields.get("structured_outputs", {}):
        assert answer in ("yes", "no")
    else:
        assert answer == text


async def test_any_object_is_a_json_object() -> None:
    for fields in (
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
        {"structured_outputs": {"json_object": True}},
    ):
        async with serving(says('{"a": [1, {}]} and more')) as client:
            assert text_of(await client.post(CHAT, json=body(**fields))) == '{"a": [1, {}]}'


_BAD = {"type": "object", "properties": {"a": {"not": {"pattern": "a"}}}}


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": _BAD}}},
         "response_format.json_schema.schema", "not"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
         "response_format.json_schema.name", "Missing"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "Missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
         "response_format.json_schema.name", "match"),
        ({"response_format": {"type": "json_object", "schema": _BAD}},
         "response_format.schema", "not"),
        ({"json_schema": _BAD}, "json_schema", "not"),
        ({"grammar": "root ::= nowhere"}, "grammar", "nowhere"),
        ({"structured_outputs": {"json": _BAD}}, "structured_outputs.json", "not"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "JSON"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "regex"),
        ({"structured_outputs": {"grammar": "start: nowhere"}},
         "structured_outputs.grammar", "nowhere"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "1"),
        ({"structured_outputs": {}}, "structured_outputs", "one of"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}},
         "structured_outputs.choice", "together"),
        ({"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}},
         "grammar", "together"),
        ({"structured_outputs": {"structural_tag": "x"}},
         "structured_outputs.structural_tag", "Unknown"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_what_cannot_be_enforced_is_refused_by_path_and_keyword(
    path: str, fields: dict[str, Any], param: str, word: str
) -> None:
    async with serving(says("x")) as client:
        response = await client.post(path, json=body(path, **fields))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert word in error["message"]


async def test_tokens_that_run_out_within_a_bound_answer_give_length() -> None:
    async with serving(says("x")) as client:
        response = await client.post(CHAT, json=body(response_format=JSON_SCHEMA, max_tokens=9))
    assert response.json()["choices"][0]["finish_reason"] == "length"


async def test_a_client_that_leaves_does_not_wait_for_its_schema(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ConstraintCompiler, "_start", lambda *_: None)  # never done
    app = fake_app(says("x"))
    engine = (await app.registry.get(MODEL)).engine
    request = OpenRequest(app, CHAT, body(response_format=JSON_SCHEMA))
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(request.run)
            await anyio.sleep(0.05)
            request.leave.set()
            await request.ended.wait()
    assert engine.metrics().requests_submitted_total == 0
    await app.aclose()


async def test_a_schema_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConstraintCompiler, "_start", lambda *_: None)
    monkeypatch.setattr("openai_local.engine.engine.MAX_SECONDS", 0.02)
    async with serving(says("x")) as client:
        response = await client.post(CHAT, json=body(response_format=JSON_SCHEMA))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format.json_schema.schema"


async def test_the_answer_is_bound_and_the_thought_before_it_is_free() -> None:
    thought = "<think>Hm, a person { or so.</think>"
    for said in (thought + "talk", "{talk"):
        async with serving(says(said, chat_template=THINKING)) as client:
            asked = body(response_format=JSON_SCHEMA)
            whole = await client.post(CHAT, json=asked)
            off = await client.post(
                CHAT, json={**asked, "chat_template_kwargs": {"enable_thinking": False}}
            )
        message = whole.json()["choices"][0]["message"]
        jsonschema.validate(json.loads(message["content"]), PERSON)
        details = whole.json()["usage"]["completion_tokens_details"]
        if said == "{talk":
            assert "reasoning_content" not in message
            assert details["reasoning_tokens"] == 0
        else:
            assert message["reasoning_content"] == "Hm, a person { or so."
            assert details["reasoning_tokens"] == len(thought)
        jsonschema.validate(json.loads(text_of(off)), PERSON)
