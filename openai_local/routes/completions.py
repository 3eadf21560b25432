"""POST /completions, and its legacy form with the model's name in the path."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from openai_local.api.completions import REFUSED, plan
from openai_local.api.types.completions import CompletionRequest
from openai_local.routes.request import read
from openai_local.routes.responses import respond
from openai_local.routes.services import Services


async def create(services: Services, request: Request) -> ASGIApp:
    return await _create(services, request, {})


async def create_for_engine(services: Services, request: Request) -> ASGIApp:
    return await _create(services, request, {"model": services.named_in_path(request, "chat")})


async def _create(services: Services, request: Request, fixed: dict[str, Any]) -> ASGIApp:
    body = await read(request, CompletionRequest, REFUSED, services.settings.max_body_bytes, fixed)
    return await respond(request, body, lambda: plan(services.models, body))
