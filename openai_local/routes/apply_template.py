"""POST /apply-template: the prompt that a chat would have, as llama-server has it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from openai_local.api.chat_completions import REFUSED, prompt_of
from openai_local.api.types.apply_template import TemplateRequest
from openai_local.routes.host import unless_left
from openai_local.routes.request import read
from openai_local.routes.services import Services


async def create(services: Services, request: Request) -> ASGIApp:
    body = await read(request, TemplateRequest, REFUSED, services.settings.max_body_bytes)
    prompt = await unless_left(request.receive, lambda: prompt_of(services.models, body))
    return JSONResponse({"prompt": prompt})
