"""Pydantic models of what is sent: for the OpenAPI document, and what Python code gets.

The routes send dicts and build nothing of these.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Sent(BaseModel):
    """What a field's default is, is left out by some answers."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorObject(Sent):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(Sent):
    error: ErrorObject


class Health(Sent):
    status: Literal["ok"]


class ModelStatus(Sent):
    """``progress`` of its download or load is from 0 to 1."""

    value: Literal["unloaded", "waiting", "downloading", "loading", "loaded", "unloading", "failed"]
    progress: float
    error: str = ""


class Model(Sent):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    aliases: list[str]
    status: ModelStatus


class Models(Sent):
    object: Literal["list"]
    data: list[Model]


class PromptTokensDetails(Sent):
    audio_tokens: int
    cached_tokens: int


class CompletionTokensDetails(Sent):
    accepted_prediction_tokens: int
    audio_tokens: int
    reasoning_tokens: int
    rejected_prediction_tokens: int


class Usage(Sent):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class PromptUsage(Sent):
    prompt_tokens: int
    total_tokens: int


class Timings(Sent):
    """llama-server's, in milliseconds."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


class PromptProgress(Sent):
    total: int
    cache: int
    processed: int
    time_ms: int


class TopLogprob(Sent):
    token: str
    logprob: float | None
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Sent):
    content: list[TokenLogprob] | None
    refusal: None


class CalledFunction(Sent):
    name: str
    arguments: str


class CalledCustom(Sent):
    name: str
    input: str


class FunctionToolCallSent(Sent):
    id: str
    type: Literal["function"]
    function: CalledFunction


class CustomToolCallSent(Sent):
    id: str
    type: Literal["custom"]
    custom: CalledCustom


class ChatMessage(Sent):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[FunctionToolCallSent | CustomToolCallSent] = []
    function_call: CalledFunction | None = None


FinishReason = Literal["stop", "length", "tool_calls", "function_call"]


class ChatChoice(Sent):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Sent):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: Literal["default", "flex", "priority"] = "default"
    metadata: dict[str, str] = {}
    timings: Timings | None = None

    @property
    def message(self) -> ChatMessage:
        """That of the first choice."""
        return self.choices[0].message

    @property
    def text(self) -> str:
        """What the first choice says."""
        return self.message.content or ""


class FunctionPart(Sent):
    name: str = ""
    arguments: str = ""


class CustomPart(Sent):
    name: str = ""
    input: str = ""


class ToolCallPart(Sent):
    """The first of a call has its id, type and name; the others have more of its arguments."""

    index: int
    id: str = ""
    type: Literal["function", "custom"] = "function"
    function: FunctionPart | None = None
    custom: CustomPart | None = None


class ChatDelta(Sent):
    role: Literal["assistant"] = "assistant"
    content: str | None = None
    refusal: None = None
    reasoning_content: str = ""
    tool_calls: list[ToolCallPart] = []
    function_call: FunctionPart | None = None


class ChatChunkChoice(Sent):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class _Chunk(Sent):
    id: str
    created: int
    model: str
    usage: Usage | None = None
    timings: Timings | None = None
    prompt_progress: PromptProgress | None = None
    obfuscation: str = ""


class ChatCompletionChunk(_Chunk):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    service_tier: Literal["default", "flex", "priority"] = "default"

    @property
    def text(self) -> str:
        """What its choice, if it has one, says more."""
        return self.choices[0].delta.content or "" if self.choices else ""


class TextLogprobs(Sent):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None]
    text_offset: list[int]


class TextChoice(Sent):
    text: str
    index: int
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(Sent):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    timings: Timings | None = None

    @property
    def text(self) -> str:
        """That of the first choice."""
        return self.choices[0].text


class TextChunkChoice(Sent):
    text: str
    index: int
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionChunk(_Chunk):
    object: Literal["text_completion"]
    choices: list[TextChunkChoice]

    @property
    def text(self) -> str:
        """What its choice, if it has one, says more."""
        return self.choices[0].text if self.choices else ""


class Embedding(Sent):
    """``embedding`` is base64 of little-endian float32 where that was asked for."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(Sent):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: PromptUsage


class TokenPiece(Sent):
    """``piece`` is bytes where they are no whole characters."""

    id: int
    piece: str | list[int]


class Tokens(Sent):
    tokens: list[int] | list[TokenPiece]


class Text(Sent):
    content: str


class RenderedTemplate(Sent):
    prompt: str


class ScoredText(Sent):
    text: str


class Score(Sent):
    index: int
    relevance_score: float
    document: ScoredText | None = None


class Ranking(Sent):
    model: str
    object: Literal["list"]
    usage: PromptUsage
    results: list[Score]


class TopInfillLogprob(TopLogprob):
    id: int


class InfillLogprob(TopInfillLogprob):
    top_logprobs: list[TopInfillLogprob]


class InfillPiece(Sent):
    """A part of a streamed middle."""

    index: int
    content: str
    tokens: list[int]
    stop: Literal[False]
    tokens_predicted: int
    tokens_evaluated: int
    completion_probabilities: list[InfillLogprob] = []
    timings: Timings | None = None
    prompt_progress: PromptProgress | None = None


class Infill(Sent):
    """The middle; at the end of a stream without its text. ``stop_type`` is there if known."""

    index: int
    content: str
    tokens: list[int]
    stop: Literal[True]
    model: str
    tokens_predicted: int
    tokens_evaluated: int
    tokens_cached: int
    prompt: str
    has_new_line: bool
    truncated: bool
    stop_type: Literal["eos", "limit"] = "eos"
    completion_probabilities: list[InfillLogprob] = []
    timings: Timings


class ChosenFields(BaseModel):
    """What ``response_fields`` named, by those names."""

    model_config = ConfigDict(extra="allow")


class OpenAPIDocument(BaseModel):
    model_config = ConfigDict(extra="allow")

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
