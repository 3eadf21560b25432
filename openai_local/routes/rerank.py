"""POST /rerank, in Jina's shape."""

from __future__ import annotations

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from openai_local.api.rerank import REFUSED, rank
from openai_local.api.types.rerank import RerankRequest
from openai_local.routes.host import unless_left
from openai_local.routes.request import read
from openai_local.routes.services import Services


async def create(services: Services, request: Request) -> ASGIApp:
    body = await read(request, RerankRequest, REFUSED, services.settings.max_body_bytes)
    answer = await unless_left(request.receive, lambda: rank(services.models, body))
    return Response(to_json(answer), media_type="application/json")
