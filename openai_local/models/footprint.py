"""The memory that a model takes, found before it is loaded: from its file and its options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from openai_local.engine import EngineConfig
from openai_local.engine.memory import CACHE_RAM_SHARE
from openai_local.models.estimate import estimate, generates, of_embeddings
from openai_local.models.gguf_file import read_header

# Tables and buffers that are counted nowhere; measured, rounded up.
OVERHEAD_BYTES = 16 << 20

# Gives an engine its share of a budget, and says what it takes of it.
Measure = Callable[[EngineConfig, int], tuple[EngineConfig, int]]


def within(config: EngineConfig, budget: int) -> tuple[EngineConfig, int]:
    """``config`` with what is left of ``budget`` beside the weights for the shares that caches
    take by default, and the bytes that such an engine takes in all, its caches full.

    They do not depend on what else is loaded, so that a model is the same whenever it is loaded.
    Raises InvalidGguf where the file is not sound.
    """
    header = read_header(config.model)
    memory = max(0, budget - header.n_weight_bytes)
    need = estimate(header, config, memory)
    n_bytes = need.n_total + OVERHEAD_BYTES
    if generates(header):
        states = int(memory * CACHE_RAM_SHARE) if config.cache_ram is None else config.cache_ram
        n_bytes += states + of_embeddings(header, config, need.plan, memory)
    return replace(config, memory=memory), n_bytes
