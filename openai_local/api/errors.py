"""A refused request, by the name of what is wrong in it."""

from __future__ import annotations

from openai_local.chat.template import TemplateError
from openai_local.engine import (
    EmptyPrompt,
    InvalidConstraint,
    InvalidSampling,
    InvalidToken,
    PromptTooLong,
    Unsupported,
)
from openai_local.models.errors import WrongUse


class RequestError(Exception):
    """The request can never be served as it is; ``param`` names what is wrong in it."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


def named(error: Exception, prompt_param: str) -> RequestError | None:
    """What ``error`` says of a request whose prompt stands in ``prompt_param``; None: nothing."""
    text = str(error)
    match error:
        case RequestError():
            return error
        case PromptTooLong():
            text = (
                f"This model's maximum context length is {error.n_max} tokens of input;"
                f" the {prompt_param} resulted in {error.n_prompt} tokens."
            )
            return RequestError(text, param=prompt_param, code="context_length_exceeded")
        case InvalidToken() if error.where != "prompt":
            return RequestError(text, param=error.where, code="invalid_value")
        case InvalidSampling():
            return RequestError(text, param=error.name, code="invalid_value")
        case InvalidConstraint():
            return RequestError(text, code="invalid_value")
        case EmptyPrompt() | InvalidToken() | TemplateError():
            return RequestError(text, param=prompt_param, code="invalid_value")
        case Unsupported() | WrongUse():
            return RequestError(text, param="model", code="unsupported_model")
    return None
