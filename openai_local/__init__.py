"""A local LLM behind the OpenAI API, mounted in a Python web application by one line.

    app.mount("/v1", openai_local.app())

The life of a request:

1. ``routes/`` reads the body into the endpoint's type, or answers 400 naming what is wrong;
2. ``models/`` finds the model that ``model`` names and has it loaded, once, on first use;
3. ``chat/template.py`` renders the messages with the model's own template, in a sandbox;
4. ``api/generation.py`` tokenises and submits one generation a choice to the engine;
5. ``engine/worker.py`` hands it to the model's one thread through an inbox;
6. ``engine/scheduler.py`` picks each step's tokens: every running sequence's, then prompt chunks;
7. ``engine/llama/`` decodes them with llama.cpp; ``engine/text.py`` makes text of the tokens;
8. ``engine/bridge.py`` wakes the event loop once a step with all that the step made;
9. ``chat/parser.py`` takes thoughts and calls out of a chat's text, the endpoint makes chunks of
   all that, ``routes/sse.py`` sends them, or they are folded to one.

Python code goes by ``inprocess/`` in place of ``routes/``, to the same ``api/``.

Importing this package imports neither llama_cpp nor a web framework: each is imported on use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from openai import AsyncOpenAI, OpenAI
    from starlette.types import ASGIApp

    from openai_local.api.errors import RequestError
    from openai_local.application import Application
    from openai_local.config import ConfigError, Settings
    from openai_local.engine import EngineConfig, EngineError
    from openai_local.inprocess.engine import Engine
    from openai_local.inprocess.sync_engine import SyncEngine
    from openai_local.middleware import Middleware
    from openai_local.models.errors import UnknownModel
    from openai_local.routes.auth import Authorize

__version__ = "0.1.0"

__all__ = [
    "Application",
    "ConfigError",
    "Engine",
    "EngineConfig",
    "EngineError",
    "Middleware",
    "RequestError",
    "Settings",
    "SyncEngine",
    "UnknownModel",
    "app",
    "client",
    "merge_openapi",
    "sync_client",
]

_ROOMS = {
    "Application": "openai_local.application",
    "ConfigError": "openai_local.config",
    "Engine": "openai_local.inprocess.engine",
    "EngineConfig": "openai_local.engine",
    "EngineError": "openai_local.engine",
    "Middleware": "openai_local.middleware",
    "RequestError": "openai_local.api.errors",
    "Settings": "openai_local.config",
    "SyncEngine": "openai_local.inprocess.sync_engine",
    "UnknownModel": "openai_local.models.errors",
}


def app(
    model: str | Path | None = None, *, authorize: Authorize | None = None, **options: Any
) -> Application:
    """An ASGI application with the OpenAI routes, to mount at any prefix or to serve by itself.

    ``model`` is the path of a GGUF file, ``hf:owner/repo[:quant]`` or an https URL, which are
    downloaded when the model loads; without one, the setting ``OPENAI_LOCAL_MODEL`` or the
    packaged SmolLM2 is used. ``options`` are the fields of :class:`Settings`; each may also come
    from the environment as ``OPENAI_LOCAL_<NAME>``, and an argument wins.

    ``authorize`` is the host's: a function, async or not, that is called with each Starlette
    ``Request`` that would need a key. It lets the request in by returning; it returns False, or
    raises Starlette's (or FastAPI's) ``HTTPException``, to answer with that status.

    Nothing is loaded here: the model loads at the first request that needs it, or when the host
    runs the application's ``lifespan``.

    Raises :class:`ConfigError` for an unknown or ill-typed setting, naming it.
    """
    from openai_local.application import Application
    from openai_local.config import load_settings

    if model is not None:
        options["model"] = model
    return Application(load_settings(**options), authorize=authorize)


def client(
    app: Application | ASGIApp | str | Path | None = None, *, prefix: str = "/v1", **options: Any
) -> AsyncOpenAI:
    """OpenAI's own ``AsyncOpenAI``, whose requests go to ``app`` in this process, without a socket.

        client = openai_local.client(local)
        stream = await client.chat.completions.create(..., stream=True)

    ``app`` is an application of ours, or of any host that has our routes at ``prefix``; its models
    stay loaded when the client is closed. A model's file, or nothing, has an application of its
    own made as :func:`app` does, which ``await client.close()`` frees. ``options`` are
    AsyncOpenAI's own. Needs the ``openai`` package.
    """
    from openai_local.inprocess import clients

    return clients.client(app, prefix=prefix, **options)


def sync_client(
    app: Application | ASGIApp | str | Path | None = None, *, prefix: str = "/v1", **options: Any
) -> OpenAI:
    """As :func:`client`, but OpenAI's ``OpenAI``, for code that has no event loop.

    The application runs in a loop on a thread of the client's own, which ``client.close()`` ends:
    a host that is bound to another loop wants :func:`client` there.
    """
    from openai_local.inprocess import clients

    return clients.sync_client(app, prefix=prefix, **options)


def merge_openapi(
    host: Mapping[str, Any], local: Application, prefix: str = "/v1"
) -> dict[str, Any]:
    """``host``, an application's OpenAPI document, with that of ``local``, mounted at ``prefix``.

    A new document: neither is changed, and ours has names of its own in it. In FastAPI::

        own = app.openapi
        app.openapi = lambda: openai_local.merge_openapi(own(), local)

    Raises ValueError where the host has a path of ours already.
    """
    from openai_local.routes.openapi import merged

    return merged(host, local.openapi(prefix), prefix)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(_ROOMS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
