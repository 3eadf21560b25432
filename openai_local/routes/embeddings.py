"""POST /embeddings, and its legacy form with the model's name in the path."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from openai_local.routes.errors import RequestError
from openai_local.routes.generation import off_loop, tokenize_all
from openai_local.routes.host import unless_left
from openai_local.routes.request import Refused, read
from openai_local.routes.services import Services
from openai_local.routes.types.embeddings import EmbeddingRequest

# The specification's bound on all inputs of a request together.
MAX_TOKENS = 300_000

REFUSED: Refused = {}


async def create(services: Services, request: Request) -> ASGIApp:
    return await _create(services, request, {})


async def create_for_engine(services: Services, request: Request) -> ASGIApp:
    return await _create(services, request, {"model": services.named_in_path(request, "embedding")})


async def _create(services: Services, request: Request, fixed: dict[str, Any]) -> ASGIApp:
    body = await read(request, EmbeddingRequest, REFUSED, services.settings.max_body_bytes, fixed)
    model = await services.model(request, body.model, "embedding")
    engine, n_embd = model.engine, model.info.n_embd
    if body.dimensions is not None and body.dimensions > n_embd:
        raise RequestError(
            f"The model has {n_embd} dimensions, fewer than {body.dimensions}.",
            param="dimensions",
            code="invalid_value",
        )
    inputs = await tokenize_all(engine, body.input, parse_special=False)
    n_tokens = sum(map(len, inputs))
    if n_tokens > MAX_TOKENS:
        raise RequestError(
            f"The inputs have {n_tokens} tokens in all; at most {MAX_TOKENS} fit one request.",
            param="input",
            code="invalid_value",
        )
    vectors = await unless_left(request.receive, lambda: engine.embed(inputs))
    content = await off_loop(vectors.size, lambda: _content(body, model.id, vectors, n_tokens))
    return Response(content, media_type="application/json")


def _content(
    body: EmbeddingRequest, model_id: str, vectors: np.ndarray[Any, Any], n_tokens: int
) -> bytes:
    if body.dimensions is not None and body.dimensions < vectors.shape[1]:
        vectors = vectors[:, : body.dimensions]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.where(norms > 0, norms, 1)
    values: list[Any]
    if body.encoding_format == "base64":  # of little-endian float32, as OpenAI's clients decode
        values = [base64.b64encode(v.astype("<f4").tobytes()).decode() for v in vectors]
    else:
        values = vectors.tolist()
    return to_json(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(values)
            ],
            "model": model_id,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
    )
