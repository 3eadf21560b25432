"""Rerankers of both kinds against llama.cpp by itself: tiny ones with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assets import tiny
from assets.tiny import FIRST_BYTE
from clients import client_of
from reference import Reference

import openai_local
from openai_local.engine import Engine, EngineConfig, Unsupported

pytestmark = [pytest.mark.model, pytest.mark.anyio]

BOS, EOS = 1, 2
QUERY = "What is the sea?"
DOCUMENTS = ["water", "The sea is wide, and deep, and cold. " * 2, "", "a {query} and </s>", "sand"]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def bytes_of(text: str) -> list[int]:
    return [FIRST_BYTE + byte for byte in text.replace(" ", "\u2581").encode()]


def pair(query: str, document: str) -> list[int]:
    """[BOS] query [EOS] [SEP] document [EOS]; </s> is both."""
    return [BOS, *bytes_of(query), EOS, EOS, *bytes_of(document), EOS]


def templated(query: str, document: str) -> list[int]:
    return [EOS, *bytes_of(f"Q: {query} D: {document}"), EOS]


KINDS = [(tiny.bert_reranker, pair), (tiny.qwen3_reranker, templated)]


@pytest.mark.parametrize(("write", "build"), KINDS)
async def test_scores_are_llama_cpps_and_the_best_comes_first(
    tmp_path: Path, write: Callable[[Path], None], build: Callable[[str, str], list[int]]
) -> None:
    path = tmp_path / "ranker.gguf"
    write(path)
    # The batch is smaller than an input, which must then come in pieces, or whole in spite of it.
    app = openai_local.app(path, n_ctx=256, n_threads=1, n_batch=64, n_ubatch=64)
    body: dict[str, Any] = {"query": QUERY, "documents": DOCUMENTS, "return_documents": True}
    async with client_of(app) as client, app.lifespan():
        answer = await client.post("/v1/rerank", json=body)
        embedded = await client.post("/embeddings", json={"model": "ranker", "input": "a"})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    inputs = [build(QUERY, document) for document in DOCUMENTS]
    reference = Reference(path)
    expected = [float(reference.scores(tokens)[0]) for tokens in inputs]
    reference.close()
    assert np.std(expected) > 1e-3, "otherwise any order would do"
    order = [result["index"] for result in results]
    assert order == sorted(range(len(expected)), key=lambda i: -expected[i])
    given = [result["relevance_score"] for result in results]
    assert np.allclose(given, [expected[i] for i in order], atol=1e-3)
    assert [result["document"]["text"] for result in results] == [DOCUMENTS[i] for i in order]
    assert answer.json()["usage"]["prompt_tokens"] == sum(map(len, inputs))
    assert embedded.status_code == 400
    assert embedded.json()["error"]["code"] == "unsupported_model"


async def test_a_head_of_several_labels_scores_by_the_first(tmp_path: Path) -> None:
    path = tmp_path / "ranker.gguf"
    tiny.bert_reranker(path, n_labels=3)
    inputs = [pair(QUERY, document) for document in DOCUMENTS]
    async with Engine(EngineConfig(path, n_threads=1)) as engine:
        scores = await engine.rank(inputs)
        with pytest.raises(Unsupported):
            await engine.embed(inputs)
    reference = Reference(path)
    expected = [reference.scores(tokens, 3)[0] for tokens in inputs]
    reference.close()
    assert np.allclose(scores, expected, atol=1e-3)


async def test_many_documents_get_the_scores_that_each_has_alone(tmp_path: Path) -> None:
    path = tmp_path / "ranker.gguf"
    tiny.bert_reranker(path)
    inputs = [pair(QUERY, "sea " * (i % 23)) for i in range(150)]
    async with Engine(EngineConfig(path, n_threads=1)) as engine:
        together = await engine.rank(inputs)
        alone = [(await engine.rank([tokens]))[0] for tokens in inputs[:30]]
    assert np.allclose(together[:30], alone, atol=1e-3)
    assert together.shape == (150,)


async def test_what_does_not_rank_refuses_to(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tiny.llama(path)
    async with Engine(EngineConfig(path, n_ctx=64, n_threads=1)) as engine:
        with pytest.raises(Unsupported, match="rerank"):
            await engine.rank([[1, 2]])
