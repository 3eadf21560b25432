"""The mountable ASGI application with its lifespan. It does not know how a token is made."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from openai_local import routes
from openai_local.config import Settings
from openai_local.engine import Engine, EngineConfig, EngineStopped
from openai_local.models.footprint import Measure, within
from openai_local.models.registry import Registry
from openai_local.routes.endpoint import not_found
from openai_local.routes.host import stopping, unless_stopping
from openai_local.routes.openapi import document
from openai_local.routes.services import Services

if TYPE_CHECKING:
    from openai_local.inprocess.engine import Engine as InProcess
    from openai_local.inprocess.sync_engine import SyncEngine as SyncInProcess

logger = logging.getLogger(__name__)


class Application:
    """The OpenAI routes as an ASGI 3 application, at any prefix of any host or by itself.

    The model loads on first use, or when :meth:`lifespan` starts; a host that forwards no
    lifespan to what it mounts runs it itself::

        local = openai_local.app("model.gguf")
        app = FastAPI(lifespan=local.lifespan)
        app.mount("/v1", local)
    """

    def __init__(
        self,
        settings: Settings,
        open_engine: Callable[[EngineConfig], Engine] = Engine,
        measure: Measure = within,
    ) -> None:
        self.settings = settings
        self.registry = Registry(settings, open_engine, measure)
        self._router = Router(
            routes.build(Services(self.registry, settings)),
            redirect_slashes=False,
            default=not_found,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._standalone(receive, send)
        else:
            # A router leaves its marks in the scope; the host's stays as it was.
            await self._router(dict(scope), receive, send)

    @asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """Load the default model, or those that are pinned, then serve; at the end stop all engines
        and free all models.

        ``app`` is the host, of which nothing is needed. Raises what the load raises, which keeps
        the host from starting. May be entered again after its end.
        """
        self.registry.open()
        try:
            try:
                await unless_stopping(self.registry.warm)
            except EngineStopped:
                if not stopping():
                    raise
            yield
        finally:
            await self.aclose()

    @cached_property
    def engine(self) -> InProcess:
        """The application's models for Python code, on any event loop."""
        from openai_local.inprocess.engine import Engine

        return Engine.of(self)

    @cached_property
    def sync_engine(self) -> SyncInProcess:
        """The same for code without an event loop, by one thread for all that use it."""
        from openai_local.inprocess.sync_engine import SyncEngine

        return SyncEngine.of(self)

    def openapi(self, prefix: str = "") -> dict[str, Any]:
        """The OpenAPI document of the routes as they are below ``prefix``."""
        return document(needs_key=self.settings.api_key is not None, server=prefix or "/")

    async def aclose(self) -> None:
        """Stop all engines and free all models; whoever waits gets an error. Safe to repeat."""
        await self.registry.aclose()

    async def _standalone(self, receive: Receive, send: Send) -> None:
        await receive()
        lifespan = self.lifespan()
        try:
            await lifespan.__aenter__()
        except Exception as error:
            logger.debug("startup failed", exc_info=True)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await lifespan.__aexit__(None, None, None)
        await send({"type": "lifespan.shutdown.complete"})
