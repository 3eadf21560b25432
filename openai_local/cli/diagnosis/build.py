"""llama.cpp: whether it loads, what of the CPU it uses, and which GPUs it sees.

It is asked in a process of its own: one that was built for another CPU dies.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai_local.cli.diagnosis.finding import Finding
from openai_local.cli.failures import one_line
from openai_local.cli.screen import size
from openai_local.config import Settings

COMMAND = (sys.executable, "-m", "openai_local.engine.llama.build")
TIMEOUT_S = 60
REBUILD = "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python"
# Flags of the kernel's /proc/cpuinfo, and ggml's features that need them. Only those that
# decide the speed of quantised weights.
USES = {
    "avx": "AVX",
    "avx2": "AVX2",
    "f16c": "F16C",
    "fma": "FMA",
    "avx_vnni": "AVX_VNNI",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512_VNNI",
    "amx_int8": "AMX_INT8",
    "asimddp": "DOTPROD",
    "i8mm": "MATMUL_INT8",
    "sve": "SVE",
}
# With it, these add nothing that counts.
COVERED = {"AVX_VNNI": "AVX512_VNNI"}


@dataclass(frozen=True, slots=True)
class Build:
    """What the other process said."""

    version: str
    features: tuple[str, ...]
    devices: tuple[Mapping[str, Any], ...]
    gpu_offload: bool

    @property
    def gpus(self) -> list[Mapping[str, Any]]:
        return [device for device in self.devices if device["kind"] in ("gpu", "igpu")]

    @property
    def uses_gpu(self) -> bool:
        return self.gpu_offload and bool(self.gpus)

    def cpu_features(self) -> set[str]:
        return {name.removeprefix("CPU.") for name in self.features if name.startswith("CPU.")}


def look_at_build(settings: Settings) -> tuple[Build | None, list[Finding]]:
    """The build, unless it is broken, and what is to be said of it."""
    build, reason = ask()
    if build is None:
        advice = f"build it on this machine: {REBUILD}"
        return None, [Finding("llama.cpp", "broken", f"it does not load: {reason}", advice)]
    loads = Finding("llama.cpp", "ok", f"{build.version}, {', '.join(build.features)}")
    return build, [loads, *of_cpu(build, cpu_flags()), *of_gpu(build, settings)]


def ask(command: tuple[str, ...] = COMMAND) -> tuple[Build | None, str]:
    """The build, or why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return None, f"it said nothing within {TIMEOUT_S} s"
    if done.returncode == -signal.SIGILL:
        return None, "it was built for a CPU with other instructions (SIGILL)"
    if done.returncode < 0:
        return None, f"its process ended with signal {-done.returncode}"
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        return None, one_line(lines[-1])
    said = json.loads(done.stdout)
    return (
        Build(
            said["version"], tuple(said["features"]), tuple(said["devices"]), said["gpu_offload"]
        ),
        "",
    )


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The kernel's words for what the CPU can do; none where it does not tell."""
    try:
        text = path.read_text()
    except OSError:
        return set()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return set(value.split())
    return set()


def of_cpu(build: Build, flags: set[str]) -> Iterator[Finding]:
    used = build.cpu_features()
    unused = [
        feature
        for flag, feature in USES.items()
        if flag in flags and feature not in used and COVERED.get(feature) not in used
    ]
    if unused:
        text = f"the CPU has {', '.join(unused)}, which this build does not use"
        yield Finding("CPU", "slow", text, f"build it on this machine: {REBUILD}")
    elif flags:
        yield Finding("CPU", "ok", "the build uses what the CPU has for quantised weights")
    if used and "REPACK" not in used:
        text = "built without REPACK: weights are not rearranged for wide instructions"
        yield Finding("CPU", "slow", text, f"build it with GGML_CPU_REPACK: {REBUILD}")


def of_gpu(build: Build, settings: Settings) -> Iterator[Finding]:
    for gpu in build.gpus:
        memory = f"{size(gpu['free_bytes'])} of {size(gpu['total_bytes'])} free"
        yield Finding("GPU", "ok", f"{gpu['name']}: {gpu['description']}, {memory}")
    if build.uses_gpu and settings.n_gpu_layers == 0:
        text = "n_gpu_layers is 0: the GPU is left alone"
        yield Finding("GPU", "slow", text, "leave it out, and all layers that fit go there")
    if build.uses_gpu:
        return
    present = [name for name in ("/dev/nvidia0", "/dev/kfd", "/dev/dxg") if Path(name).exists()]
    if build.gpu_offload:
        advice = "look at its driver, and at what the container may see"
        yield Finding("GPU", "slow", "the build has a GPU's backend, but sees no GPU", advice)
    elif present:
        advice = "CMAKE_ARGS=-DGGML_CUDA=on (or HIP, VULKAN) " + REBUILD
        yield Finding("GPU", "slow", f"{present[0]} is there; the build is for CPUs", advice)
    else:
        yield Finding("GPU", "ok", "none, and the build is for CPUs")
