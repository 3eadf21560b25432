"""The door of an engine: start it, submit to it from any event loop, close it."""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from openai_local.engine import bridge
from openai_local.engine.backend import Backend, Floats, Vocabulary
from openai_local.engine.config import EngineConfig
from openai_local.engine.constraints.compiler import (
    MAX_SECONDS,
    Compiled,
    ConstraintCompiler,
    too_slow,
)
from openai_local.engine.core import EngineCore
from openai_local.engine.embedder import EmbeddingJob
from openai_local.engine.errors import (
    EmptyPrompt,
    EngineStopped,
    InvalidConstraint,
    InvalidSampling,
    InvalidToken,
    ModelLoadFailed,
    PromptTooLong,
    QueueFull,
    Unsupported,
)
from openai_local.engine.intake import Cancel, Message, Submit
from openai_local.engine.loading import Loading
from openai_local.engine.messages import (
    CompiledConstraint,
    Constraint,
    GenerationRequest,
    ModelInfo,
)
from openai_local.engine.metrics import EngineMetrics
from openai_local.engine.sampler_steps import check
from openai_local.engine.worker import Worker

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 30.0


# The second argument says whether to give the load up, and is told how far it is.
OpenBackend = Callable[[EngineConfig, Loading], Backend]


def _open_llama(config: EngineConfig, loading: Loading) -> Backend:
    from openai_local.engine.llama import LlamaBackend

    return LlamaBackend(config, loading)


class _Shared:
    """What the engine thread leaves for the door."""

    def __init__(self) -> None:
        self.loading: Loading | None = None
        self.ready: Future[ModelInfo] = Future()
        # Nobody who waits with a timeout may cancel what others wait for.
        self.ready.set_running_or_notify_cancel()
        self.core: EngineCore | None = None
        self.vocabulary: Vocabulary | None = None
        self.constraints: ConstraintCompiler | None = None
        self._last = EngineMetrics()

    def metrics(self) -> EngineMetrics:
        core = self.core
        return self._last if core is None else core.metrics()

    @property
    def n_ended(self) -> int:
        core = self.core
        return self._last.requests_ended_total if core is None else core.n_ended

    def end(self) -> None:
        """Keep what was counted, and let all else go: callers may keep the door for long."""
        if self.core is not None:
            self._last = self.core.metrics()
        self.core = self.constraints = self.loading = None


