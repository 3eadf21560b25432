"""The same engine for code that has no event loop: scripts, threads, views of Django."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from openai_local.api.types.answers import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    Ranking,
)
from openai_local.engine.backend import Floats
from openai_local.inprocess.engine import Engine
from openai_local.inprocess.parameters import (
    ChatParameters,
    ChatStreamParameters,
    CompletionParameters,
    CompletionStreamParameters,
    Inputs,
    Messages,
)
from openai_local.inprocess.portal import ItemIterator, Portal

if TYPE_CHECKING:
    from openai_local.application import Application


class SyncEngine:
    """As :class:`Engine`, with methods that block and streams that are plain iterators.

        with openai_local.SyncEngine("model.gguf") as engine:
            print(engine.chat("What is the capital of France?", max_tokens=20).text)
            for chunk in engine.stream_chat("A story!"):
                print(chunk.text, end="")

    For any number of threads, a loop's thread pool included, which share one batch and one thread
    beside the engine's. An interrupt, or a stream that is closed or dropped, frees the places.
    """

    def __init__(self, model: str | Path | None = None, **options: Any) -> None:
        """``model`` and ``options`` are those of :func:`openai_local.app`. Raises ConfigError."""
        self._engine = Engine(model, **options)
        self._portal = Portal("openai_local sync engine")

    @classmethod
    def of(cls, local: Application) -> SyncEngine:
        """That of an application, with which it shares everything. Closing it closes nothing of
        the application."""
        engine = cls.__new__(cls)
        engine._engine, engine._portal = Engine.of(local), Portal("openai_local sync engine")
        return engine

    def __enter__(self) -> SyncEngine:
        """Load the default model, unless the application does."""
        try:
            self._portal.call(self._engine.__aenter__)
        except BaseException:
            self._portal.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and free the models; whoever waits gets EngineStopped. Safe to repeat."""
        self._portal.call(self._engine.aclose)
        self._portal.close()

    def models(self) -> list[str]:
        """The names of the models that there are, loaded or not."""
        return self._portal.call(self._engine.models)

    def chat(self, messages: Messages, **parameters: Unpack[ChatParameters]) -> ChatCompletion:
        """The model's answer to ``messages``, of which one text is what the user says."""
        return self._portal.call(lambda: self._engine.chat(messages, **parameters))

    def stream_chat(
        self, messages: Messages, **parameters: Unpack[ChatStreamParameters]
    ) -> ItemIterator[ChatCompletionChunk]:
        """As :meth:`chat`, in chunks as they come."""
        return self._portal.iterate(self._engine.stream_chat(messages, **parameters))

    def complete(
        self, prompt: Inputs | None = None, **parameters: Unpack[CompletionParameters]
    ) -> Completion:
        """How the model goes on behind ``prompt``, of which there may be several."""
        return self._portal.call(lambda: self._engine.complete(prompt, **parameters))

    def stream_complete(
        self, prompt: Inputs | None = None, **parameters: Unpack[CompletionStreamParameters]
    ) -> ItemIterator[CompletionChunk]:
        """As :meth:`complete`, in chunks as they come."""
        return self._portal.iterate(self._engine.stream_complete(prompt, **parameters))

    def embed(
        self, texts: Inputs, *, model: str | None = None, dimensions: int | None = None
    ) -> Floats:
        """Unit vectors, shape (n_texts, n_dimensions); one text has one row."""
        return self._portal.call(
            lambda: self._engine.embed(texts, model=model, dimensions=dimensions)
        )

    def rerank(
        self,
        query: str,
        documents: Sequence[str | Mapping[str, str]],
        *,
        model: str | None = None,
        top_n: int | None = None,
        return_documents: bool | None = None,
    ) -> Ranking:
        """The documents by how well they answer the query, the best first."""
        return self._portal.call(
            lambda: self._engine.rerank(
                query, documents, model=model, top_n=top_n, return_documents=return_documents
            )
        )

    def tokenize(
        self,
        text: str,
        *,
        model: str | None = None,
        add_special: bool = False,
        parse_special: bool = True,
    ) -> list[int]:
        """Token ids; with ``add_special`` those with which texts begin, too."""
        return self._portal.call(
            lambda: self._engine.tokenize(
                text, model=model, add_special=add_special, parse_special=parse_special
            )
        )

    def detokenize(self, ids: Sequence[int], *, model: str | None = None) -> str:
        """The text of token ids, control tokens as they are written."""
        return self._portal.call(lambda: self._engine.detokenize(ids, model=model))

    def apply_template(self, messages: Messages, **parameters: Unpack[ChatParameters]) -> str:
        """The prompt that :meth:`chat` would give to the model."""
        return self._portal.call(lambda: self._engine.apply_template(messages, **parameters))
