"""Which models are known, by what names, and where their files are. It loads none."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from openai_local.config import ConfigError, ModelTable, Settings, Use
from openai_local.models.directory import Directory
from openai_local.models.errors import UnknownModel
from openai_local.models.fetch import Fetcher
from openai_local.models.files import SMOLLM2_ID, NoModel, packaged_file
from openai_local.models.hub import Hub
from openai_local.models.sources import ModelSource, default_id

logger = logging.getLogger(__name__)

# For requests with unknown names the directory is looked into no more often.
RESCAN_S = 1.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A known model. ``file`` finds its file, makes it, or fetches it, which may take long.

    ``table`` has its own options, if it has any. ``essential``: without it the application is not
    ready to serve.
    """

    id: str
    file: Callable[[], Path] | Fetcher
    table: ModelTable | None = None
    essential: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    def find(self, stopping: Callable[[], bool]) -> Path:
        """Its file. Blocks; a download is given up where ``stopping`` holds, by EngineStopped.

        Raises NoModel, ModelLoadFailed, OSError.
        """
        return self.file.fetch(stopping) if isinstance(self.file, Fetcher) else self.file()

    @property
    def downloaded(self) -> float | None:
        """How much of it is there, from 0 to 1, while it is downloaded; else None."""
        return self.file.progress if isinstance(self.file, Fetcher) else None

    @property
    def aliases(self) -> tuple[str, ...]:
        return () if self.table is None else self.table.alias

    @property
    def pinned(self) -> bool:
        return self.table is not None and self.table.pinned

    @property
    def use(self) -> Use:
        return "both" if self.table is None else self.table.use


class Catalog:
    """The models of the settings, and those in their directory. Safe from several threads."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError where two have the same name, or the default is none of them."""
        self._settings = settings
        self._lock = threading.Lock()
        self._configured: dict[str, ModelSpec] = {}
        self._names: dict[str, str] = {}  # ids and aliases, to ids
        self._found: dict[str, ModelSpec] = {}  # in the directory
        self._scanned_at: float | None = None
        self._directory: Directory | None = None
        self._embedding_id: str | None = None
        self._add_all()
        if settings.models_dir is not None:
            if not settings.models_dir.is_dir():
                raise ConfigError(f"models_dir: there is no directory {settings.models_dir}")
            self._directory = Directory(settings.models_dir)
        elif settings.default_model is not None and settings.default_model not in self._names:
            known = ", ".join(self._configured)
            raise ConfigError(f"default_model: no model {settings.default_model!r} in {known}")

    @property
    def several(self) -> bool:
        """Whether there are, or may be, more models than the settings name by themselves."""
        return bool(self._settings.models) or self._directory is not None

    @property
    def names_default(self) -> bool:
        """Whether the settings say which model is the default, or there is but one."""
        settings = self._settings
        named = settings.default_model or settings.model
        return named is not None or not self.several

    def essential(self) -> list[ModelSpec]:
        return [spec for spec in self._configured.values() if spec.essential]

    def pinned(self) -> list[ModelSpec]:
        return [spec for spec in self._configured.values() if spec.pinned]

    @property
    def default_id(self) -> str:
        """Raises NoModel, UnknownModel."""
        specs = self.list()
        if self._settings.default_model is not None:
            return self.find(self._settings.default_model).id
        if not specs:
            raise NoModel(f"there is no GGUF file in {self._settings.models_dir}")
        return next((spec.id for spec in specs if spec.use != "embedding"), specs[0].id)

    @property
    def embedding_id(self) -> str:
        """Raises NoModel, UnknownModel."""
        if self._embedding_id is not None:
            return self._embedding_id
        return next((s.id for s in self.list() if s.use == "embedding"), None) or self.default_id

    def list(self) -> list[ModelSpec]:
        """Those of the settings, then those of the directory as it was last seen."""
        if self._scanned_at is None:
            self.scan()
        return [*self._configured.values(), *self._found.values()]

    def find(self, name: str) -> ModelSpec:
        """By id or alias, in the directory as it was last seen. Raises UnknownModel."""
        id = self._names.get(name)
        spec = self._found.get(name) if id is None else self._configured[id]
        if spec is None:
            raise UnknownModel(name, [spec.id for spec in self.list()])
        return spec

    def knows(self, name: str) -> bool:
        return name in self._names or name in self._found

    def is_stale(self, name: str) -> bool:
        """Whether a look into the directory could find ``name``, which is not known now."""
        if self._directory is None or self.knows(name):
            return False
        return self._scanned_at is None or time.monotonic() - self._scanned_at >= RESCAN_S

    def scan(self) -> None:
        """Look into the directory. Blocks."""
        with self._lock:
            paths = {} if self._directory is None else self._directory.scan()
            tables = [spec.table for spec in self._configured.values() if spec.table]
            ours = {t.path.absolute() for t in tables if isinstance(t.path, Path)}
            found: dict[str, ModelSpec] = {}
            for id, path in paths.items():
                if path.absolute() in ours:
                    continue  # it has a name, and options, already
                if id in self._names:
                    logger.debug("%s is left out: %r is another model's name", path, id)
                    continue
                known = self._found.get(id)
                found[id] = known or ModelSpec(id, lambda path=path: path)  # type: ignore[misc]
            self._found = found
            self._scanned_at = time.monotonic()

    def _add_all(self) -> None:
        settings = self._settings
        if settings.model is not None:
            id = settings.model_id or default_id(settings.model)
            file = self._file(settings.model)
            self._add(ModelSpec(id, file, essential=True), "model_id")
        elif not settings.models and settings.models_dir is None:
            find = packaged_file(settings.requantize)
            self._add(ModelSpec(settings.model_id or SMOLLM2_ID, find, essential=True), "model_id")
        if settings.embedding_model is not None:
            source = settings.embedding_model
            id = self._embedding_id = settings.embedding_model_id or default_id(source)
            self._add(ModelSpec(id, self._file(source), essential=True), "embedding_model_id")
        for id, table in settings.models.items():
            spec = ModelSpec(id, self._file(table.path), table, essential=table.pinned)
            self._add(spec, f"models.{id}")

    def _file(self, source: ModelSource) -> Callable[[], Path] | Fetcher:
        if isinstance(source, Path):
            return lambda: source
        return Fetcher(source, Hub(offline=self._settings.offline))

    def _add(self, spec: ModelSpec, setting: str) -> None:
        for name in (spec.id, *spec.aliases):
            if name in self._names:
                raise ConfigError(
                    f"{setting}: {name!r} is the name of another model, {self._names[name]!r}"
                )
            self._names[name] = spec.id
        self._configured[spec.id] = spec
