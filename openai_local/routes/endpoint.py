"""A path as an ASGI application: its method, the key, and errors in OpenAI's shape.

Pure ASGI, so that a host's exception handlers and middleware never see what is ours to answer.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openai_local.routes.auth import Authorize, check_host, check_key
from openai_local.routes.errors import ErrorShape, shape
from openai_local.routes.host import ClientLeft
from openai_local.routes.services import Services

logger = logging.getLogger(__name__)

Handler = Callable[[Services, Request], Awaitable[ASGIApp]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``handle`` answers ``method``; errors in its prompt are blamed on ``prompt_param``.

    Where a key is needed, the host's ``authorize`` is asked, too.
    """

    services: Services
    method: str
    handle: Handler
    prompt_param: str = "messages"
    needs_key: bool = True
    authorize: Authorize | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self.services.for_request()
        send = _bodiless(scope, send)
        with services.models:
            response = await self._response(services, Request(scope, receive))
            try:
                await response(scope, receive, send)
            except OSError:
                pass  # How a server says that the client has gone.

    async def _response(self, services: Services, request: Request) -> ASGIApp:
        method = request.method
        if method != self.method and (method, self.method) != ("HEAD", "GET"):
            message = f"Method {method} is not allowed here, only {self.method}."
            refusal = ErrorShape(405, message).response()
            refusal.headers["allow"] = self.method
            return refusal
        try:
            if self.needs_key:
                check_key(request, services.settings.api_key)
                await check_host(request, self.authorize)
            await services.registry.look()
            return await self.handle(services, request)
        except ClientLeft:
            return Response(status_code=499)
        except Exception as error:
            what = shape(error, self.prompt_param)
            if what.status == 500:
                logger.exception("%s failed", request.url.path)
            return what.response()


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """For the paths that are not ours."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000, "reason": ""})
        return
    message = f"Unknown request URL: {scope['method']} {scope['path']}."
    refusal = ErrorShape(404, message, code="unknown_url").response()
    await refusal(scope, receive, _bodiless(scope, send))


def _bodiless(scope: Scope, send: Send) -> Send:
    """For HEAD without the body, which servers drop, some with a warning each time."""
    if scope["method"] != "HEAD":
        return send

    async def send_head(message: Message) -> None:
        await send({**message, "body": b""} if "body" in message else message)

    return send_head
