"""The mountable ASGI application with its lifespan. It does not know how a token is made."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from openai_local import lifespan, routes
from openai_local.config import Settings
from openai_local.engine import Engine, EngineConfig, EngineStopped
from openai_local.models.footprint import Measure, within
from openai_local.models.registry import Registry
from openai_local.routes.auth import Authorize, check_authorize
from openai_local.routes.endpoint import not_found
from openai_local.routes.host import stopping, unless_stopping
from openai_local.routes.mount import mounted
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
        *,
        authorize: Authorize | None = None,
    ) -> None:
        if authorize is not None:
            check_authorize(authorize)
        self.settings = settings
        self._open_engine = open_engine
        self._measure = measure
        self._authorize = authorize
        self._open()

    def _open(self) -> None:
        self.registry = Registry(self.settings, self._open_engine, self._measure)
        self._routes = self._build_routes()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._n_lives = 0  # of hosts that share it, one in another or in several threads

    def _build_routes(self) -> ASGIApp:
        services = Services(self.registry, self.settings)
        rows = routes.build(services, self._authorize)
        router = Router(rows, redirect_slashes=False, default=not_found)
        if not self.settings.cors_origins:
            return router
        return CORSMiddleware(
            router,
            allow_origins=self.settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("*",),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.check_process()
        if scope["type"] == "lifespan":
            await lifespan.run(self.lifespan(), scope, receive, send)
        else:
            # A router leaves its marks in the scope; the host's stays as it was.
            await self._routes(mounted(scope), receive, send)

    @asynccontextmanager
    async def lifespan(self, app: Any = None, *, warm: bool = True) -> AsyncIterator[None]:
        """Load the default model, or those that are pinned, then serve; at the end stop all engines
        and free all models.

        ``app`` is the host, of which nothing is needed. Raises what the load raises, which keeps
        the host from starting; one that is served all the same loads at its first request. May be
        entered again, after its end or before: the last to end frees the models. Unless ``warm``,
        the model is left to the first request.
        """
        self.check_process()
        with self._lock:
            self._n_lives += 1
        self.registry.open()
        try:
            if warm:
                await self._load()
        except BaseException:
            try:
                await self._end_life()
            finally:
                # There are servers that serve all the same, such as gunicorn's own after 30 s.
                self.registry.open()
            raise
        try:
            yield
        finally:
            await self._end_life()

    async def _end_life(self) -> None:
        self.check_process()
        with self._lock:
            self._n_lives -= 1
            is_last = self._n_lives <= 0
        if is_last:
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

    async def _load(self) -> None:
        try:
            await unless_stopping(self.registry.warm)
        except EngineStopped:
            if not stopping():
                raise

    def openapi(self, prefix: str = "") -> dict[str, Any]:
        """The OpenAPI document of the routes as they are below ``prefix``."""
        return document(needs_key=self.settings.api_key is not None, server=prefix or "/")

    async def aclose(self) -> None:
        """Stop all engines and free all models; whoever waits gets an error. Safe to repeat."""
        self.check_process()
        await self.registry.aclose()

    def check_process(self) -> None:
        """Before anybody uses the registry.

        After a fork no thread of the parent's is here, and its locks may be held for ever.
        """
        if self._pid != os.getpid():
            logger.info("forked from %d: models are loaded again in this process", self._pid)
            self._open()
