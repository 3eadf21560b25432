"""The table exception -> status, type, code, in OpenAI's error shape. Not why it was raised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from openai_local.chat_template import TemplateError
from openai_local.engine import (
    DeadlineExceeded,
    EmptyPrompt,
    EngineError,
    EngineStopped,
    InvalidConstraint,
    InvalidSampling,
    InvalidToken,
    ModelLoadFailed,
    PromptTooLong,
    QueueFull,
    Unsupported,
)
from openai_local.models.files import NoModel
from openai_local.models.registry import UnknownModel

HEADERS = {
    401: {"www-authenticate": "Bearer"},
    429: {"retry-after": "1"},
    # What timed out once would only do so again; OpenAI's clients go by this header.
    504: {"x-should-retry": "false"},
}


class RequestError(Exception):
    """The request is refused with ``status``; ``param`` names what is wrong in it."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
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
    match error:
        case RequestError():
            return ErrorShape(error.status, text, param=error.param, code=error.code)
        case UnknownModel():
            return ErrorShape(404, text, param="model", code="model_not_found")
        case PromptTooLong():
            text = (
                f"This model's maximum context length is {error.n_max} tokens of input;"
                f" the {prompt_param} resulted in {error.n_prompt} tokens."
            )
            return ErrorShape(400, text, param=prompt_param, code="context_length_exceeded")
        case InvalidToken() if error.where != "prompt":
            return ErrorShape(400, text, param=error.where, code="invalid_value")
        case InvalidSampling():
            return ErrorShape(400, text, param=error.name, code="invalid_value")
        case InvalidConstraint():
            return ErrorShape(400, text, code="invalid_value")
        case EmptyPrompt() | InvalidToken() | TemplateError():
            return ErrorShape(400, text, param=prompt_param, code="invalid_value")
        case Unsupported():
            return ErrorShape(400, text, param="model", code="unsupported_model")
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
