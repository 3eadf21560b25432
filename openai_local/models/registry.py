"""Name to loaded model: which file, which engine, loaded once on first use. Knows no HTTP."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from openai_local.chat_language import ChatLanguage
from openai_local.chat_template import ChatTemplate, TemplateError
from openai_local.config import ConfigError, Settings
from openai_local.engine import Engine, EngineConfig, EngineStopped, ModelInfo, ModelLoadFailed
from openai_local.engine.bridge import wait
from openai_local.models.files import (
    SMOLLM2_ID,
    NoModel,
    default_id,
    packaged_smollm2,
    requantized,
)

logger = logging.getLogger(__name__)

# An engine that dies again sooner after its load is loaded by the next request only.
MIN_LIFE_S = 60.0

OpenEngine = Callable[[EngineConfig], Engine]


class UnknownModel(Exception):
    """``name`` is none of the models in ``known``."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"no model {name!r}; there are: {', '.join(known)}")
        self.name = name
        self.known = known


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to use. ``language`` None: it cannot chat, ``no_chat`` says why."""

    id: str
    engine: Engine
    info: ModelInfo
    template: ChatTemplate | None
    no_chat: str
    language: ChatLanguage | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why requests would not be served now; ``code`` names it for programs."""

    code: str
    message: str


@dataclass(slots=True)
class _Entry:
    id: str
    file: Callable[[], Path]
    created: int = field(default_factory=lambda: int(time.time()))
    engine: Engine | None = None
    loaded: LoadedModel | None = None
    loading: Future[LoadedModel] | None = None
    loaded_s: float = 0.0
    n_deaths: int = 0
    failure: str | None = None


