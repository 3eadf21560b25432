"""The devices that llama.cpp sees, and which layers of a model it puts where. Loads no model."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


# Where llama.cpp uses one that its registry does not tell us.
UNKNOWN_GPU = Device("a GPU", "not told", "gpu", 0, 0)


@dataclass(frozen=True, slots=True)
class Placement:
    """``n_gpu_layers`` of ``n_layers`` are on ``gpus``, such as "CUDA0 (NVIDIA H100)", which have
    ``free_bytes`` of memory of their own; 0 where that is the host's, or is not told."""

    n_layers: int
    n_gpu_layers: int = 0
    gpus: tuple[str, ...] = ()
    free_bytes: int = 0

    @property
    def kv_share(self) -> float:
        """Of the keys and values, what is in memory of the GPUs' own: a layer's are where it is,
        and the output, the first of all to be placed, has none."""
        if not self.free_bytes or self.n_layers < 2:
            return 0.0
        return max(0, self.n_gpu_layers - 1) / (self.n_layers - 1)


def place(asked: int, n_layers: int, devices: Sequence[Device]) -> Placement:
    """Where llama.cpp puts the ``n_layers`` of a model and, counted as one more, its output:
    ``asked`` of them, the last ones, on all GPUs, or on the first integrated one if there is no
    other. -1 asks for all."""
    n_layers += 1
    gpus = [device for device in devices if device.kind == "gpu"]
    gpus = gpus or [device for device in devices if device.kind == "igpu"][:1]
    n_placed = n_layers if asked < 0 else min(asked, n_layers)
    if not gpus or not n_placed:
        return Placement(n_layers)
    return Placement(
        n_layers,
        n_placed,
        tuple(f"{gpu.name} ({gpu.description})" for gpu in gpus),
        sum(gpu.free_bytes for gpu in gpus if gpu.kind == "gpu"),
    )


def list_devices() -> tuple[Device, ...]:
    """From ggml's own registry, of which llama-cpp-python has no bindings; none where it is
    packaged in another way."""
    try:
        registry, base = _libraries()
        count = _function(registry, "ggml_backend_dev_count", ctypes.c_size_t)
        get = _function(registry, "ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    except (ImportError, AttributeError, FileNotFoundError, RuntimeError):
        return ()
    return tuple(_device(base, get(i)) for i in range(count()))


def list_backends() -> tuple[str, ...]:
    """What it was built for, such as CPU, CUDA or MTL, also without such a device."""
    try:
        registry, base = _libraries()
        count = _function(registry, "ggml_backend_reg_count", ctypes.c_size_t)
        get = _function(registry, "ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t)
        name = _function(base, "ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
    except (ImportError, AttributeError, FileNotFoundError, RuntimeError):
        return ()
    return tuple(name(get(i)).decode() for i in range(count()))


def _libraries() -> tuple[Any, Any]:
    from llama_cpp._ctypes_extensions import load_shared_library
    from llama_cpp._ggml import libggml, libggml_base_path

    return libggml, load_shared_library("ggml-base", libggml_base_path)


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
