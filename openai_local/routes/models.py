"""GET /models and /models/{id}."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from openai_local.routes.services import Services


async def index(services: Services, request: Request) -> ASGIApp:
    data = [_model(id, created) for id, created in services.registry.list()]
    return JSONResponse({"object": "list", "data": data})


async def show(services: Services, request: Request) -> ASGIApp:
    return JSONResponse(_model(*services.registry.find(request.path_params["id"])))


def _model(id: str, created: int) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": created, "owned_by": "openai_local"}
