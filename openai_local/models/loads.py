"""One load of a model: its engine opened, its chat template understood. It does not know why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from openai_local.chat.language import ChatLanguage
from openai_local.chat.template import ChatTemplate, TemplateError
from openai_local.config import Use
from openai_local.engine import Engine, EngineConfig, EngineStopped, ModelInfo, ModelLoadFailed
from openai_local.engine.bridge import wait

logger = logging.getLogger(__name__)

OpenEngine = Callable[[EngineConfig], Engine]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to use. ``language`` None: it cannot chat, ``no_chat`` says why."""

    id: str
    engine: Engine
    info: ModelInfo
    template: ChatTemplate | None
    no_chat: str
    language: ChatLanguage | None = None
    use: Use = "both"


class Load:
    """Started once. ``done`` is called when the model is loaded, with it, or when it is not, with
    the reason; after that ``ended``, when all memory is free again, with whether the engine died.

    Both are called on the engine's thread, or by :meth:`start` where there never was one.
    """

    def __init__(
        self,
        id: str,
        config: EngineConfig,
        open_engine: OpenEngine,
        *,
        use: Use,
        chat_template: Path | None,
        done: Callable[[LoadedModel | Exception], None],
        ended: Callable[[bool], None],
    ) -> None:
        self.id = id
        self._config = config
        self._open_engine = open_engine
        self._use = use
        self._chat_template = chat_template
        self._done = done
        self._ended = ended
        self._engine: Engine | None = None
        self._stopping = False
        self._over: Future[None] = Future()

    @property
    def progress(self) -> float:
        return 0.0 if self._engine is None else self._engine.load_progress

    def start(self) -> None:
        try:
            self._engine = engine = self._open_engine(self._config)
            if self._stopping:
                raise EngineStopped
            ready = engine.start()
        except Exception as error:
            self._done(self._reason(error))
            _end(self._ended, self._over, False)
            return
        ready.add_done_callback(_once(lambda ready: self._finish(engine, ready)))
        ended, over = self._ended, self._over
        # The thread must not keep an abandoned engine alive, so it knows these, not self.
        engine.on_end(lambda died: _end(ended, over, died))

    def stop(self) -> None:
        """Give the load up, or unload the model, without waiting for it."""
        self._stopping = True
        if self._engine is not None:
            self._engine.stop()

    async def aclose(self) -> None:
        """As :meth:`stop`, until all memory is free."""
        self.stop()
        if self._engine is not None:
            await self._engine.aclose()
        else:
            await wait(self._over)

    def _reason(self, error: Exception) -> Exception:
        if isinstance(error, (OSError, RuntimeError)):  # of files, or of threads
            return ModelLoadFailed(self._config.model, str(error))
        return error

    def _finish(self, engine: Engine, ready: Future[ModelInfo]) -> None:
        outcome: LoadedModel | Exception
        try:
            outcome = self._understand(engine, ready.result())
        except Exception as error:
            engine.stop()
            outcome = self._reason(error)
        self._done(outcome)

    def _understand(self, engine: Engine, info: ModelInfo) -> LoadedModel:
        template, no_chat = self._template(engine, info)
        language = None
        if template is not None:
            language, no_chat = _language(template, engine)
        return LoadedModel(self.id, engine, info, template, no_chat, language, self._use)

    def _template(self, engine: Engine, info: ModelInfo) -> tuple[ChatTemplate | None, str]:
        source = info.chat_template
        if self._chat_template is not None:
            source = self._chat_template.read_text(encoding="utf-8")
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


def _once(callback: Callable[[Future[ModelInfo]], None]) -> Callable[[Future[ModelInfo]], None]:
    """A future keeps its callbacks for good, and this one has the engine that has the future."""
    left = [callback]
    return lambda ready: left.pop()(ready)


def _end(ended: Callable[[bool], None], over: Future[None], died: bool) -> None:
    ended(died)
    over.set_result(None)


def _language(template: ChatTemplate, engine: Engine) -> tuple[ChatLanguage | None, str]:
    """What a template makes of probes; a model whose template fails is still one for texts."""
    try:
        return ChatLanguage(template, engine.vocabulary), ""
    except EngineStopped:
        raise
    except Exception as error:
        logger.exception("the chat template cannot be understood")
        return None, f"its chat template cannot be understood: {error!r}"
