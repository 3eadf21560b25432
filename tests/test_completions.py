"""POST /completions over the fake backend."""

from __future__ import annotations

from typing import Any

import pytest
from clients import MODEL, events_of, serving
from fakes import FakeBackend, continuation
from openai.types import Completion

pytestmark = pytest.mark.anyio


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "once", "temperature": 0, "max_tokens": 5, **fields}


def answer(prompt: str, n: int = 5) -> str:
    return bytes(continuation(list(prompt.encode()), n)).decode()


async def test_an_answer_has_openais_shape() -> None:
    async with serving() as client:
        response = await client.post("/v1/completions", json=body())
    completion = Completion.model_validate(response.json(), strict=True, extra="forbid")
    assert completion.id.startswith("cmpl-")
    assert completion.object == "text_completion"
    assert completion.choices[0].text == answer("once")
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (4, 5)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "prompt", [["one", "two", "three"], [list(b"one"), list(b"two"), list(b"three")]]
)
async def test_several_prompts_and_choices_have_the_right_indices(
    stream: bool, prompt: list[Any]
) -> None:
    async with serving() as client:
        response = await client.post("/completions", json=body(prompt=prompt, n=2, stream=stream))
    texts = [""] * 6
    reasons = [None] * 6
    documents = events_of(response) if stream else [response.json()]
    for document in documents:
        for choice in document["choices"]:
            texts[choice["index"]] += choice["text"]
            reasons[choice["index"]] = choice["finish_reason"]
    assert texts == [answer(text) for text in ("one", "one", "two", "two", "three", "three")]
    assert reasons == ["length"] * 6
    if not stream:
        assert response.json()["usage"]["prompt_tokens"] == 11
        assert response.json()["usage"]["completion_tokens"] == 30


async def test_token_ids_are_one_prompt() -> None:
    async with serving() as client:
        response = await client.post("/v1/completions", json=body(prompt=list(b"once")))
    assert [choice["text"] for choice in response.json()["choices"]] == [answer("once")]


async def test_the_default_is_sixteen_tokens_and_zero_are_none() -> None:
    async with serving() as client:
        default = await client.post("/v1/completions", json=body(max_tokens=None))
        none = await client.post("/v1/completions", json=body(max_tokens=0))
    assert default.json()["usage"]["completion_tokens"] == 16
    assert none.json()["choices"][0]["text"] == ""
    assert none.json()["usage"]["completion_tokens"] == 0


async def test_control_tokens_are_meant_in_a_raw_prompt_and_text_begins_as_the_model_wants() -> (
    None
):
    backend = FakeBackend(add_bos=True)
    async with serving(backend) as client:
        await client.post("/v1/completions", json=body(prompt="a<|control|>b"))
    assert backend.slots[0][:4] == [257, 97, 258, 98]


async def test_the_legacy_path_serves_any_name() -> None:
    async with serving() as client:
        legacy = {key: value for key, value in body().items() if key != "model"}
        for engine in ("davinci", "text-davinci-003", "org/name"):
            response = await client.post(f"/v1/engines/{engine}/completions", json=legacy)
            assert response.json()["choices"][0]["text"] == answer("once")
            assert response.json()["model"] == MODEL


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": 1}, "prompt", "invalid_type"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [1, "a"]}, "prompt.[0]", "invalid_type"),
        ({"prompt": [[]]}, "prompt.[0]", "invalid_value"),
        ({"prompt": [999]}, "prompt", "invalid_value"),
        ({"prompt": [-1]}, "prompt", "invalid_value"),
        ({"prompt": [10**30]}, "prompt", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"echo": "yes"}, "echo", "invalid_type"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(
    fields: dict[str, Any], param: str, code: str
) -> None:
    async with serving() as client:
        response = await client.post("/v1/completions", json=body(**fields))
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
