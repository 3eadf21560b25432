"""Chats, completions, vectors and tokens as methods, for code on asyncio's or trio's event loop.

One implementation with the routes, and one batch: only HTTP is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from openai_local.api import chat_completions, completions, embeddings, rerank, tokens
from openai_local.api.bodies import parse
from openai_local.api.chunks import whole
from openai_local.api.errors import RequestError
from openai_local.api.types.answers import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    Ranking,
)
from openai_local.api.types.apply_template import TemplateRequest
from openai_local.api.types.chat_completions import ChatCompletionRequest
from openai_local.api.types.completions import CompletionRequest
from openai_local.api.types.embeddings import EmbeddingRequest
from openai_local.api.types.rerank import RerankRequest
from openai_local.api.types.tokens import DetokenizeRequest, TokenizeRequest
from openai_local.engine.backend import Floats
from openai_local.inprocess.parameters import (
    ChatParameters,
    ChatStreamParameters,
    CompletionParameters,
    CompletionStreamParameters,
    Inputs,
    Messages,
    body,
)
from openai_local.inprocess.stream import Stream, refusals
from openai_local.models.session import Session

if TYPE_CHECKING:
    from openai_local.application import Application
    from openai_local.models.registry import Registry


class Engine:
    """A local model for Python code, or the one that an application serves.

        async with openai_local.Engine("model.gguf", n_ctx=4096) as engine:
            answer = await engine.chat("What is the capital of France?", max_tokens=20)
            print(answer.text)
            async with engine.stream_chat([{"role": "user", "content": "A story!"}]) as stream:
                async for chunk in stream:
                    print(chunk.text, end="")

    The parameters are those of the routes, and so are the answers. Nothing is loaded before the
    first call, or ``async with``, whose end frees all. All calls, of any task and event loop,
    share one batch; cancelling one frees its place before the next token.

    The methods raise :class:`RequestError`, which names the parameter that is wrong,
    ``UnknownModel``, and the :class:`EngineError` of what else went wrong.
    """

    def __init__(self, model: str | Path | None = None, **options: Any) -> None:
        """``model`` and ``options`` are those of :func:`openai_local.app`. Raises ConfigError."""
        from openai_local import app

        self._local: Application = app(model, **options)
        self._owned = True
        self._life = AsyncExitStack()

    @classmethod
    def of(cls, local: Application) -> Engine:
        """That of an application, with which it shares everything. Closing it closes nothing."""
        engine = cls.__new__(cls)
        engine._local, engine._owned, engine._life = local, False, AsyncExitStack()
        return engine

    async def __aenter__(self) -> Engine:
        """Load the default model, unless the application does."""
        if self._owned:
            await self._life.enter_async_context(self._local.lifespan())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop, and free the models; whoever waits gets EngineStopped. Safe to repeat."""
        if self._owned:
            await self._life.aclose()
            await self._local.aclose()

    async def models(self) -> list[str]:
        """The names of the models that there are, loaded or not."""
        return [spec.id for spec in await self._models.models()]

    async def chat(
        self, messages: Messages, **parameters: Unpack[ChatParameters]
    ) -> ChatCompletion:
        """The model's answer to ``messages``, of which one text is what the user says."""
        request = self._chat(messages, parameters)
        with refusals("messages"), self._session() as models:
            answer = await whole(lambda: chat_completions.plan(models, request))
        return ChatCompletion.model_validate(answer)

    def stream_chat(
        self, messages: Messages, **parameters: Unpack[ChatStreamParameters]
    ) -> Stream[ChatCompletionChunk]:
        """As :meth:`chat`, in chunks as they come."""
        request = self._chat(messages, parameters, stream=True)
        return Stream(
            self._session(),
            lambda models: chat_completions.plan(models, request),
            request.stream_options,
            ChatCompletionChunk,
            "messages",
        )

    async def complete(
        self, prompt: Inputs | None = None, **parameters: Unpack[CompletionParameters]
    ) -> Completion:
        """How the model goes on behind ``prompt``, of which there may be several.

        Without ``max_tokens`` by 16 tokens, as the specification has it.
        """
        request = self._completion(prompt, parameters)
        with refusals("prompt"), self._session() as models:
            answer = await whole(lambda: completions.plan(models, request))
        return Completion.model_validate(answer)

    def stream_complete(
        self, prompt: Inputs | None = None, **parameters: Unpack[CompletionStreamParameters]
    ) -> Stream[CompletionChunk]:
        """As :meth:`complete`, in chunks as they come."""
        request = self._completion(prompt, parameters, stream=True)
        return Stream(
            self._session(),
            lambda models: completions.plan(models, request),
            request.stream_options,
            CompletionChunk,
            "prompt",
        )

    async def embed(
        self, texts: Inputs, *, model: str | None = None, dimensions: int | None = None
    ) -> Floats:
        """Unit vectors, shape (n_texts, n_dimensions); one text has one row."""
        model = model or self._models.embedding_id
        given = body({"dimensions": dimensions}, input=texts, model=model)
        request = parse(given, EmbeddingRequest, embeddings.REFUSED)
        with refusals("input"), self._session() as models:
            return (await embeddings.embed(models, request)).rows

    async def rerank(
        self,
        query: str,
        documents: Sequence[str | Mapping[str, str]],
        *,
        model: str | None = None,
        top_n: int | None = None,
        return_documents: bool | None = None,
    ) -> Ranking:
        """The documents by how well they answer the query, the best first."""
        more = {"model": model, "top_n": top_n, "return_documents": return_documents}
        given = body(more, query=query, documents=documents)
        request = parse(given, RerankRequest, rerank.REFUSED)
        with refusals("documents"), self._session() as models:
            return Ranking.model_validate(await rerank.rank(models, request))

    async def tokenize(
        self,
        text: str,
        *,
        model: str | None = None,
        add_special: bool = False,
        parse_special: bool = True,
    ) -> list[int]:
        """Token ids; with ``add_special`` those with which texts begin, too."""
        given = body({"model": model}, content=text, add_special=add_special)
        given["parse_special"] = parse_special
        request = parse(given, TokenizeRequest, tokens.REFUSED)
        with refusals("text"), self._session() as models:
            return await tokens.tokenize(models, request)

    async def detokenize(self, ids: Sequence[int], *, model: str | None = None) -> str:
        """The text of token ids, control tokens as they are written."""
        request = parse(body({"model": model}, tokens=ids), DetokenizeRequest, tokens.REFUSED)
        with refusals("tokens"), self._session() as models:
            return await tokens.detokenize(models, request)

    async def apply_template(self, messages: Messages, **parameters: Unpack[ChatParameters]) -> str:
        """The prompt that :meth:`chat` would give to the model."""
        given = body(parameters, messages=_messages(messages))
        request = parse(given, TemplateRequest, chat_completions.REFUSED)
        with refusals("messages"), self._session() as models:
            return await chat_completions.prompt_of(models, request)

    @property
    def _models(self) -> Registry:
        self._local.check_process()
        return self._local.registry

    def _session(self) -> Session:
        return Session(self._models)

    def _chat(
        self, messages: Messages, parameters: Mapping[str, Any], stream: bool = False
    ) -> ChatCompletionRequest:
        _check_no_stream(parameters)
        given = {"model": self._models.default_id, **body(parameters)}
        given |= {"messages": _messages(messages), "stream": stream}
        return parse(given, ChatCompletionRequest, chat_completions.REFUSED)

    def _completion(
        self, prompt: Inputs | None, parameters: Mapping[str, Any], stream: bool = False
    ) -> CompletionRequest:
        _check_no_stream(parameters)
        given = {"model": self._models.default_id, **body(parameters)}
        given |= body({"prompt": prompt}, stream=stream)
        return parse(given, CompletionRequest, completions.REFUSED)


def _messages(messages: Messages) -> Any:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    return body({}, messages=messages)["messages"]


def _check_no_stream(parameters: Mapping[str, Any]) -> None:
    if parameters.get("stream") is not None:
        raise RequestError(
            "The 'stream' parameter has no place here: other methods stream.",
            param="stream",
            code="unsupported_parameter",
        )
