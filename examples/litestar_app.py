"""A Litestar application with a local model at /v1, and one of its guards in front.

pip install litestar; then: uvicorn examples.litestar_app:app
"""

from litestar import Litestar, asgi, get
from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException
from litestar.handlers import BaseRouteHandler

import openai_local

local = openai_local.app()


def guard(connection: ASGIConnection, handler: BaseRouteHandler) -> None:
    if connection.headers.get("x-team") != "ours":
        raise NotAuthorizedException("Who are you?")


@get("/")
async def index() -> dict[str, str]:
    return {"message": "This is the host; the model answers at /v1."}


v1 = asgi("/v1", is_mount=True, copy_scope=True, guards=[guard])(local)
app = Litestar([index, v1], lifespan=[local.lifespan])
