"""The engine's settings, resolved by the backend when it opens the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CacheType = Literal["f16", "q8_0", "q4_0"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What to load and how. None leaves the choice to the engine.

    Sizes are in tokens. ``n_ctx`` is the longest sequence, ``n_parallel`` how many run at once;
    with ``kv_unified`` False each owns ``n_ctx`` cells of KV memory, with True they share a pool of
    at most ``kv_memory`` bytes, and with None that is so where they would not fit it otherwise.
    Keys and values are stored as ``cache_type_k`` and ``cache_type_v``. ``cache_ram`` bytes hold
    the states of what lost its place in that memory; 0 is none; ``cache_dir``, if given, holds at
    most ``cache_disk`` bytes of them on disk, over restarts. ``n_gpu_layers`` -1 means all.
    ``target_itl_ms`` bounds the time between two tokens of a stream while prompts are computed.
    Beyond ``max_waiting`` generations that wait for a place, more are refused.
    ``request_timeout_s`` bounds the time from a generation's arrival to its end.
    ``memory`` is what counts as free, in bytes, where defaults are shares of that; else it is what
    the machine has free when the model loads.
    """

    model: Path
    n_ctx: int | None = None
    n_parallel: int | None = None
    n_threads: int | None = None
    n_threads_batch: int | None = None
    n_gpu_layers: int = -1
    n_batch: int = 2048
    n_ubatch: int = 512
    flash_attn: bool | None = None
    kv_memory: int | None = None
    kv_unified: bool | None = None
    cache_type_k: CacheType = "f16"
    cache_type_v: CacheType = "f16"
    cache_ram: int | None = None
    cache_dir: Path | None = None
    cache_disk: int = 4 << 30
    use_mmap: bool = True
    target_itl_ms: float = 100.0
    max_waiting: int = 2048
    request_timeout_s: float | None = None
    memory: int | None = None
