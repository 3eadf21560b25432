"""What llama.cpp was built with, and the devices that it sees. Loads no model.

``python -m openai_local.engine.llama.build`` prints it as JSON: a build for another machine can
end the process that loads it, so whoever examines one does it in a process of its own.
"""

from __future__ import annotations

import ctypes
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import llama_cpp as lib

from openai_local.engine.llama.library import prepare_process

# ggml-backend.h: enum ggml_backend_dev_type.
_KINDS = ("cpu", "gpu", "igpu", "accel", "meta")


@dataclass(frozen=True, slots=True)
class Device:
    """``kind`` is cpu, gpu, igpu (with the host's memory) or accel. Memory in bytes."""

    name: str
    description: str
    kind: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Build:
    """``features`` are those of ``llama_print_system_info``, as "CPU.AVX2"."""

    version: str
    library: str
    features: tuple[str, ...]
    devices: tuple[Device, ...]
    gpu_offload: bool


def build() -> Build:
    """Of the installed llama.cpp."""
    prepare_process()
    return Build(
        version=lib.__version__,
        library=str(Path(lib.__file__).parent / "lib"),
        features=features(lib.llama_print_system_info().decode()),
        devices=_devices(),
        gpu_offload=bool(lib.llama_supports_gpu_offload()),
    )


def features(system_info: str) -> tuple[str, ...]:
    """Of "CPU : AVX2 = 1 | FMA = 0 | CUDA : ARCHS = 900 | " what is not 0, with its backend."""
    found, backend = [], ""
    for part in system_info.split("|"):
        before, has_backend, rest = part.rpartition(" : ")
        if has_backend:
            backend = before.strip()
        name, _, value = (word.strip() for word in rest.partition("="))
        if name and value != "0":
            found.append(f"{backend}.{name}" if value == "1" else f"{backend}.{name}={value}")
    return tuple(found)


def _devices() -> tuple[Device, ...]:
    """From ggml's own registry, of which llama-cpp-python has no bindings."""
    try:
        from llama_cpp._ctypes_extensions import load_shared_library
        from llama_cpp._ggml import libggml, libggml_base_path

        base = load_shared_library("ggml-base", libggml_base_path)
        count = _function(libggml, "ggml_backend_dev_count", ctypes.c_size_t)
        get = _function(libggml, "ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    except (ImportError, AttributeError, FileNotFoundError, RuntimeError):
        return ()  # another way of packaging them
    return tuple(_device(base, get(i)) for i in range(count()))


def _device(base: Any, handle: int) -> Device:
    name = _function(base, "ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
    description = _function(base, "ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
    kind = _function(base, "ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
    sizes = ctypes.POINTER(ctypes.c_size_t)
    memory = _function(base, "ggml_backend_dev_memory", None, ctypes.c_void_p, sizes, sizes)
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    memory(handle, ctypes.byref(free), ctypes.byref(total))
    number = kind(handle)
    return Device(
        name=name(handle).decode(),
        description=description(handle).decode().strip(),
        kind=_KINDS[number] if number < len(_KINDS) else str(number),
        free_bytes=free.value,
        total_bytes=total.value,
    )


def _function(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


if __name__ == "__main__":
    json.dump(asdict(build()), sys.stdout)
