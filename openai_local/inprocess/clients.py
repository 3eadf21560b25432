"""OpenAI's own clients, bound to an application in this process: no socket, and true streams.

The ``openai`` package is the user's, imported here when a client is asked for.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from openai_local.application import Application
from openai_local.config import load_settings
from openai_local.inprocess.portal import Portal
from openai_local.inprocess.transports import Close, async_transport, sync_transport

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

HOST = "http://openai-local"
NO_KEY = "none"  # the clients want one

Source = Application | ASGIApp | str | Path | None


def client(app: Source = None, *, prefix: str = "/v1", **options: Any) -> AsyncOpenAI:
    """See :func:`openai_local.client`."""
    openai = _openai()
    app, close = _opened(app)
    base = openai.DefaultAsyncHttpxClient
    transport = async_transport(_http_of(base, "AsyncClient"), app, close)
    http_client = base(transport=transport, trust_env=False)
    made: AsyncOpenAI = openai.AsyncOpenAI(
        http_client=http_client, **_options(app, prefix, options)
    )
    return made


def sync_client(app: Source = None, *, prefix: str = "/v1", **options: Any) -> OpenAI:
    """See :func:`openai_local.sync_client`."""
    openai = _openai()
    app, close = _opened(app)
    base = openai.DefaultHttpxClient
    portal = Portal("openai_local sync client")
    transport = sync_transport(_http_of(base, "Client"), app, portal, close)
    http_client = base(transport=transport, trust_env=False)
    made: OpenAI = openai.OpenAI(http_client=http_client, **_options(app, prefix, options))
    return made


def _openai() -> Any:
    try:
        import openai
    except ImportError:
        message = "openai_local.client needs OpenAI's package: pip install openai"
        raise ImportError(message) from None
    return openai


def _http_of(base: type[Any], name: str) -> ModuleType:
    """httpx, or httpx2: the module whose ``name`` is a base of the client's own."""
    module = next(cls.__module__ for cls in base.__mro__ if cls.__name__ == name)
    return sys.modules[module.partition(".")[0]]


def own_application(model: str | Path | None) -> Application:
    """As openai_local.app makes it."""
    return Application(load_settings(**({} if model is None else {"model": model})))


def _opened(app: Source) -> tuple[ASGIApp, Close]:
    """The application, and what closes it if it is the client's own."""
    if app is None or isinstance(app, str | Path):
        own = own_application(app)
        return own, own.aclose

    async def leave() -> None:
        """It is somebody else's."""

    return app, leave


def _options(app: ASGIApp, prefix: str, options: dict[str, Any]) -> dict[str, Any]:
    key = app.settings.api_key if isinstance(app, Application) else None
    return {"base_url": HOST + prefix, "api_key": key or NO_KEY, **options}
