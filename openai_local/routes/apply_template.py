"""POST /apply-template: the prompt that a chat would have, as llama-server has it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from openai_local.routes.chat_completions import REFUSED
from openai_local.routes.chat_plan import check_together, plan_chat
from openai_local.routes.constraints import asked_for
from openai_local.routes.parameters import check_chat
from openai_local.routes.request import read
from openai_local.routes.services import Services
from openai_local.routes.tools import read_tools
from openai_local.routes.types.apply_template import TemplateRequest


async def create(services: Services, request: Request) -> ASGIApp:
    body = await read(request, TemplateRequest, REFUSED, services.settings.max_body_bytes)
    check_chat(body)
    asked, tools = asked_for(body), read_tools(body)
    check_together(asked, tools)
    model = await services.model(request, body.model or services.registry.default_id)
    plan = await plan_chat(body, model, asked, tools)
    return JSONResponse({"prompt": plan.prompt})
