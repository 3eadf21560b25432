"""A model that says what it is told to, in an application of its own or in that of a host."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from openai_local.application import Application
from openai_local.config import Settings, load_settings
from openai_local.engine import (
    DeadlineExceeded,
    Engine,
    EngineConfig,
    EngineError,
    EngineStopped,
    Generation,
    GenerationRequest,
    QueueFull,
    SamplingParams,
    StepFailed,
)
from openai_local.engine.backend import Vocabulary
from openai_local.models.files import SMOLLM2_ID
from openai_local.models.sources import default_id
from openai_local.testing.backend import FakeBackend
from openai_local.testing.draw import PieceVocabulary, ScriptedDraw, fails
from openai_local.testing.script import END, START, TEMPLATE, FakeRequest, Reply, read

FILE = Path("fake.gguf")

Said = str | Reply
Script = Said | Sequence[Said] | Callable[[FakeRequest], Said]


class FakeModel:
    """Says one reply always, those of a list one after the other, or what a function gives.

        model = FakeModel(["Hello!", Reply(calls=[("get_weather", {"city": "Rome"})])])
        with model.serving(local):  # the host's application answers by it
            ...
        assert model.requests[0].last == "Hi!"

    Without a script it says what was said to it. A request that wants a format that its reply has
    not gets the shortest text that has it. Whatever is in a request about sampling, it says the
    same. A byte of a prompt is a token, and so is a word of a reply, or, in a request with tools
    or a format, a byte.
    """

    def __init__(
        self, script: Script | None = None, *, n_ctx: int = 32_768, n_parallel: int = 4
    ) -> None:
        self.requests: list[FakeRequest] = []
        self.script = script
        self._n_ctx = n_ctx
        self._n_parallel = n_parallel
        self._lock = threading.Lock()
        self._n_said = 0
        self._tickets = itertools.count()
        self._due: dict[int, tuple[Reply, FakeRequest]] = {}
        self._engines: list[Engine] = []

    @property
    def script(self) -> Script | None:
        """What it says; a list that is set is said from its beginning."""
        return self._script

    @script.setter
    def script(self, script: Script | None) -> None:
        self._script = (
            script
            if isinstance(script, str | Reply) or callable(script)
            else (None if script is None else list(script))
        )
        self._n_said = 0

    def app(self, **options: Any) -> Application:
        """An application with this model, called ``fake`` unless ``model_id`` says otherwise."""
        return Application(load_settings(**{"model": FILE, **options}), self.open, _measure)

    @contextmanager
    def serving(self, local: Application) -> Iterator[FakeModel]:
        """Within it, ``local`` has this model in place of all of its own, by their names."""
        own = dict(vars(local))
        local.settings = _without_files(local.settings)
        local._open_engine, local._measure = self.open, _measure
        local._open()
        try:
            yield self
        finally:
            vars(local).clear()
            vars(local).update(own)
            self.close()

    def close(self) -> None:
        """Stop the engines that run on it. Safe to repeat."""
        engines, self._engines = self._engines, []
        for engine in engines:
            engine.close()

    def open(self, config: EngineConfig) -> Engine:
        """An engine on this model, as an application opens them."""
        engine = _FakeEngine(
            self,
            config,
            open_backend=lambda config, stopping: _FakeBackend(self, self._n_ctx, self._n_parallel),
        )
        self._engines.append(engine)
        return engine

    def _take(self, request: FakeRequest, *, may_call: bool) -> int:
        """The number of the reply that ``request`` gets. Raises the error that it gets instead."""
        with self._lock:
            self.requests.append(request)
            reply = self._reply(request)
        if reply.fails is not None and not reply.pieces():
            raise _error(reply.fails)
        if reply.calls and not may_call:
            raise StepFailed("the fake model's reply calls a tool, and the request allows none")
        number = next(self._tickets)
        self._due[number] = reply, request
        return number

    def _drop(self, number: int) -> None:
        """Nobody waits for that reply."""
        self._due.pop(number, None)

    def _draw(self, vocabulary: PieceVocabulary, number: int) -> ScriptedDraw:
        """What says that reply."""
        reply, request = self._due.pop(number)
        return ScriptedDraw(
            vocabulary,
            reply.pieces(thinks=not request.text.endswith("</think>\n\n")),
            delay_s=reply.delay_s,
            strict=bool(reply.calls),
            end=fails(None if reply.fails is None else _error(reply.fails)),
        )

    def _reply(self, request: FakeRequest) -> Reply:
        script = self._script
        if callable(script):
            said = script(request)
        elif script is None:
            said = request.last
        elif isinstance(script, str | Reply):
            said = script
        else:
            if self._n_said >= len(script):
                raise StepFailed(f"the fake model has said all of its {len(script)} replies")
            said = script[self._n_said]
            self._n_said += 1
        return Reply(said) if isinstance(said, str) else said


class _FakeBackend(FakeBackend):
    """Makes no logits: its draws know what comes."""

    def __init__(self, model: FakeModel, n_ctx: int, n_parallel: int) -> None:
        super().__init__(
            n_ctx=n_ctx, n_slots=n_parallel, n_batch=2048, next_token=None, chat_template=TEMPLATE,
            vocabulary=PieceVocabulary((START, END), (END,)),
        )  # fmt: skip
        self._model = model

    def draw(self, sampling: SamplingParams, seed: int, prompt: Sequence[int]) -> ScriptedDraw:
        assert isinstance(self.vocabulary, PieceVocabulary)
        return self._model._draw(self.vocabulary, seed)


class _FakeEngine(Engine):
    """Finds the reply of each request as it comes, and tells the backend by its seed."""

    def __init__(self, model: FakeModel, config: EngineConfig, **options: Any) -> None:
        super().__init__(config, **options)
        self._model = model

    def submit(self, request: GenerationRequest) -> Generation:
        self.check_prompt(request.prompt_tokens)
        asked = request.sampling
        parts = list(_parts(request.prompt_tokens, self.vocabulary))
        number = self._model._take(read(parts), may_call=request.constraint is not None)
        sampling = SamplingParams(
            seed=number, logit_bias=asked.logit_bias, ignore_eos=asked.ignore_eos,
            min_tokens=asked.min_tokens,
        )  # fmt: skip
        try:
            return super().submit(replace(request, sampling=sampling))
        except BaseException:
            self._model._drop(number)
            raise


def _measure(config: EngineConfig, budget: int) -> tuple[EngineConfig, int]:
    """It takes no memory to speak of."""
    return config, 0


def _without_files(settings: Settings) -> Settings:
    """With models of the same names, none of which is looked for."""
    update: dict[str, Any] = {}
    if settings.model is not None or not (settings.models or settings.models_dir):
        known = SMOLLM2_ID if settings.model is None else default_id(settings.model)
        update |= {"model": FILE, "model_id": settings.model_id or known}
    if settings.embedding_model is not None:
        known = settings.embedding_model_id or default_id(settings.embedding_model)
        update |= {"embedding_model": FILE, "embedding_model_id": known}
    tables = settings.models.items()
    update["models"] = {name: table.model_copy(update={"path": FILE}) for name, table in tables}
    return settings.model_copy(update=update)


def _parts(tokens: Sequence[int], vocabulary: Vocabulary) -> Iterator[str]:
    """Texts and control tokens by turns; a text may be empty."""
    text = bytearray()
    for token in tokens:
        name = vocabulary.name(token)
        if name:
            yield text.decode("utf-8", "replace")
            yield name
            text.clear()
        else:
            text += vocabulary.piece(token)
    yield text.decode("utf-8", "replace")


def _error(status: int) -> EngineError:
    errors: dict[int, EngineError] = {
        429: QueueFull(1, 1),
        500: StepFailed("the fake model was told to fail"),
        503: EngineStopped(),
        504: DeadlineExceeded(1.0),
    }
    return errors[status]
