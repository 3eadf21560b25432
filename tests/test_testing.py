"""The kit for tests of hosts: a fake model says what it is told to, through all that is real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI

import openai_local
from openai_local.engine import EngineStopped
from openai_local.testing import FakeModel, FakeRequest, Reply
from openai_local.testing.script import words

USER: Any = [{"role": "user", "content": "How is Rome?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}


@pytest.fixture
def model() -> Iterator[FakeModel]:
    model = FakeModel()
    yield model
    model.close()


@pytest.fixture
def client(model: FakeModel) -> Iterator[OpenAI]:
    with openai_local.sync_client(model.app(), max_retries=0) as client:
        yield client


def chat(client: OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "fake", "messages": USER, **options})


def test_without_a_script_it_says_what_was_said(client: OpenAI) -> None:
    assert chat(client).choices[0].message.content == "How is Rome?"
    assert client.completions.create(model="fake", prompt="Once").choices[0].text == "Once"


def test_one_reply_is_said_always_and_a_list_once(client: OpenAI, model: FakeModel) -> None:
    model.script = "Fine."
    assert {chat(client).choices[0].message.content for _ in range(3)} == {"Fine."}
    model.script = ["one", "two"]
    assert [chat(client).choices[0].message.content for _ in range(2)] == ["one", "two"]
    with pytest.raises(openai.InternalServerError, match="said all of its 2 replies"):
        chat(client)


def test_a_function_sees_what_was_asked(client: OpenAI, model: FakeModel) -> None:
    def script(request: FakeRequest) -> str:
        return f"{len(request.messages)} {request.messages[0]['role']} {request.last}"

    model.script = script
    messages = [{"role": "system", "content": "Be\nkind. <|im_end|>"}, *USER]
    answer = chat(client, messages=messages).choices[0].message.content
    assert answer == "2 system How is Rome?"
    assert model.requests[0].messages[0]["content"] == "Be\nkind. <|im_end|>"


def test_a_history_comes_back_as_it_was_said(client: OpenAI, model: FakeModel) -> None:
    model.script = Reply(
        "Let me see.", reasoning="Rome", calls=[("weather", {"city": "Rome", "days": 3})]
    )
    said = chat(client, tools=[TOOL]).choices[0].message
    assert said.content == "Let me see."
    assert said.reasoning_content == "Rome"
    assert json.loads(said.tool_calls[0].function.arguments) == {"city": "Rome", "days": 3}
    result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "sunny"}
    model.script = "It is sunny."
    chat(client, messages=[*USER, said, result], tools=[TOOL])
    asked = model.requests[-1]
    assert asked.messages[1] == {
        "role": "assistant",
        "reasoning_content": "Rome",
        "content": "Let me see.",
        "tool_calls": [{"name": "weather", "arguments": {"city": "Rome", "days": 3}}],
    }
    assert asked.messages[2] == result
    assert asked.tools[0]["function"]["name"] == "weather"


def test_it_streams_word_by_word_or_in_the_pieces_that_are_given(
    client: OpenAI, model: FakeModel
) -> None:
    model.script = ["It is fine.", Reply(["It i", "s fine."])]
    for pieces in (["It", " is", " fine."], ["It i", "s fine."]):
        chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
        texts = [c.choices[0].delta.content for c in chunks if c.choices]
        assert [text for text in texts if text] == pieces
        assert chunks[-1].usage.completion_tokens == len(pieces) + 1


def test_several_calls_and_thoughts_stream_too(client: OpenAI, model: FakeModel) -> None:
    calls = [("weather", {"city": city, "days": 1}) for city in ("Rome", "Paris é")]
    model.script = Reply(reasoning="Both.", calls=calls)
    with client.chat.completions.stream(model="fake", messages=USER, tools=[TOOL]) as stream:
        for _ in stream:
            pass
        made = stream.get_final_completion().choices[0]
    assert made.finish_reason == "tool_calls"
    said = [json.loads(call.function.arguments)["city"] for call in made.message.tool_calls or ()]
    assert said == ["Rome", "Paris é"]


def test_no_thought_where_the_request_wants_none(client: OpenAI, model: FakeModel) -> None:
    model.script = Reply("Fine.", reasoning="Hm.")
    message = chat(client, reasoning_effort="none").choices[0].message
    assert message.content == "Fine." and not hasattr(message, "reasoning_content")


@pytest.mark.parametrize("reply", ['{"city": "Rome", "days": 3}', '{"city":"Rome","days":3}'])
def test_a_reply_that_fits_the_schema_is_said_as_it_is(
    client: OpenAI, model: FakeModel, reply: str
) -> None:
    model.script = reply
    schema = {"name": "weather", "schema": PARAMETERS}
    format = {"type": "json_schema", "json_schema": schema}
    said = chat(client, response_format=format).choices[0].message.content
    assert json.loads(said) == json.loads(reply)


SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "string", "minLength": 3, "maxLength": 5},
            {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"},
            {"type": "string", "format": "date"},
            {"type": "integer", "minimum": 7},
            {"type": "number"},
            {"type": "boolean"},
            {"type": "null"},
            {"enum": ["a", 2, None]},
            {"const": "x"},
        ]
    ),
    lambda inner: st.one_of(
        st.builds(lambda items: {"type": "array", "items": items, "minItems": 2}, inner),
        st.builds(lambda *of: {"anyOf": list(of)}, inner, inner),
        st.dictionaries(st.sampled_from(["a", "b b", "ü"]), inner, max_size=2).map(
            lambda properties: {
                "type": "object",
                "properties": properties,
                "required": list(properties)[:1],
            }
        ),
    ),
    max_leaves=4,
)


@settings(max_examples=40, deadline=None)
@given(schema=SCHEMAS)
def test_a_reply_that_does_not_fit_gives_way_to_what_does(schema: Any) -> None:
    model = FakeModel("No JSON at all.", n_ctx=4096)
    engine = openai_local.SyncEngine.of(model.app())
    format = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    try:
        answer = engine.chat("hi", response_format=format)
    finally:
        engine.close()
        model.close()
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.text), schema)


def test_a_call_that_must_be_is_made(client: OpenAI, model: FakeModel) -> None:
    model.script = "Only words."
    message = chat(client, tools=[TOOL], tool_choice="required").choices[0].message
    jsonschema.validate(json.loads(message.tool_calls[0].function.arguments), PARAMETERS)
    assert chat(client, tools=[TOOL]).choices[0].message.content == "Only words."


def test_a_call_that_may_not_be_is_an_error_that_says_so(client: OpenAI, model: FakeModel) -> None:
    model.script = Reply(calls=[("weather", {"city": 3})])
    with pytest.raises(openai.InternalServerError, match="calls a tool as the request does not"):
        chat(client, tools=[TOOL])
    with pytest.raises(openai.InternalServerError, match="the request allows none"):
        chat(client)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
        (504, openai.InternalServerError),
    ],
)
def test_it_fails_as_it_is_told(
    client: OpenAI, model: FakeModel, status: Any, error: type[openai.APIStatusError]
) -> None:
    model.script = Reply(fails=status)
    for stream in (False, True):
        with pytest.raises(error) as failed:
            chat(client, stream=stream)
        assert failed.value.status_code == status
    engine = openai_local.SyncEngine.of(model.app())
    if status == 503:
        with pytest.raises(EngineStopped):
            engine.chat("hi")
    engine.close()


def test_it_fails_behind_what_it_says(client: OpenAI, model: FakeModel) -> None:
    model.script = Reply("one two", fails=500)
    said = ""
    with pytest.raises(openai.APIError, match="told to fail"):
        for chunk in chat(client, stream=True):
            said += chunk.choices[0].delta.content or ""
    assert said == "one two"
    with pytest.raises(openai.InternalServerError):
        chat(client)
    with pytest.raises(ValueError, match="429"):
        Reply("one", fails=429)


def test_a_slow_reply_can_be_given_up(client: OpenAI, model: FakeModel) -> None:
    model.script = Reply("one two three four", delay_s=0.2)
    with pytest.raises(openai.APITimeoutError):
        chat(client.with_options(timeout=0.3))


def test_bounds_and_choices_are_the_engines(client: OpenAI, model: FakeModel) -> None:
    model.script = ["one two three", "four five six"]
    answer = chat(client, n=2, max_tokens=2)
    assert [c.message.content for c in answer.choices] == ["one two", "four five"]
    assert {c.finish_reason for c in answer.choices} == {"length"}
    model.script = "one two three"
    assert chat(client, stop=" three").choices[0].message.content == "one two"
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, temperature=9)
    assert refused.value.param == "temperature"
    assert len(client.embeddings.create(model="fake", input=["a", "b"]).data) == 2


def test_the_application_of_a_host_answers_by_it_and_then_no_more() -> None:
    local = openai_local.app("no-such-file.gguf", model_id="big", api_key="secret")
    host = FastAPI(lifespan=local.lifespan)
    host.mount("/v1", local)
    body = {"model": "big", "messages": USER}
    headers = {"authorization": "Bearer secret"}
    model = FakeModel("From the fake.")
    engine = local.engine
    with model.serving(local), TestClient(host) as http:
        answer = http.post("/v1/chat/completions", json=body, headers=headers).json()
        assert answer["choices"][0]["message"]["content"] == "From the fake."
        assert http.post("/v1/chat/completions", json=body).status_code == 401
        assert openai_local.SyncEngine.of(local).chat("hi").text == "From the fake."
        assert local.engine._local is engine._local is local
    client = TestClient(host)
    assert client.post("/v1/chat/completions", json=body, headers=headers).status_code == 503


def test_all_models_of_a_host_answer_by_it_under_their_own_names() -> None:
    model = FakeModel("From the fake.")
    tables = {"small": "no-such.gguf", "other": {"path": "hf:no/such", "alias": ["o"]}}
    for local, names in (
        (openai_local.app(models=tables), {"small", "other"}),
        (openai_local.app("hf:no/such:Q4_0", embedding_model="vectors.gguf"), None),
        (openai_local.app(), {"smollm2-135m-instruct"}),
    ):
        own = set(anyio.run(local.engine.models))
        with model.serving(local), openai_local.sync_client(local) as client:
            listed = {found.id for found in client.models.list()}
            assert listed == own and (names is None or listed == names)
            for id in listed:
                assert chat(client, model=id).choices[0].message.content == "From the fake."


def test_words_are_all_of_a_text() -> None:
    for text in ("", " ", "a", " a  b\n", "\n\na b"):
        assert "".join(words(text)) == text
    assert words("a  b\nc ") == ["a", "  b", "\nc", " "]


LIGHT = """
import sys
import openai_local.testing
model = openai_local.testing.FakeModel("hello")
engine = openai_local.SyncEngine.of(model.app())
assert engine.chat("hi").text == "hello"
assert "llama_cpp" not in sys.modules and "pytest" not in sys.modules
"""


def test_it_needs_neither_llama_cpp_nor_pytest() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", LIGHT], check=True, timeout=60)


HOST_TESTS = """
import sys