class Registry:
    """The models of one application, by name. Safe from several threads and event loops."""

    def __init__(self, settings: Settings, open_engine: OpenEngine = Engine) -> None:
        self._settings = settings
        self._open_engine = open_engine
        self._lock = threading.Lock()
        self._closed = False
        self._entries: dict[str, _Entry] = {}
        self.default_id = self._add_default()
        self.embedding_id = self.default_id
        if settings.embedding_model is not None:
            path = settings.embedding_model
            self.embedding_id = settings.embedding_model_id or default_id(path)
            if self.embedding_id == self.default_id:
                raise ConfigError(
                    f"model and embedding_model are both called {self.default_id!r};"
                    " set embedding_model_id"
                )
            self._entries[self.embedding_id] = _Entry(self.embedding_id, lambda: path)

    def list(self) -> list[tuple[str, int]]:
        """Ids, and when each was made known, in Unix seconds."""
        return [(entry.id, entry.created) for entry in self._entries.values()]

    def find(self, name: str) -> tuple[str, int]:
        """Raises UnknownModel."""
        entry = self._entry(name)
        return entry.id, entry.created

    def trouble(self) -> Trouble | None:
        """A load that is going or has failed, or an engine that died; None if all is well."""
        with self._lock:
            for entry in self._entries.values():
                if entry.loading is not None:
                    return Trouble("model_loading", f"the model {entry.id!r} is being loaded")
                if entry.failure is not None:
                    return Trouble("model_load_failed", entry.failure)
                if entry.loaded is not None and not entry.loaded.engine.alive:
                    return Trouble("engine_stopped", f"the engine of {entry.id!r} is stopped")
        return None

    def open(self) -> None:
        """Let models be loaded (again, after :meth:`aclose`)."""
        with self._lock:
            self._closed = False

    def loaded(self, name: str) -> LoadedModel | None:
        """The model if it is loaded and works. Raises UnknownModel."""
        loaded = self._entry(name).loaded
        return loaded if loaded is not None and loaded.engine.alive else None

    async def get(self, name: str) -> LoadedModel:
        """The model, loaded by the first who asks while the others wait.

        After a failed load, or when the engine has died, the next request loads again.

        Raises UnknownModel, NoModel, ModelLoadFailed, EngineStopped.
        """
        entry = self._entry(name)
        with self._lock:
            if self._closed:
                raise EngineStopped
            if entry.loaded is not None and entry.loaded.engine.alive:
                return entry.loaded
            future = entry.loading or self._start_load(entry)
        return await wait(future)

    def _start_load(self, entry: _Entry) -> Future[LoadedModel]:
        """With the lock held."""
        future = entry.loading = Future()
        # Finding the file may requantise it, which takes a while: not on the loop. Not a
        # daemon either: the interpreter waits for it rather than crash in C code.
        thread = threading.Thread(target=self._load, args=(entry, future), name=f"load {entry.id}")
        try:
            thread.start()
        except RuntimeError:
            entry.loading = None
            raise
        return future

    def _restart(self, name: str) -> None:
        """An engine died: load it again, so that readiness comes back without a request."""
        entry = self._entry(name)
        with self._lock:
            dies_at_once = time.monotonic() - entry.loaded_s < MIN_LIFE_S
            entry.n_deaths = entry.n_deaths + 1 if dies_at_once else 1
            if self._closed or entry.loading is not None or entry.n_deaths > 1:
                return
            logger.warning("the engine of %s died: loading it again", name)
            with suppress(RuntimeError):  # no thread can be started any more
                self._start_load(entry)

    async def aclose(self) -> None:
        """Stop all engines; those who wait get EngineStopped."""
        with self._lock:
            self._closed = True
            engines = [entry.engine for entry in self._entries.values() if entry.engine]
            loads = [entry.loading for entry in self._entries.values() if entry.loading]
            for engine in engines:
                engine.stop()
        for engine in engines:
            await engine.aclose()
        with self._lock:
            for entry in self._entries.values():
                if entry.engine in engines:
                    entry.engine = entry.loaded = None
        for load in loads:
            with suppress(Exception):
                await wait(load)

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownModel(name, tuple(self._entries)) from None

    def _add_default(self) -> str:
        settings = self._settings
        if settings.model is not None:
            path = settings.model
            entry = _Entry(settings.model_id or default_id(path), lambda: path)
        else:
            entry = _Entry(settings.model_id or SMOLLM2_ID, self._packaged)
        self._entries[entry.id] = entry
        return entry.id

    def _packaged(self) -> Path:
        path = packaged_smollm2()
        if path is None:
            raise NoModel
        if not self._settings.requantize:
            return path
        try:
            return requantized(path)
        except OSError as error:
            logger.warning("using %s as it is: it cannot be requantised: %s", path.name, error)
            return path

    def _load(self, entry: _Entry, future: Future[LoadedModel]) -> None:
        try:
            engine = self._open_engine(self._settings.engine(entry.file()))
            with self._lock:
                if self._closed:
                    raise EngineStopped
                entry.engine = engine
            ready = engine.start()
        except Exception as error:
            if isinstance(error, OSError):
                error = ModelLoadFailed(self._settings.model or Path(entry.id), str(error))
            self._fail(entry, future, error)
            return
        # Nobody waits: the rest is done where the load ends, on the engine's thread.
        ready.add_done_callback(lambda ready: self._finish(entry, future, engine, ready))

    def _finish(
        self,
        entry: _Entry,
        future: Future[LoadedModel],
        engine: Engine,
        ready: Future[ModelInfo],
    ) -> None:
        try:
            info = ready.result()
            template, no_chat = self._template(engine, info)
            language = None
            if template is not None:
                language, no_chat = _language(template, engine)
            loaded = LoadedModel(entry.id, engine, info, template, no_chat, language)
            with self._lock:
                if self._closed or entry.engine is not engine:
                    raise EngineStopped
                entry.loaded, entry.loading, entry.failure = loaded, None, None
                entry.loaded_s = time.monotonic()
        except Exception as error:
            engine.stop()
            if isinstance(error, OSError):
                error = ModelLoadFailed(engine.config.model, str(error))
            self._fail(entry, future, error)
        else:
            future.set_result(loaded)
            # The thread must not keep an abandoned registry alive.
            registry, name = weakref.ref(self), entry.id
            engine.on_death(lambda: r._restart(name) if (r := registry()) else None)

    def _fail(self, entry: _Entry, future: Future[LoadedModel], error: Exception) -> None:
        with self._lock:
            entry.loading = None
            entry.failure = None if isinstance(error, EngineStopped) else str(error)
        future.set_exception(error)

    def _template(self, engine: Engine, info: ModelInfo) -> tuple[ChatTemplate | None, str]:
        source = info.chat_template
        if self._settings.chat_template is not None:
            source = self._settings.chat_template.read_text(encoding="utf-8")
        if not info.can_generate:
            return None, "the model makes embeddings only"
        if source is None:
            return None, "the model has no chat template; the setting chat_template names one"
        try:
            template = ChatTemplate(
                source,
                bos_token=info.bos_token,
                eos_token=info.eos_token,
                control_tokens=engine.vocabulary.control_tokens,
            )
        except TemplateError as error:
            return None, str(error)
        return template, ""


def _language(template: ChatTemplate, engine: Engine) -> tuple[ChatLanguage | None, str]:
    """What a template makes of probes; a model whose template fails is still one for texts."""
    try:
        return ChatLanguage(template, engine.vocabulary), ""
    except EngineStopped:
        raise
    except Exception as error:
        logger.exception("the chat template cannot be understood")
        return None, f"its chat template cannot be understood: {error!r}"
