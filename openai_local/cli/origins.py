"""The settings as they hold, where each comes from, and what an unset one becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ByteSize

from openai_local.config import ENV_PREFIX, ModelTable, Settings, load_settings, setting_origins
from openai_local.engine.machine import free_memory, physical_cores
from openai_local.engine.memory import CACHE_RAM_SHARE, KV_SHARE
from openai_local.models.catalog import Catalog
from openai_local.models.files import packaged_smollm2

HIDDEN = "(hidden)"
SECRET = "api_key"
AT_LOAD = "chosen at load"


@dataclass(frozen=True, slots=True)
class Effective:
    """One setting. ``origin`` is argument, environment, file or default, and ``where`` names the
    option, the variable or the file; ``becomes`` says what one that is not set comes to."""

    name: str
    value: Any
    origin: str
    where: str | None
    becomes: str | None


def effective(options: Mapping[str, Any]) -> Iterator[Effective]:
    """All settings, those of the models in their tables included. Raises ConfigError."""
    settings = load_settings(**options)
    origins = setting_origins(**options)
    for name in Settings.model_fields:
        if name == "models":
            continue
        value = getattr(settings, name)
        becomes = _becomes(name, settings) if value is None else None
        yield Effective(
            name, _shown(name, value), *_origin(origins.get(name), name, value), becomes
        )
    for id, table in settings.models.items():
        for field in ModelTable.model_fields:
            if field in table.model_fields_set:
                name = f"models.{id}.{field}"
                value = _shown(field, getattr(table, field))
                yield Effective(name, value, *_origin(origins.get(name), name, value), None)


def _origin(source: str | None, name: str, value: Any) -> tuple[str, str | None]:
    if source is None:
        return "default", None
    if source == "argument":
        return "argument", ("--no-" if value is False else "--") + name.replace("_", "-")
    if source.upper().startswith(ENV_PREFIX):
        return "environment", source
    return "file", source


def _shown(name: str, value: Any) -> Any:
    """As JSON has it."""
    if value is None or isinstance(value, (bool, float)):
        return value
    if name == SECRET:
        return HIDDEN
    if isinstance(value, int):
        return int(value)
    return [str(part) for part in value] if isinstance(value, tuple) else str(value)


def _becomes(name: str, settings: Settings) -> str:
    chosen = _CHOICES.get(name)
    return chosen(settings) if chosen else "none"


def _size(share: float) -> str:
    return f"{ByteSize(int(free_memory() * share)).human_readable()} at this moment"


def _file(settings: Settings) -> str:
    if settings.models or settings.models_dir is not None:
        return "none"
    return str(packaged_smollm2() or "none: the packaged SmolLM2 is not installed")


def _default_model(settings: Settings) -> str:
    return Catalog(settings).default_id


_CHOICES: dict[str, Callable[[Settings], str]] = {
    "model": _file,
    "model_id": lambda settings: "from the file's name",
    "embedding_model_id": lambda settings: "from the file's name",
    "default_model": _default_model,
    "n_threads": lambda settings: str(physical_cores()),
    "n_threads_batch": lambda settings: str(settings.n_threads or physical_cores()),
    "kv_memory": lambda settings: f"{_size(KV_SHARE)}; of a GPU's memory half",
    "cache_ram": lambda settings: _size(CACHE_RAM_SHARE),
    "n_ctx": lambda settings: AT_LOAD,
    "n_parallel": lambda settings: AT_LOAD,
    "kv_unified": lambda settings: AT_LOAD,
    "flash_attn": lambda settings: AT_LOAD,
    "models_memory": lambda settings: "three quarters of what is free, where there are several",
}
