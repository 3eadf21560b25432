"""POST /embeddings, and its legacy form with the model's name in the path."""

from __future__ import annotations

import base64
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from openai_local.api.embeddings import REFUSED, Vectors, embed
from openai_local.api.generation import off_loop
from openai_local.api.types.embeddings import EmbeddingRequest
from openai_local.routes.host import unless_left
from openai_local.routes.request import read
from openai_local.routes.services import Services


async def create(services: Services, request: Request) -> ASGIApp:
    return await _create(services, request, {})


async def create_for_engine(services: Services, request: Request) -> ASGIApp:
    return await _create(services, request, {"model": services.named_in_path(request, "embedding")})


async def _create(services: Services, request: Request, fixed: dict[str, Any]) -> ASGIApp:
    body = await read(request, EmbeddingRequest, REFUSED, services.settings.max_body_bytes, fixed)
    vectors = await unless_left(request.receive, lambda: embed(services.models, body))
    content = await off_loop(vectors.rows.size, lambda: _content(body, vectors))
    return Response(content, media_type="application/json")


def _content(body: EmbeddingRequest, vectors: Vectors) -> bytes:
    values: list[Any]
    if body.encoding_format == "base64":  # of little-endian float32, as OpenAI's clients decode
        values = [base64.b64encode(v.astype("<f4").tobytes()).decode() for v in vectors.rows]
    else:
        values = vectors.rows.tolist()
    return to_json(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(values)
            ],
            "model": vectors.model,
            "usage": {"prompt_tokens": vectors.n_tokens, "total_tokens": vectors.n_tokens},
        }
    )
