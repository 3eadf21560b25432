"""POST /embeddings over the fake backend."""

from __future__ import annotations

import base64
from typing import Any

import anyio
import numpy as np
import pytest
from clients import MODEL, OpenRequest, serving
from fakes import FakeBackend, fake_app
from openai.types import CreateEmbeddingResponse

pytestmark = pytest.mark.anyio


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": ["abc", "hhh"], **fields}


async def test_an_answer_has_openais_shape_and_unit_vectors() -> None:
    async with serving() as client:
        response = await client.post("/v1/embeddings", json=body())
    answer = CreateEmbeddingResponse.model_validate(response.json(), strict=True, extra="forbid")
    vectors = np.array([item.embedding for item in answer.data])
    assert [item.index for item in answer.data] == [0, 1]
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert np.allclose(vectors[0, 1:4], 3**-0.5)
    assert vectors[1, 0] == 1
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 6
    assert answer.model == MODEL


async def test_text_lists_and_token_ids_give_the_same_vectors() -> None:
    inputs: list[Any] = ["abc", ["abc"], list(b"abc"), [list(b"abc")]]
    async with serving() as client:
        answers = [await client.post("/embeddings", json=body(input=i)) for i in inputs]
    vectors = [answer.json()["data"][0]["embedding"] for answer in answers]
    assert all(vector == vectors[0] for vector in vectors)


async def test_base64_is_little_endian_float32() -> None:
    async with serving() as client:
        numbers = await client.post("/embeddings", json=body(encoding_format="float"))
        packed = await client.post("/embeddings", json=body(encoding_format="base64"))
    for a, b in zip(numbers.json()["data"], packed.json()["data"], strict=True):
        decoded = np.frombuffer(base64.b64decode(b["embedding"]), "<f4")
        assert np.array_equal(decoded, np.array(a["embedding"], np.float32))


async def test_fewer_dimensions_are_of_unit_length_again() -> None:
    async with serving() as client:
        response = await client.post("/embeddings", json=body(input="abcg", dimensions=3))
    vector = np.array(response.json()["data"][0]["embedding"])
    assert vector.shape == (3,)
    assert np.allclose(vector, [0, 2**-0.5, 2**-0.5])


async def test_the_legacy_path_serves_any_name() -> None:
    async with serving() as client:
        response = await client.post("/v1/engines/ada/embeddings", json={"input": "abc"})
    assert response.json()["model"] == MODEL


async def test_a_model_that_only_embeds_refuses_to_generate() -> None:
    async with serving(FakeBackend(can_generate=False, whole_inputs=True)) as client:
        embedded = await client.post("/embeddings", json=body())
        chat = {"model": MODEL, "messages": [{"role": "user", "content": ""}]}
        chatted = await client.post("/chat/completions", json=chat)
        completed = await client.post("/completions", json={"model": MODEL, "prompt": "a"})
    assert embedded.status_code == 200
    for response in (chatted, completed):
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "unsupported_model"
        assert response.json()["error"]["param"] == "model"


async def test_a_client_that_leaves_does_not_stop_the_others() -> None:
    app = fake_app(FakeBackend(n_ctx=10**6, step_s=0.001))
    leaving = OpenRequest(app, "/embeddings", body(input=["a" * 60] * 500))
    staying = OpenRequest(app, "/embeddings", body())
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(leaving.run)
            group.start_soon(staying.run)
            leaving.leave.set()
            await leaving.ended.wait()
            await staying.ended.wait()
    assert staying.status == 200
    await app.aclose()


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": None}, "input", "invalid_type"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": ["a", ""]}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": ["a"] * 2049}, "input", "invalid_value"),
        ({"input": [[1], [999]]}, "input", "invalid_value"),
        ({"input": [97] * 2049}, "input", "invalid_value"),
        ({"input": ["a" * 150] * 2001}, "input", "invalid_value"),
        ({"input": ["a", 1]}, "input.[1]", "invalid_type"),
        ({"input": "a" * 300}, "input", "context_length_exceeded"),
        ({"dimensions": 0}, "dimensions", "invalid_value"),
        ({"dimensions": 9}, "dimensions", "invalid_value"),
        ({"encoding_format": "int8"}, "encoding_format", "invalid_value"),
        ({"pooling": "cls"}, "pooling", "unknown_parameter"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(
    fields: dict[str, Any], param: str, code: str
) -> None:
    async with serving() as client:
        response = await client.post("/v1/embeddings", json=body(**fields))
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


async def test_the_bound_on_all_tokens_of_a_request_is_named_with_their_number() -> None:
    async with serving() as client:
        response = await client.post("/embeddings", json=body(input=["a" * 150] * 2001))
    message = response.json()["error"]["message"]
    assert "300150" in message and "300000" in message
