"""POST /tokenize and /detokenize, as llama-server has them."""

from __future__ import annotations

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from openai_local.api import tokens
from openai_local.api.generation import off_loop
from openai_local.api.tokens import REFUSED
from openai_local.api.types.tokens import DetokenizeRequest, TokenizeRequest
from openai_local.routes.host import unless_left
from openai_local.routes.request import read
from openai_local.routes.services import Services


async def tokenize(services: Services, request: Request) -> ASGIApp:
    body = await read(request, TokenizeRequest, REFUSED, services.settings.max_body_bytes)
    found = await unless_left(request.receive, lambda: tokens.tokenize(services.models, body))
    content = await off_loop(len(found), lambda: to_json({"tokens": found}))
    return Response(content, media_type="application/json")


async def detokenize(services: Services, request: Request) -> ASGIApp:
    body = await read(request, DetokenizeRequest, REFUSED, services.settings.max_body_bytes)
    text = await unless_left(request.receive, lambda: tokens.detokenize(services.models, body))
    return Response(to_json({"content": text}), media_type="application/json")
