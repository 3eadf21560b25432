"""GET /health: whether requests would be served now."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from openai_local.routes.errors import ErrorShape
from openai_local.routes.services import Services


async def show(services: Services, request: Request) -> ASGIApp:
    """503 while a requested load is going, after one failed, or when an engine died."""
    trouble = services.registry.trouble()
    if trouble is not None:
        return ErrorShape(503, trouble.message, type="server_error", code=trouble.code).response()
    return JSONResponse({"status": "ok"})
