"""A Starlette application with a local model at /ai/v1, loaded at the first request.

uvicorn examples.starlette_app:app
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import openai_local


async def index(request: Request) -> PlainTextResponse:
    return PlainTextResponse("This is the host; the model answers at /ai/v1.")


app = Starlette(routes=[Route("/", index), Mount("/ai/v1", openai_local.app())])
