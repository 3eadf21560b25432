"""The optional bearer key, and the host's own word on who may come in."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from inspect import (
    isasyncgen,
    isasyncgenfunction,
    isawaitable,
    isgenerator,
    isgeneratorfunction,
)
from typing import Any

from starlette.requests import Request

from openai_local.config import ConfigError
from openai_local.routes.errors import HttpRefusal

# Lets a request in by returning, unless it returns False; else raises Starlette's HTTPException.
Authorize = Callable[[Request], Awaitable[Any] | Any]


def check_key(request: Request, api_key: str | None) -> None:
    """Raises HttpRefusal 401 unless the request carries ``api_key``; None lets all pass."""
    if api_key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given:
        raise HttpRefusal(
            "You didn't provide an API key: send it as 'Authorization: Bearer KEY'.",
            401,
            "invalid_api_key",
        )
    if not hmac.compare_digest(given.strip().encode("latin-1"), api_key.encode()):
        raise HttpRefusal("Incorrect API key provided.", 401, "invalid_api_key")


def check_authorize(authorize: object) -> None:
    """Raises ConfigError for what is no function, or one that would let in by being called."""
    if not callable(authorize):
        raise ConfigError(f"authorize: a function is wanted, not {authorize!r}")
    if any(is_one(authorize) for is_one in (isgeneratorfunction, isasyncgenfunction)):
        raise ConfigError("authorize: a function that returns is wanted, not one that yields")


async def check_host(request: Request, authorize: Authorize | None) -> None:
    """Raises HttpRefusal 401 where the host says False, and what ``authorize`` raises."""
    if authorize is None:
        return
    verdict = authorize(request)
    if isawaitable(verdict):
        verdict = await verdict
    if isgenerator(verdict) or isasyncgen(verdict):
        raise TypeError("authorize returned a generator, in which nothing has run")
    if verdict is False:
        raise HttpRefusal("Unauthorized.", 401, "unauthorized")
