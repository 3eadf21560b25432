"""The application in front of another, at a prefix, for hosts that cannot mount. Pure ASGI."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

import openai_local
from openai_local import lifespan
from openai_local.application import Application
from openai_local.config import ConfigError
from openai_local.routes import mount


class Middleware:
    """Requests below ``prefix`` are ours; all else, websockets included, is the host's.

        app = openai_local.Middleware(app, prefix="/v1")
        app.add_middleware(openai_local.Middleware, prefix="/v1")  # Starlette, FastAPI

    The server's lifespan goes through to the host. With ``warm`` the model is loaded before the
    host starts, else at the first request; either way it is freed after the host has stopped.

    The application is ``local``, or made of ``options`` as by :func:`openai_local.app`.
    Raises :class:`ConfigError`.
    """

    def __init__(
        self,
        app: ASGIApp,
        prefix: str = "/v1",
        *,
        local: Application | None = None,
        warm: bool = True,
        **options: Any,
    ) -> None:
        if local is not None and options:
            raise ConfigError(f"{', '.join(options)}: of 'local', which has its settings already")
        self.app = app
        self.prefix = "/" + prefix.strip("/")
        if self.prefix == "/":
            raise ConfigError(f"prefix: {prefix!r} would leave the host nothing")
        self.local = openai_local.app(**options) if local is None else local
        self._warm = warm

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            own = self.local.lifespan(warm=self._warm)
            await lifespan.run(own, scope, receive, send, self.app)
            return
        ours = mount.below(scope, self.prefix) if scope["type"] == "http" else None
        if ours is None:
            await self.app(scope, receive, send)
        else:
            await self.local(ours, receive, send)
