"""The table exception -> status, type, code, in OpenAI's error shape. Not why it was raised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from openai_local.api.errors import RequestError, named
from openai_local.engine import (
    DeadlineExceeded,
    EngineError,
    EngineStopped,
    ModelLoadFailed,
    QueueFull,
)
from openai_local.models.errors import (
    FailedLately,
    ModelsBusy,
    ModelTooLarge,
    UnknownModel,
)
from openai_local.models.files import NoModel

# What came out once would only do so again; OpenAI's clients go by this header.
FINAL = {"x-should-retry": "false"}
# Whoever comes back waits in the queue again, for as long as that is allowed.
BUSY_RETRY_AFTER = "1"
HEADERS = {
    401: {"www-authenticate": "Bearer"},
    429: {"retry-after": "1"},
    504: FINAL,
}


class HttpRefusal(RequestError):
    """A request that is refused with a ``status`` of its own."""

    def __init__(self, message: str, status: int, code: str) -> None:
        super().__init__(message, code=code)
        self.status = status


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """OpenAI's ``error`` object and the status that goes with it."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        return JSONResponse(
            self.body(), self.status, {**HEADERS.get(self.status, {}), **self.headers}
        )


def shape(error: Exception, prompt_param: str = "messages") -> ErrorShape:
    """How ``error`` looks to a client; ``prompt_param`` is where the endpoint's prompt stands."""
    text = str(error)
    refusal = named(error, prompt_param)
    if refusal is not None:
        status = error.status if isinstance(error, HttpRefusal) else 400
        return ErrorShape(status, str(refusal), param=refusal.param, code=refusal.code)
    match error:
        case UnknownModel():
            return ErrorShape(404, text, param="model", code="model_not_found")
        case ModelTooLarge():
            return ErrorShape(503, text, type="server_error", code="model_too_large", headers=FINAL)
        case ModelsBusy():
            headers = {"retry-after": BUSY_RETRY_AFTER}
            return ErrorShape(503, text, type="server_error", code="models_busy", headers=headers)
        case FailedLately():
            headers = {"retry-after": str(math.ceil(error.retry_in_s))}
            code = "model_load_failed"
            return ErrorShape(503, text, type="server_error", code=code, headers=headers)
        case ModelLoadFailed() | NoModel():
            return ErrorShape(503, text, type="server_error", code="model_load_failed")
        case QueueFull():
            return ErrorShape(429, text, type="rate_limit_error", code="rate_limit_exceeded")
        case DeadlineExceeded():
            return ErrorShape(504, text, type="server_error", code="deadline_exceeded")
        case EngineStopped():
            return ErrorShape(503, text, type="server_error", code="engine_stopped")
        case EngineError():
            return ErrorShape(500, text, type="server_error", code="engine_error")
        case HTTPException():
            # FastAPI's has a detail of any type.
            text = error.detail if isinstance(error.detail, str) else to_json(error.detail).decode()
            headers = {name.lower(): value for name, value in (error.headers or {}).items()}
            return ErrorShape(error.status_code, text, headers=headers)
        case _:
            return ErrorShape(500, "internal error", type="server_error")
