"""The memory that a model takes, found before it is loaded: from its file and its options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from openai_local.engine import EngineConfig
from openai_local.engine.memory import CACHE_RAM_SHARE, KV_SHARE
from openai_local.models.gguf_file import read_header

# Buffers for what is computed, and all that is counted nowhere.
OVERHEAD_BYTES = 64 << 20

# Gives an engine its share of a budget, and says what it takes of it.
Measure = Callable[[EngineConfig, int], tuple[EngineConfig, int]]


def within(config: EngineConfig, budget: int) -> tuple[EngineConfig, int]:
    """``config`` with what is left of ``budget`` beside the weights for the shares that caches
    take by default, and the bytes that such an engine takes in all.

    They do not depend on what else is loaded, so that a model is the same whenever it is loaded.
    Raises InvalidGguf where the file is not sound.
    """
    weights = read_header(config.model).n_weight_bytes
    memory = max(0, budget - weights - OVERHEAD_BYTES)
    config = replace(config, memory=memory)
    kv = int(memory * KV_SHARE) if config.kv_memory is None else config.kv_memory
    states = int(memory * CACHE_RAM_SHARE) if config.cache_ram is None else config.cache_ram
    return config, weights + OVERHEAD_BYTES + kv + states
