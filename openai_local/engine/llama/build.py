"""What llama.cpp was built with, and the devices that it sees. Loads no model.

``python -m openai_local.engine.llama.build`` prints it as JSON: a build for another machine can
end the process that loads it, so whoever examines one does it in a process of its own.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import llama_cpp as lib

from openai_local.engine.llama.devices import Device, list_backends, list_devices
from openai_local.engine.llama.library import prepare_process


@dataclass(frozen=True, slots=True)
class Build:
    """``features`` are those of ``llama_print_system_info``, as "CPU.AVX2"."""

    version: str
    library: str
    features: tuple[str, ...]
    backends: tuple[str, ...]
    devices: tuple[Device, ...]


def build() -> Build:
    """Of the installed llama.cpp."""
    prepare_process()
    return Build(
        version=lib.__version__,
        library=str(Path(lib.__file__).parent / "lib"),
        features=features(lib.llama_print_system_info().decode()),
        backends=list_backends(),
        devices=list_devices(),
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


if __name__ == "__main__":
    json.dump(asdict(build()), sys.stdout)