class Engine:
    """A model on a thread of its own, that batches everything submitted to it.

        async with Engine(EngineConfig(Path("model.gguf"))) as engine:
            prompt = engine.tokenize("Once upon a time")
            async for event in engine.submit(GenerationRequest(prompt, max_tokens=20)):
                ...

    Safe to use from several threads and event loops. Nothing happens before :meth:`start`.
    """

    def __init__(
        self,
        config: EngineConfig | Path | str,
        *,
        open_backend: OpenBackend = _open_llama,
    ) -> None:
        if not isinstance(config, EngineConfig):
            config = EngineConfig(Path(config))
        self.config = config
        self._lock = threading.Lock()
        self._started = False
        self._n_submitted = 0
        self._shared = shared = _Shared()
        # The thread must not keep an abandoned engine alive, so it knows these, not self.
        self._worker: Worker[Message] = Worker(
            f"openai_local {config.model.name}",
            lambda: _open(config, open_backend, shared, worker_ref),
        )
        worker_ref = weakref.ref(self._worker)
        self._worker.died.add_done_callback(lambda _: shared.end())
        # Runs at the interpreter's exit too, before a thread in C code could crash it.
        self._finalizer = weakref.finalize(self, _abandon, self._worker)

    async def __aenter__(self) -> Engine:
        await self.ready()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def start(self) -> Future[ModelInfo]:
        """Start loading, once; the future says when the model is loaded or why it is not.

        Raises EngineStopped in a process that was forked after the start.
        """
        self._check_process()
        with self._lock:
            if not self._started:
                self._worker.start()
                self._started = True
        return self._shared.ready

    async def ready(self) -> ModelInfo:
        """Start if needed and wait for the model. Raises ModelLoadFailed, EngineStopped."""
        return await bridge.wait(self.start())

    @property
    def alive(self) -> bool:
        """Whether the model is loaded and its thread runs."""
        return self._shared.core is not None and self._worker.alive

    @property
    def load_progress(self) -> float:
        """How much of the weights is read, from 0 to 1; 1 is not yet loaded."""
        return 0.0 if self._shared.loading is None else self._shared.loading.fraction

    def on_end(self, callback: Callable[[bool], None]) -> None:
        """Have ``callback`` called at the end of the engine's thread, which calls it, when all
        memory is free, with whether it ended though nobody asked. For an engine that was started.
        """
        self._worker.died.add_done_callback(lambda died: callback(died.result()))

    @property
    def info(self) -> ModelInfo:
        """Of the loaded model. Raises EngineStopped before."""
        if self._shared.vocabulary is None or not self._shared.ready.done():
            raise EngineStopped
        return self._shared.ready.result(0)

    @property
    def vocabulary(self) -> Vocabulary:
        """Text to tokens and back, on any thread. Raises EngineStopped before the load."""
        if self._shared.vocabulary is None:
            raise EngineStopped
        return self._shared.vocabulary

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Token ids of ``text``, with the model's begin-of-text token if it wants one."""
        return self.vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special)

    def compile(self, constraint: Constraint) -> CompiledConstraint:
        """A constraint for requests to this engine. Blocks: not for the event loop's thread.

        What was compiled is kept, so that the same one costs nothing the next time.
        Raises InvalidConstraint, ConstraintUnsupported, Unsupported, EngineStopped.
        """
        if self._shared.constraints is None:
            raise EngineStopped
        return self._shared.constraints.compile(constraint)

    async def compiled(self, constraint: Constraint) -> CompiledConstraint:
        """As :meth:`compile`, from within an event loop."""
        if self._shared.constraints is None:
            raise EngineStopped
        future = self._shared.constraints.begin(constraint)
        try:
            return await bridge.wait(future, MAX_SECONDS)
        except TimeoutError:
            raise too_slow() from None

    def submit(self, request: GenerationRequest) -> bridge.Generation:
        """Start a generation, from within an event loop. Returns at once.

        Raises EmptyPrompt, InvalidToken, InvalidSampling, PromptTooLong, Unsupported,
        EngineStopped.
        """
        info = self.info
        constraint = request.constraint
        if constraint is not None and not (
            isinstance(constraint, Compiled) and constraint.vocabulary is self._shared.vocabulary
        ):
            raise InvalidConstraint(None, "it was not compiled by this engine")
        if not info.can_generate:
            raise Unsupported("text generation")
        self.check_prompt(request.prompt_tokens)
        for token in request.sampling.logit_bias:
            if not 0 <= token < info.n_vocab:
                raise InvalidToken(token, info.n_vocab, "logit_bias")
        for token in request.stop_tokens:
            if not 0 <= token < info.n_vocab:
                raise InvalidToken(token, info.n_vocab, "stop_token_ids")
        check(request.sampling)
        if request.logprobs is None and request.prompt_logprobs:
            raise InvalidSampling("prompt_logprobs", "needs logprobs")
        if request.logprobs is not None and request.logprobs < 0:
            raise InvalidSampling("logprobs", "is less than 0")
        self._check_process()
        generation = bridge.Generation(self._cancel)
        with self._lock:
            # What the engine has counted as ended is never more than what was submitted here.
            n_unfinished = self._n_submitted - self._shared.n_ended
            if n_unfinished >= self.n_unfinished_max:
                raise QueueFull(n_unfinished, self.n_unfinished_max)
            if not self._worker.post(Submit(generation, request)):
                raise EngineStopped
            self._n_submitted += 1
        return generation

    @property
    def n_unfinished_max(self) -> int:
        """How many generations may run and wait at once. Raises EngineStopped before the load."""
        return self.info.n_parallel + self.config.max_waiting

    async def embed(self, inputs: Sequence[Sequence[int]]) -> Floats:
        """Unit vectors of token sequences, shape (n_inputs, n_embd).

        Raises EmptyPrompt, InvalidToken, PromptTooLong, Unsupported, StepFailed, EngineStopped.
        """
        info = self.info
        if info.can_rank:
            raise Unsupported("embeddings: it is a reranker")
        return await self._pooled(inputs, info.n_embd)

    async def rank(self, inputs: Sequence[Sequence[int]]) -> Floats:
        """The model's scores of token sequences, a query and a document each, shape (n_inputs,).

        Raises as :meth:`embed` does.
        """
        if not self.info.can_rank:
            raise Unsupported("reranking")
        return (await self._pooled(inputs, 1))[:, 0]

    async def _pooled(self, inputs: Sequence[Sequence[int]], n_columns: int) -> Floats:
        n_max = self.info.n_ctx
        for tokens in inputs:
            self._check_tokens(tokens, n_max)
        if not inputs:
            return np.empty((0, n_columns), np.float32)
        job = EmbeddingJob(inputs)
        if not self._worker.post(job):
            raise EngineStopped
        try:
            return await bridge.wait(job.future)
        finally:
            job.future.cancel()

    def metrics(self) -> EngineMetrics:
        """A snapshot of the counters; all zero before the model is loaded."""
        return self._shared.metrics()

    def stop(self) -> None:
        """Ask the thread to end, without waiting for it."""
        self._worker.stop()

    async def aclose(self) -> None:
        """Stop the thread and free the model; whoever waits gets EngineStopped."""
        self.stop()
        await bridge.in_thread(self.close)

    def close(self) -> None:
        """As :meth:`aclose`, blocking."""
        if self._worker.forked:
            return
        with self._lock:
            if not self._started:
                self._started = True
                self._shared.ready.set_exception(EngineStopped())
        # The interpreter's exit may not wait for whoever waits here, so it waits for the thread.
        _end(self._worker)
        self._finalizer.detach()

    def _check_process(self) -> None:
        if self._worker.forked:
            raise EngineStopped

    def _cancel(self, generation: bridge.Generation) -> None:
        self._worker.post(Cancel(generation))

    def check_prompt(self, tokens: Sequence[int]) -> None:
        """Raises EmptyPrompt, InvalidToken, PromptTooLong."""
        self._check_tokens(tokens, self.info.n_ctx - 1)

    def _check_tokens(self, tokens: Sequence[int], n_max: int) -> None:
        if not tokens:
            raise EmptyPrompt
        if len(tokens) > n_max:
            raise PromptTooLong(len(tokens), n_max)
        self.check_tokens(tokens)

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Raises InvalidToken for one that is not in the vocabulary."""
        n_vocab = self.info.n_vocab
        lowest, highest = min(tokens, default=0), max(tokens, default=0)
        if lowest < 0 or highest >= n_vocab:
            raise InvalidToken(lowest if lowest < 0 else highest, n_vocab)


def _open(
    config: EngineConfig,
    open_backend: OpenBackend,
    shared: _Shared,
    worker_ref: Callable[[], Worker[Message] | None],
) -> EngineCore:
    worker = worker_ref()
    assert worker is not None, "a worker opens itself"
    take: Any = worker.take
    shared.loading = loading = Loading(config.model.name, lambda: worker.stopping)
    try:
        backend = open_backend(config, loading)
        try:
            core = EngineCore(backend, config, take, bridge.deliver, _poster(worker_ref))
        except BaseException:
            backend.close()
            raise
    except Exception as error:
        if not isinstance(error, (ModelLoadFailed, EngineStopped)):
            logger.exception("loading %s failed", config.model)
            error = ModelLoadFailed(config.model, str(error) or repr(error))
        shared.ready.set_exception(error)
        raise
    shared.vocabulary = backend.vocabulary
    shared.constraints = ConstraintCompiler(backend.vocabulary)
    shared.core = core
    shared.ready.set_result(backend.info)
    return core


def _poster(worker_ref: Callable[[], Worker[Message] | None]) -> Callable[[Message], object]:
    """Posts to the worker as long as there is one."""
    return lambda message: worker.post(message) if (worker := worker_ref()) else None


def _abandon(worker: Worker[Message]) -> None:
    """Of an engine that nobody has any more, on any thread; or at the interpreter's exit."""
    if not threading.main_thread().is_alive():
        _end(worker)
        return
    # The garbage collector may run on a thread that holds what the worker needs for its end.
    worker.stop()
    atexit.register(worker.join, STOP_TIMEOUT_S)
    worker.died.add_done_callback(lambda _: atexit.unregister(worker.join))


def _end(worker: Worker[Message]) -> None:
    worker.stop()
    if not worker.join(STOP_TIMEOUT_S):
        logger.error("the engine's thread did not end within %.0f s", STOP_TIMEOUT_S)
