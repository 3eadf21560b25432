"""POST /infill: what goes between two texts, as llama-server has it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from openai_local.api.bodies import Refusal, Refused
from openai_local.api.constraints import asked_for, compiled
from openai_local.api.errors import RequestError
from openai_local.api.generation import Choices, generation_request, off_loop, read_biases
from openai_local.api.logprobs import chat_logprobs
from openai_local.api.parameters import check_infill
from openai_local.api.prompts import text_of
from openai_local.api.timings import with_progress, with_timings
from openai_local.api.types.infill import ExtraFile, InfillRequest
from openai_local.engine import Finished, PromptProgress, TextDelta, TokenLogprob
from openai_local.models.loads import LoadedModel
from openai_local.models.session import Session
from openai_local.routes.host import unless_left, unless_stopping
from openai_local.routes.request import read
from openai_local.routes.services import Services
from openai_local.routes.sse import EventStream, event

REFUSED: Refused = {
    "id_slot": Refusal("it finds the best slot itself", (-1,)),
    "lora": Refusal("it has no adapters", ([],)),
    "n": Refusal("it answers once", (1,)),
    "n_cmpl": Refusal("it answers once", (1,)),
    "n_indent": Refusal("it does not look at indentation", (0,)),
    "n_keep": Refusal("a context that is full is not shifted", (0,)),
    "post_sampling_probs": Refusal("logprobs are the model's own", (False,)),
    "t_max_prompt_ms": Refusal("the time for a prompt has no bound of its own", (-1, 0)),
    "stream_options": Refusal("its streams have no options", ({},)),
}

# llama-server's names for what is not named, and its line between files without a mark.
PROJECT, FILE, NAMELESS = "myproject", "filename", "tmp"
SNIPPET = "\n\n--- snippet ---\n\n"


async def create(services: Services, request: Request) -> ASGIApp:
    body = await read(request, InfillRequest, REFUSED, services.settings.max_body_bytes)
    start = await unless_stopping(lambda: _plan(services.models, body))
    answer, choices = start()
    if body.stream:
        return EventStream(_events(answer, choices), choices.cancel, done=b"")
    try:
        return JSONResponse(await unless_left(request.receive, lambda: _whole(answer, choices)))
    finally:
        choices.cancel()


async def _plan(models: Session, body: InfillRequest) -> Callable[[], tuple[_Answer, Choices]]:
    check_infill(body)
    asked = asked_for(body)
    model = await models.get(body.model or models.default_id, "chat")
    prompt = await off_loop(_size(body), lambda: _prompt(body, model))
    biases = await read_biases(body, model.engine)
    more: dict[str, Any] = {"timings": True}
    if body.return_tokens and body.n_logprobs() is None:
        more["logprobs"] = 0  # the tokens come with them
    if asked is not None:
        more["constraint"] = await compiled(model.engine, asked)
    asking = generation_request(body, model, prompt.tokens, body.most_tokens(), biases, 0, **more)

    def start() -> tuple[_Answer, Choices]:
        return _Answer(body, model.id, prompt), Choices(model.engine, [asking], per_prompt=1)

    return start


@dataclass(frozen=True, slots=True)
class _Prompt:
    """``truncated``: some of the extra files did not fit."""

    tokens: Sequence[int]
    text: str
    truncated: bool


def _size(body: InfillRequest) -> int:
    extra = sum(len(file.text) for file in body.input_extra or ())
    return len(body.input_prefix) + len(body.input_suffix) + extra


def _prompt(body: InfillRequest, model: LoadedModel) -> _Prompt:
    """The files that fit, then what is around the middle. Raises RequestError."""
    engine, vocabulary = model.engine, model.engine.vocabulary
    marks = vocabulary.fill_in_the_middle()
    if marks is None:
        raise RequestError(
            f"The model {model.id!r} has no tokens to fill in the middle of a text.",
            param="model",
            code="unsupported_model",
        )

    def plain(text: str) -> list[int]:
        return engine.tokenize(text, add_special=False, parse_special=False)

    before, after, between = marks
    given = engine.tokenize(body.prompt or "", add_special=False, parse_special=True)
    around = [
        *(before, *plain(body.input_prefix), *given),
        *(after, *plain(body.input_suffix), between),
    ]
    bos = vocabulary.bos()
    start = [] if bos is None else [bos]
    files = body.input_extra or []
    if files:
        repository, mark = vocabulary.file_marks()
        if repository is not None:
            start += [repository, *plain(PROJECT + "\n")]
        if mark is not None:
            around = [mark, *plain(FILE + "\n"), *around]
    n_left = model.info.n_ctx - 1 - len(start) - len(around) - (body.most_tokens() or 0)
    kept = list(_last_that_fit(files, n_left, plain, model))
    tokens = [*start, *(token for part in reversed(kept) for token in part), *around]
    engine.check_prompt(tokens)
    return _Prompt(tokens, text_of(tokens, vocabulary), len(kept) < len(files))


def _last_that_fit(
    files: Sequence[ExtraFile], n_left: int, plain: Any, model: LoadedModel
) -> Iterator[list[int]]:
    """The files' tokens, the last file first: it is the nearest to what is asked for."""
    _, mark = model.engine.vocabulary.file_marks()
    for file in reversed(files):
        if mark is not None:
            tokens = [mark, *plain(f"{file.filename or NAMELESS}\n"), *plain(file.text)]
        else:
            tokens = [*plain(SNIPPET), *plain(file.text)]
        n_left -= len(tokens)
        if n_left < 0:
            return
        yield tokens


