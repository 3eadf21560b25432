"""Reads the body of a request into its type, or raises the RequestError that says what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import Any

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from openai_local.api.bodies import Model, Refused, parse
from openai_local.api.errors import RequestError
from openai_local.routes.errors import HttpRefusal


async def read(
    request: Request,
    body_type: type[Model],
    refused: Refused,
    max_bytes: int,
    fixed: Mapping[str, Any] = MappingProxyType({}),
) -> Model:
    """The body, ``fixed`` in place of what it says. Raises RequestError."""
    try:
        value = from_json(await _bytes(request, max_bytes), allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"The body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestError("The body must be a JSON object.")
    return parse({**value, **fixed}, body_type, refused)


async def _bytes(request: Request, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        async with aclosing(request.stream()) as stream:
            async for part in stream:
                size += len(part)
                if size > max_bytes:
                    text = f"The body is larger than {max_bytes} bytes."
                    raise HttpRefusal(text, 413, "body_too_large")
                parts.append(part)
    except ClientDisconnect:
        raise RequestError("The client closed the connection.") from None
    return b"".join(parts)
