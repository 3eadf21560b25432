"""The memory that a model takes, found before it is loaded: from its file and its options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from openai_local.engine import EngineConfig, ModelLoadFailed
from openai_local.engine.memory import CACHE_RAM_SHARE, KV_SHARE

# Buffers for what is computed, and all that is counted nowhere.
OVERHEAD_BYTES = 64 << 20


def look_at(path: Path) -> int:
    """The bytes of a model's file. Raises ModelLoadFailed where there is no sound one."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelLoadFailed(path, "it is not a GGUF file")
            return file.seek(0, 2)
    except OSError as error:
        raise ModelLoadFailed(path, error.strerror or str(error)) from None


def within(config: EngineConfig, budget: int) -> tuple[EngineConfig, int]:
    """``config`` with what is left of ``budget`` beside the weights for the shares that caches
    take by default, and the bytes that such an engine takes in all.

    They do not depend on what else is loaded, so that a model is the same whenever it is loaded.
    Raises ModelLoadFailed where the file is not sound.
    """
    weights = look_at(config.model)
    memory = max(0, budget - weights - OVERHEAD_BYTES)
    config = replace(config, memory=memory)
    kv = int(memory * KV_SHARE) if config.kv_memory is None else config.kv_memory
    states = int(memory * CACHE_RAM_SHARE) if config.cache_ram is None else config.cache_ram
    return config, weights + OVERHEAD_BYTES + kv + states
