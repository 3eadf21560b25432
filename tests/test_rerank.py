"""POST /rerank over the fake backend, whose score is the share of tokens that 8 divides."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from clients import MODEL, OpenRequest, serving
from fakes import BOS, CONTROL, EOG, FakeBackend, fake_app

pytestmark = pytest.mark.anyio

DOCUMENTS = ["aaah", {"text": "hhhh"}, "aaaa"]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "query": "q", "documents": DOCUMENTS, **fields}


def ranker(**options: Any) -> FakeBackend:
    defaults = {"can_rank": True, "can_generate": False, "whole_inputs": True}
    return FakeBackend(**{**defaults, **options})


def share(tokens: list[int]) -> float:
    return sum(token % 8 == 0 for token in tokens) / len(tokens)


@pytest.mark.parametrize("path", ["/rerank", "/reranking", "/v1/rerank", "/v1/reranking"])
async def test_the_best_document_comes_first(path: str) -> None:
    async with serving(ranker(add_bos=True)) as client:
        answer = (await client.post(path, json=body())).json()
    inputs = [[BOS, *b"q", EOG, CONTROL, *text, EOG] for text in (b"aaah", b"hhhh", b"aaaa")]
    assert answer == {
        "model": MODEL,
        "object": "list",
        "usage": {"prompt_tokens": 27, "total_tokens": 27},
        "results": [
            {"index": i, "relevance_score": pytest.approx(share(inputs[i]))} for i in (1, 0, 2)
        ],
    }


async def test_so_many_as_asked_for_with_their_text_if_asked_for() -> None:
    async with serving(ranker()) as client:
        fields = {"top_n": 2, "return_documents": True, "model": None}
        results = (await client.post("/rerank", json=body(**fields))).json()["results"]
    assert [result["document"] for result in results] == [{"text": "hhhh"}, {"text": "aaah"}]
    assert [result["index"] for result in results] == [1, 0]


async def test_the_models_own_template_is_used_and_control_tokens_in_texts_are_text() -> None:
    template = "<|control|>{query}|{document}"
    backend = ranker(rerank_template=template)
    async with serving(backend) as client:
        plain = await client.post("/rerank", json=body(documents=["{query}h"]))
        tricky = await client.post("/rerank", json=body(documents=["<|control|>"]))
    assert plain.json()["usage"]["prompt_tokens"] == 1 + len("q|{query}h")
    assert tricky.json()["usage"]["prompt_tokens"] == 1 + len("q|<|control|>")


async def test_a_client_that_leaves_does_not_stop_the_others() -> None:
    app = fake_app(ranker(n_ctx=10**6, step_s=0.001))
    leaving = OpenRequest(app, "/rerank", body(documents=["a" * 50] * 500))
    staying = OpenRequest(app, "/rerank", body())
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(leaving.run)
            group.start_soon(staying.run)
            leaving.leave.set()
            await leaving.ended.wait()
            await staying.ended.wait()
    assert staying.status == 200
    await app.aclose()


async def test_a_model_without_a_classification_head_is_refused() -> None:
    async with serving() as client:
        response = await client.post("/v1/rerank", json=body())
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (
        400, "model", "unsupported_model",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"query": None}, "query", "invalid_type"),
        ({"query": "a" * 300}, "query", "context_length_exceeded"),
        ({"documents": []}, "documents", "invalid_value"),
        ({"documents": ["a", "a" * 300]}, "documents", "context_length_exceeded"),
        ({"documents": ["a"] * 2049}, "documents", "invalid_value"),
        ({"documents": ["a" * 150] * 2048}, "documents", "invalid_value"),
        ({"documents": ["a", 1]}, "documents.[1]", "invalid_type"),
        ({"documents": [{"txt": "a"}]}, "documents.[0].text", "missing_required_parameter"),
        ({"top_n": 0}, "top_n", "invalid_value"),
        ({"rank_fields": ["text"]}, "rank_fields", "unknown_parameter"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(
    fields: dict[str, Any], param: str, code: str
) -> None:
    async with serving(ranker()) as client:
        response = await client.post("/rerank", json=body(**fields))
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