heavy = {"openai_local.testing", "starlette", "numpy", "llama_cpp"} & set(sys.modules)


def test_nothing_is_imported_before_it_is_used():
    assert not heavy, heavy


def test_client(openai_local_client, openai_local_model):
    openai_local_model.script = ["one", "two"]
    for expected in ("one", "two"):
        answer = openai_local_client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "hi"}]
        )
        assert answer.choices[0].message.content == expected
    assert len(openai_local_model.requests) == 2


def test_async_client(openai_local_async_client):
    import anyio

    async def main():
        answer = await openai_local_async_client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "hi"}]
        )
        assert answer.choices[0].message.content == "hi"

    anyio.run(main)


def test_app(openai_local_app):
    assert openai_local_app.settings.model is not None
"""


READMES_HOST = """
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

import openai_local

local = openai_local.app("no-such-file.gguf")
app = FastAPI(lifespan=local.lifespan)


@app.get("/ask")
async def ask(q: str) -> PlainTextResponse:
    answer = await local.engine.chat(f"How is the weather in {q}?")
    return PlainTextResponse(answer.text)
"""


def run_pytest(*arguments: str, cwd: Path) -> None:
    root = Path(openai_local.__file__).parent.parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "openai_local.pytest_plugin", *arguments]
    made = subprocess.run(
        [*command, "-W", "error", "-p", "no:cacheprovider"],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr


def test_the_fixtures_of_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_host.py").write_text(HOST_TESTS)
    run_pytest("test_host.py", cwd=tmp_path)


def test_the_example_of_a_hosts_tests() -> None:
    examples = Path(__file__).parent.parent / "examples"
    alone = ("-c", "/dev/null", "--rootdir", str(examples.parent))
    run_pytest(*alone, "examples/test_fastapi_chat.py", cwd=examples.parent)


def test_the_readmes_test_of_a_host(tmp_path: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    code = readme.split("## Testing your host")[1].split("```python\n")[1].split("```")[0]
    (tmp_path / "myproject").mkdir()
    (tmp_path / "myproject" / "main.py").write_text(READMES_HOST)
    (tmp_path / "test_host.py").write_text(code)
    run_pytest("test_host.py", "-o", f"pythonpath={tmp_path}", cwd=tmp_path)
