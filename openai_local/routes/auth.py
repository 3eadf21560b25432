"""The optional bearer key. What a host puts in front of us is its own business."""

from __future__ import annotations

import hmac

from starlette.requests import Request

from openai_local.routes.errors import HttpRefusal


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
