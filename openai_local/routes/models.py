"""GET /models and /models/{id}: OpenAI's objects, with the other names of a model and its state."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from openai_local.models.catalog import ModelSpec
from openai_local.routes.services import Services


async def index(services: Services, request: Request) -> ASGIApp:
    data = [_model(spec, services) for spec in await services.registry.models()]
    return JSONResponse({"object": "list", "data": data})


async def show(services: Services, request: Request) -> ASGIApp:
    spec = await services.registry.find(request.path_params["id"])
    return JSONResponse(_model(spec, services))


def _model(spec: ModelSpec, services: Services) -> dict[str, Any]:
    state = services.registry.state(spec.id)
    status: dict[str, Any] = {"value": state.value, "progress": state.progress}
    if state.error is not None:
        status["error"] = state.error
    return {
        "id": spec.id,
        "object": "model",
        "created": spec.created,
        "owned_by": "openai_local",
        "aliases": list(spec.aliases),
        "status": status,
    }
