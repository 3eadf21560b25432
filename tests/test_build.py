"""What the installed llama.cpp says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from assets import tiny

from openai_local.engine import EngineConfig
from openai_local.engine.llama import LlamaBackend
from openai_local.engine.llama.build import features
from openai_local.engine.llama.devices import UNKNOWN_GPU, Device, Placement, place


def test_features_carry_the_backend_that_has_them() -> None:
    said = "CUDA : ARCHS = 800,900 | USE_GRAPHS = 1 | CPU : SSE3 = 1 | AVX = 0 | LLAMAFILE = 1 | "
    assert features(said) == (
        "CUDA.ARCHS=800,900",
        "CUDA.USE_GRAPHS",
        "CPU.SSE3",
        "CPU.LLAMAFILE",
    )
    assert features("") == ()


def test_a_process_of_its_own_tells_the_build() -> None:
    command = [sys.executable, "-m", "openai_local.engine.llama.build"]
    told = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    build = json.loads(told)
    assert "CPU" in build["backends"]
    assert [device["kind"] for device in build["devices"]].count("cpu") == 1
    assert any(feature.startswith("CPU.") for feature in build["features"])
    assert any(Path(build["library"]).iterdir())


def a_device(name: str, kind: str) -> Device:
    return Device(name, f"the {name}", kind, 1, 2)


CPU, ONE, TWO = a_device("CPU", "cpu"), a_device("CUDA0", "gpu"), a_device("CUDA1", "gpu")
SHARED, OTHER = a_device("Vulkan0", "igpu"), a_device("Vulkan1", "igpu")
METAL, BLAS = a_device("MTL0", "gpu"), a_device("BLAS", "accel")


@pytest.mark.parametrize(
    ("asked", "devices", "n_gpu_layers", "gpus"),
    [
        (-1, [CPU], 0, []),
        (-1, [ONE, CPU], 31, ["CUDA0 (the CUDA0)"]),
        (0, [ONE, CPU], 0, []),
        (10, [ONE, CPU], 10, ["CUDA0 (the CUDA0)"]),
        (30, [ONE, CPU], 30, ["CUDA0 (the CUDA0)"]),  # its first layer is on the CPU
        (99, [ONE, TWO, CPU], 31, ["CUDA0 (the CUDA0)", "CUDA1 (the CUDA1)"]),
        (-1, [SHARED, OTHER, CPU], 31, ["Vulkan0 (the Vulkan0)"]),
        (-1, [SHARED, ONE, CPU], 31, ["CUDA0 (the CUDA0)"]),
        (-1, [METAL, BLAS, CPU], 31, ["MTL0 (the MTL0)"]),
    ],
)
def test_layers_are_counted_where_llama_cpp_puts_them(
    asked: int, devices: list[Device], n_gpu_layers: int, gpus: list[str]
) -> None:
    placement = place(asked, 30, devices)
    assert (placement.n_layers, placement.n_gpu_layers) == (31, n_gpu_layers)
    assert placement.gpus == tuple(gpus)


@pytest.mark.parametrize(
    ("asked", "devices", "n_bytes", "share"),
    [
        (-1, [CPU], 0, 0),
        (-1, [ONE, TWO, CPU], 2, 1),
        (11, [ONE, CPU], 1, 10 / 30),
        (1, [ONE, CPU], 1, 0),  # the output alone
        (-1, [SHARED, CPU], 0, 0),  # the host's memory
        (-1, [UNKNOWN_GPU], 0, 0),
    ],
)
def test_keys_and_values_are_where_their_layers_are(
    asked: int, devices: list[Device], n_bytes: int, share: float
) -> None:
    placement = place(asked, 30, devices)
    assert (placement.free_bytes, placement.kv_share) == (n_bytes, share)


@pytest.mark.model
def test_a_small_gpu_beside_much_ram_is_not_asked_for_more_than_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    tiny.llama(path)
    config = EngineConfig(path, n_threads=1)
    backend = LlamaBackend(config)
    by_default = backend.info.n_bytes_kv
    backend.close()
    small = Placement(3, 3, ("CUDA0 (small)",), free_bytes=by_default)
    monkeypatch.setattr(LlamaBackend, "_placement", lambda self: small)
    backend = LlamaBackend(config)
    assert backend.info.n_bytes_kv <= by_default / 2
    backend.close()