@dataclass(slots=True)
class _Answer:
    """llama-server's objects, of which the last stands for all."""

    body: InfillRequest
    model: str
    prompt: _Prompt
    n_tokens: int = 0
    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    probabilities: list[dict[str, Any]] = field(default_factory=list)

    def piece(self, delta: TextDelta) -> dict[str, Any]:
        tokens = [t.token for t in delta.logprobs] if self.body.return_tokens else []
        probabilities = _probabilities(delta.logprobs) if self.body.n_logprobs() else []
        self.text.append(delta.text)
        self.tokens += tokens
        self.probabilities += probabilities
        self.n_tokens += delta.n_tokens
        piece = {**self._part(delta.text), "tokens": tokens}
        if probabilities:
            piece["completion_probabilities"] = probabilities
        return with_timings(piece, delta.timings if self.body.timings_per_token else None)

    def progress(self, progress: PromptProgress) -> dict[str, Any]:
        return with_progress(self._part(""), progress)

    def last(self, end: Finished) -> dict[str, Any]:
        """With all of the text, unless that was streamed."""
        text, streamed = "".join(self.text), bool(self.body.stream)
        last: dict[str, Any] = {
            "index": 0,
            "content": "" if streamed else text,
            "tokens": [] if streamed else self.tokens,
            "stop": True,
            "model": self.model,
            "tokens_predicted": end.usage.n_completion,
            "tokens_evaluated": end.usage.n_prompt,
            "tokens_cached": end.usage.n_cached,
            "prompt": self.prompt.text,
            "has_new_line": "\n" in text,
            "truncated": self.prompt.truncated,
        }
        if end.reason == "length":
            last["stop_type"] = "limit"
        elif not self.body.stops() and not self.body.stop_token_ids:
            last["stop_type"] = "eos"  # else it is not known which of them it was
        if self.probabilities and not streamed:
            last["completion_probabilities"] = self.probabilities
        last = with_timings(last, end.timings)
        fields = self.body.response_fields
        return _fields(last, fields) if fields else last

    def _part(self, text: str) -> dict[str, Any]:
        return {
            "index": 0,
            "content": text,
            "tokens": [],
            "stop": False,
            "tokens_predicted": self.n_tokens,
            "tokens_evaluated": len(self.prompt.tokens),
        }


async def _objects(answer: _Answer, choices: Choices) -> AsyncGenerator[dict[str, Any], None]:
    async with aclosing(choices.events()) as events:
        async for _, happened in events:
            if isinstance(happened, TextDelta):
                yield answer.piece(happened)
            elif isinstance(happened, PromptProgress):
                yield answer.progress(happened)
            elif isinstance(happened, Finished):
                yield answer.last(happened)


async def _events(answer: _Answer, choices: Choices) -> AsyncGenerator[bytes, None]:
    async with aclosing(_objects(answer, choices)) as objects:
        async for part in objects:
            yield event(part)


async def _whole(answer: _Answer, choices: Choices) -> dict[str, Any]:
    last: dict[str, Any] = {}
    async with aclosing(_objects(answer, choices)) as objects:
        async for part in objects:
            last = part
    return last


def _probabilities(tokens: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """OpenAI's objects, with ids."""
    given = list(tokens)
    shape = chat_logprobs(given)
    for token, entry in zip(given, shape["content"] if shape else (), strict=True):
        entry["id"] = token.token
        for other, top in zip(token.top, entry["top_logprobs"], strict=True):
            top["id"] = other.token
    return shape["content"] if shape else []


def _fields(whole: dict[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """What is there of ``paths``, which are like ``timings/prompt_n``."""
    found: dict[str, Any] = {}
    for path in paths:
        value: Any = whole
        for key in path.split("/"):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found[path] = value
    return found
