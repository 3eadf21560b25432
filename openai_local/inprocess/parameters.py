"""The parameters of chats and completions as keywords, for type checkers and editors.

Checked, and where they are wrong refused by name, as the bodies of the routes are: these say no
more than that, and a test holds them to the same names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from pydantic import BaseModel

# One text is what a user says; answers of earlier chats can stand in a history as they came.
Messages = str | Sequence[Mapping[str, Any] | BaseModel]
# One or many, as text or as token ids.
Inputs = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
Object = Mapping[str, Any]


class SamplingParameters(TypedDict, total=False):
    """How tokens are chosen."""

    temperature: float | None
    top_p: float | None
    seed: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | Mapping[str, float] | Sequence[tuple[int | str, float]] | None
    top_k: int | None
    min_p: float | None
    typical_p: float | None
    top_n_sigma: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    dynatemp_range: float | None
    dynatemp_exponent: float | None
    mirostat: Literal[0, 1, 2] | None
    mirostat_tau: float | None
    mirostat_eta: float | None
    repeat_penalty: float | None
    repeat_last_n: int | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_penalty_last_n: int | None
    dry_sequence_breakers: Sequence[str] | None
    min_keep: int | None
    samplers: Sequence[str] | str | None
    ignore_eos: bool | None
    min_tokens: int | None


class GenerationParameters(SamplingParameters, total=False):
    """Those that chats and completions have in common.

    A pydantic model stands for its schema as ``response_format``.
    """

    model: str | None
    n: int | None
    stop: str | Sequence[str] | None
    user: str | None
    stop_token_ids: Sequence[int] | None
    n_probs: int | None
    cache_prompt: bool | None
    timings_per_token: bool | None
    t_max_predict_ms: int | None
    response_format: Object | type[BaseModel] | None
    grammar: str | None
    json_schema: Object | None
    structured_outputs: Object | None


class StreamParameters(TypedDict, total=False):
    """Those that only streams have."""

    stream_options: Object | None
    return_progress: bool | None


class ChatParameters(GenerationParameters, total=False):
    max_tokens: int | None
    max_completion_tokens: int | None
    logprobs: bool | None
    top_logprobs: int | None
    metadata: Mapping[str, str] | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    prompt_cache_retention: Literal["in_memory", "24h"] | None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None
    chat_template_kwargs: Object | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    reasoning_budget_tokens: int | None
    thinking_budget_tokens: int | None
    reasoning_format: Literal["none", "auto", "deepseek"] | None
    tools: Sequence[Object] | None
    tool_choice: str | Object | None
    parallel_tool_calls: bool | None
    functions: Sequence[Object] | None
    function_call: str | Object | None


class CompletionParameters(GenerationParameters, total=False):
    suffix: str | None
    max_tokens: int | None
    logprobs: int | None
    echo: bool | None
    best_of: int | None


class ChatStreamParameters(ChatParameters, StreamParameters, total=False): ...


class CompletionStreamParameters(CompletionParameters, StreamParameters, total=False): ...


def plain(value: Any) -> Any:
    """``value`` as JSON would have it, where Python has other types for the same."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(value, Mapping):
        return {_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [plain(item) for item in value]
    return value


def _key(key: Any) -> Any:
    return str(key) if isinstance(key, int) else key


def body(given: Mapping[str, Any], **fixed: Any) -> dict[str, Any]:
    """The body of a request; what is None in ``given`` is as if it were not given."""
    made = {name: plain(value) for name, value in given.items() if value is not None}
    format = given.get("response_format")
    if isinstance(format, type) and issubclass(format, BaseModel):
        schema = {"name": format.__name__[:64], "schema": format.model_json_schema()}
        made["response_format"] = {"type": "json_schema", "json_schema": schema}
    return {**made, **{name: plain(value) for name, value in fixed.items()}}
