"""POST /chat/completions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp

from openai_local.api.chat_completions import REFUSED, plan
from openai_local.api.types.chat_completions import ChatCompletionRequest
from openai_local.routes.request import read
from openai_local.routes.responses import respond
from openai_local.routes.services import Services


async def create(services: Services, request: Request) -> ASGIApp:
    body = await read(request, ChatCompletionRequest, REFUSED, services.settings.max_body_bytes)
    return await respond(request, body, lambda: plan(services.models, body))
