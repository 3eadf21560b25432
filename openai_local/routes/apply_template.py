"""POST /apply-template: the prompt that a chat would have, as llama-server has it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from openai_local.chat_template import ChatTemplate
from openai_local.registry import LoadedModel
from openai_local.routes import chat_completions
from openai_local.routes.errors import RequestError
from openai_local.routes.generation import INLINE_CHARS, off_loop
from openai_local.routes.messages import for_template
from openai_local.routes.request import Refused, read
from openai_local.routes.services import Services
from openai_local.routes.types.apply_template import TemplateRequest

REFUSED: Refused = {
    name: refusal
    for name, refusal in chat_completions.REFUSED.items()
    if name not in TemplateRequest.model_fields
}


async def create(services: Services, request: Request) -> ASGIApp:
    body = await read(request, TemplateRequest, REFUSED, services.settings.max_body_bytes)
    if body.continue_final_message and body.add_generation_prompt:
        raise RequestError(
            "The 'add_generation_prompt' parameter cannot be set together with"
            " 'continue_final_message'.",
            param="add_generation_prompt",
            code="invalid_parameter_combination",
        )
    model = await services.model(request, body.model or services.registry.default_id)
    template = _template(model)
    messages = for_template(body.messages, template)
    # The tools' schemas are walked by the template; they are seldom short.
    size = sum(len(message["content"]) + 64 for message in messages)
    size += INLINE_CHARS * (bool(body.tools) + bool(body.chat_template_kwargs))

    def render() -> str:
        return template.render(
            messages,
            tools=[tool.model_dump(exclude_none=True) for tool in body.tools or ()] or None,
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final_message=bool(body.continue_final_message),
            kwargs=body.chat_template_kwargs,
        ).text

    return JSONResponse({"prompt": await off_loop(size, render)})


def _template(model: LoadedModel) -> ChatTemplate:
    if model.template is None:
        raise RequestError(
            f"The model {model.id!r} cannot chat: {model.no_chat}.",
            param="model",
            code="unsupported_model",
        )
    return model.template
