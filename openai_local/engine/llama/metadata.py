"""What a model file says of itself."""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path
from typing import Any

import llama_cpp as lib

from openai_local.engine.sampler_steps import RECOMMENDED


def text_of(call: Any, model: Any, *args: Any, size: int = 256) -> str:
    buffer = ctypes.create_string_buffer(size)
    n = call(model, *args, buffer, size)
    return buffer.value.decode(errors="replace") if n >= 0 else ""


def meta(model: Any, key: str) -> str:
    return text_of(lib.llama_model_meta_val_str, model, key.encode())


def arch(model: Any) -> str:
    return meta(model, "general.architecture")


def chat_template(model: Any, name: bytes | None = None) -> str | None:
    template = lib.llama_model_chat_template(model, name)
    return template.decode(errors="replace") if template else None


def pooling(model: Any) -> int:
    """How llama.cpp makes one vector of many; it is the mean where nothing is said."""
    declared = meta(model, f"{arch(model)}.pooling_type")
    given = int(declared) if declared else lib.LLAMA_POOLING_TYPE_NONE
    mean: int = lib.LLAMA_POOLING_TYPE_MEAN
    return mean if given == lib.LLAMA_POOLING_TYPE_NONE else given


def sampling_defaults(model: Any) -> dict[str, float]:
    """The GGUF's own recommended sampling (``general.sampling.*``), where it carries one."""
    values = {key: meta(model, f"general.sampling.{key}") for key in RECOMMENDED}
    return {key: float(value) for key, value in values.items() if value}


def file_digest(path: Path) -> str:
    """Tells model files apart by their size and 64 parts of them: a whole one takes too long."""
    size, part = path.stat().st_size, 1 << 16
    digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=16)
    with path.open("rb") as file:
        for i in range(64):
            file.seek(max(0, size - part) * i // 63)
            digest.update(file.read(part))
    return digest.hexdigest()
