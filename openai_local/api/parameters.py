"""What the types of a body cannot say: parameters that contradict each other."""

from __future__ import annotations

from openai_local.api.errors import RequestError
from openai_local.api.types.chat_completions import ChatCompletionRequest
from openai_local.api.types.completions import CompletionRequest
from openai_local.api.types.generation import GenerationBody
from openai_local.api.types.infill import InfillRequest

# Mirostat chooses by itself how many candidates there are.
_NOT_WITH_MIROSTAT = {
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "typical_p": 1.0, "xtc_probability": 0.0,
    "dry_multiplier": 0.0,
}  # fmt: skip


def check_chat(body: ChatCompletionRequest) -> None:
    """Raises RequestError."""
    _check(body)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise _refusal("max_tokens", "cannot be set together with 'max_completion_tokens'")
    _check_min_tokens(
        body, body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    )
    if body.reasoning_budget_tokens is not None and body.thinking_budget_tokens is not None:
        raise _refusal(
            "thinking_budget_tokens", "cannot be set together with 'reasoning_budget_tokens'"
        )
    if body.continue_final_message and body.add_generation_prompt:
        raise _refusal(
            "continue_final_message", "cannot be set together with 'add_generation_prompt'"
        )
    if body.top_logprobs and not body.logprobs:
        raise _refusal("top_logprobs", "needs 'logprobs' to be true")
    if body.n_probs and body.logprobs is not None:
        raise _refusal("n_probs", "cannot be set together with 'logprobs'")


def check_completion(body: CompletionRequest, max_tokens: int) -> None:
    """Raises RequestError."""
    _check(body)
    _check_min_tokens(body, max_tokens)
    if body.n_probs and body.logprobs is not None:
        raise _refusal("n_probs", "cannot be set together with 'logprobs'")
    n, best_of = body.n or 1, body.best_of or body.n or 1
    if best_of < n:
        raise _refusal("best_of", f"must be no less than 'n', which is {n}")
    if best_of > n and body.stream:
        raise _refusal("best_of", "cannot be streamed: the best is known when all are finished")
    if body.suffix and body.echo:
        raise _refusal("echo", "cannot be set together with 'suffix'")


def check_infill(body: InfillRequest) -> None:
    """Raises RequestError."""
    _check(body)
    if body.max_tokens is not None and body.n_predict is not None:
        raise _refusal("max_tokens", "cannot be set together with 'n_predict'")
    _check_min_tokens(body, body.most_tokens())


def _check(body: GenerationBody) -> None:
    if not body.stream:
        if body.stream_options is not None:
            raise _refusal("stream_options", "is only allowed when 'stream' is true")
        if body.return_progress:
            raise _refusal("return_progress", "is only allowed when 'stream' is true")
    if body.mirostat:
        for name, neutral in _NOT_WITH_MIROSTAT.items():
            if getattr(body, name) not in (None, neutral):
                raise _refusal(name, "has no place beside 'mirostat'")
        if body.samplers is not None:
            raise _refusal("samplers", "has no place beside 'mirostat'")
        if (body.top_n_sigma or 0) > 0:
            raise _refusal("top_n_sigma", "has no place beside 'mirostat'")


def _check_min_tokens(body: GenerationBody, max_tokens: int | None) -> None:
    if max_tokens is not None and (body.min_tokens or 0) > max_tokens:
        raise _refusal("min_tokens", f"is more than the {max_tokens} tokens that there may be")


def _refusal(param: str, text: str) -> RequestError:
    combined = "together" in text
    return RequestError(
        f"The '{param}' parameter {text}.",
        param=param,
        code="invalid_parameter_combination" if combined else "invalid_value",
    )
