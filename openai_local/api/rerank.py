"""How well documents answer a query, the best first, in Jina's shape.

The scores are the model's own, as llama-server gives them: comparable within a model, and not
between 0 and 1 unless the model makes them so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from openai_local.api.bodies import Refused
from openai_local.api.embeddings import MAX_TOKENS
from openai_local.api.errors import RequestError
from openai_local.api.generation import off_loop
from openai_local.api.types.rerank import RerankRequest
from openai_local.engine import Engine
from openai_local.models.loads import LoadedModel
from openai_local.models.session import Session

REFUSED: Refused = {}

_PLACE = re.compile(r"\{(query|document)\}")


async def rank(models: Session, body: RerankRequest) -> dict[str, Any]:
    """Raises RequestError, and what Session.get and Engine.rank raise."""
    model = await models.get(body.model or models.embedding_id, "embedding")
    if not model.info.can_rank:
        raise RequestError(
            f"The model {model.id!r} does not rerank: that takes one with a classification head.",
            param="model",
            code="unsupported_model",
        )
    texts = body.texts()
    # The query stands before every document: one that cannot fit is not written so often.
    n_chars = len(body.query)
    query = await off_loop(n_chars, lambda: _plain(model.engine, body.query))
    if len(query) > model.info.n_ctx:
        raise RequestError(
            f"The query has {len(query)} tokens; at most {model.info.n_ctx} fit with a document.",
            param="query",
            code="context_length_exceeded",
        )
    n_chars = n_chars * len(texts) + sum(map(len, texts))
    inputs = await off_loop(n_chars, lambda: _inputs(model, body.query, query, texts))
    scores = await model.engine.rank(inputs)
    return _answer(body, texts, model.id, scores.tolist(), sum(map(len, inputs)))


def _plain(engine: Engine, text: str) -> list[int]:
    return engine.tokenize(text, add_special=False, parse_special=False)


def _inputs(
    model: LoadedModel, query: str, query_tokens: Sequence[int], documents: Sequence[str]
) -> list[Sequence[int]]:
    """One for each document, as llama-server builds them. Raises RequestError."""
    engine, template = model.engine, model.info.rerank_template
    before, between, after = engine.vocabulary.around_pair()
    inputs: list[Sequence[int]] = []
    n_tokens = 0
    for document in documents:
        if template is not None:
            tokens = _templated(engine, template, {"query": query, "document": document})
        else:
            tokens = [*before, *query_tokens, *between, *_plain(engine, document), *after]
        inputs.append(tokens)
        n_tokens += len(tokens)
        if n_tokens > MAX_TOKENS:
            raise RequestError(
                f"The query and the documents have more than {MAX_TOKENS} tokens in all, the query"
                " counted with each.",
                param="documents",
                code="invalid_value",
            )
    return inputs


def _templated(engine: Engine, template: str, texts: dict[str, str]) -> list[int]:
    """Control tokens are meant in the template's own text only."""
    parts = _PLACE.split(template)  # text and name by turns
    places = {part for part in parts[1::2]}
    if all(_is_plain(engine, texts[place]) for place in places):
        whole = "".join(texts[part] if i % 2 else part for i, part in enumerate(parts))
        return engine.tokenize(whole, add_special=False, parse_special=True)
    tokens: list[int] = []
    for i, part in enumerate(parts):
        if i % 2:
            tokens += _plain(engine, texts[part])
        else:
            tokens += engine.tokenize(part, add_special=False, parse_special=True)
    return tokens


def _is_plain(engine: Engine, text: str) -> bool:
    """Whether no control token is written in it."""
    return _plain(engine, text) == engine.tokenize(text, add_special=False, parse_special=True)


def _answer(
    body: RerankRequest,
    texts: Sequence[str],
    model_id: str,
    scores: Sequence[float],
    n_tokens: int,
) -> dict[str, Any]:
    best = sorted(range(len(scores)), key=lambda index: -scores[index])
    results: list[dict[str, Any]] = []
    for index in best[: body.top_n]:
        result: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
        if body.return_documents:
            result["document"] = {"text": texts[index]}
        results.append(result)
    return {
        "model": model_id,
        "object": "list",
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        "results": results,
    }
