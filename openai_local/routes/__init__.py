"""HTTP and OpenAI's shapes. Every path on one screen; never llama_cpp.

Each is served with and without a ``/v1`` in front: mounted at /v1, and standalone.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.routing import Route

from openai_local.routes import (
    apply_template,
    chat_completions,
    completions,
    docs,
    embeddings,
    health,
    infill,
    models,
    rerank,
    tokens,
)
from openai_local.routes.auth import Authorize
from openai_local.routes.endpoint import Endpoint, Handler
from openai_local.routes.services import Services


@dataclass(frozen=True, slots=True)
class Row:
    method: str
    path: str
    handle: Handler
    prompt_param: str = "messages"
    needs_key: bool = True


ROUTES = (
    Row("GET", "/health", health.show, needs_key=False),
    Row("GET", "/models", models.index),
    Row("GET", "/models/{id:path}", models.show),
    Row("POST", "/chat/completions", chat_completions.create),
    Row("POST", "/completions", completions.create, "prompt"),
    Row("POST", "/embeddings", embeddings.create, "input"),
    # llama-server's.
    Row("POST", "/tokenize", tokens.tokenize, "content"),
    Row("POST", "/detokenize", tokens.detokenize, "tokens"),
    Row("POST", "/apply-template", apply_template.create),
    Row("POST", "/infill", infill.create, "input_prefix"),
    # Jina's.
    Row("POST", "/rerank", rerank.create, "documents"),
    Row("POST", "/reranking", rerank.create, "documents"),
    Row("GET", "/openapi.json", docs.document, needs_key=False),
    Row("GET", "/docs", docs.page, needs_key=False),
    # OpenAI's routes of before 2022 named the model in the path; any name is served.
    Row("POST", "/engines/{engine:path}/completions", completions.create_for_engine, "prompt"),
    Row("POST", "/engines/{engine:path}/embeddings", embeddings.create_for_engine, "input"),
)


def build(services: Services, authorize: Authorize | None = None) -> list[Route]:
    """The routes of one application."""
    routes: list[Route] = []
    for row in ROUTES:
        endpoint = Endpoint(
            services, row.method, row.handle, row.prompt_param, row.needs_key, authorize
        )
        routes += [Route(prefix + row.path, endpoint) for prefix in ("", "/v1")]
    return routes
