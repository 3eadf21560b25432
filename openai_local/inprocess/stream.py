"""The chunks of a completion as they come, for code on an event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from openai_local.api.chunks import Chunks, Completion, Start
from openai_local.api.errors import named
from openai_local.api.types.generation import StreamOptions
from openai_local.engine.bridge import Loop
from openai_local.models.session import Session

Chunk = TypeVar("Chunk", bound=BaseModel)


@contextmanager
def refusals(prompt_param: str) -> Iterator[None]:
    """What is wrong in a request is raised as a RequestError that names it."""
    try:
        yield
    except Exception as error:
        refusal = named(error, prompt_param)
        if refusal is None or refusal is error:
            raise
        raise refusal from error


class Stream(Generic[Chunk]):
    """An async iterator of chunks. Nothing is computed before the first is asked for.

    Leaving ``async with``, :meth:`aclose`, cancelling the task that reads it, or dropping it frees
    the places of its generations before their next token. For one event loop, and one task at a
    time.
    """

    def __init__(
        self,
        models: Session,
        plan: Callable[[Session], Awaitable[Start]],
        options: StreamOptions | None,
        chunk_type: type[Chunk],
        prompt_param: str,
    ) -> None:
        """``models`` are held until its end."""
        self._models = models
        self._plan: Callable[[Session], Awaitable[Start]] | None = plan
        self._options = options
        self._chunk_type = chunk_type
        self._prompt_param = prompt_param
        self._completion: Completion | None = None
        self._chunks: Chunks | None = None
        self._loop: Loop | None = None

    def __aiter__(self) -> Stream[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        """Raises RequestError, and the EngineError that ended it, if one did."""
        try:
            with refusals(self._prompt_param):
                return self._chunk_type.model_validate(await self._next())
        except BaseException:
            self._cancel()
            raise

    async def _next(self) -> dict[str, Any]:
        loop = Loop()
        if self._loop not in (None, loop):
            # What a loop leaves behind is closed by it, and would look like the end.
            raise RuntimeError("the stream is of another event loop")
        self._loop = loop
        plan, self._plan = self._plan, None
        if plan is not None:
            self._completion = (await plan(self._models))()
            self._chunks = self._completion.streamed(self._options)
        if self._chunks is None:
            raise StopAsyncIteration
        return await self._chunks.__anext__()

    async def __aenter__(self) -> Stream[Chunk]:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it; then it has no more chunks. Safe to repeat."""
        self._cancel()
        chunks, self._chunks = self._chunks, None
        if chunks is not None:
            await chunks.aclose()

    def _cancel(self) -> None:
        self._plan = None
        completion, self._completion = self._completion, None
        if completion is not None:
            completion.cancel()
        self._models.close()

    def __del__(self) -> None:
        self._cancel()
