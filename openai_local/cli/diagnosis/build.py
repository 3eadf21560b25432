"""llama.cpp: whether it loads, what of the CPU it uses, and which GPUs it sees.

It is asked in a process of its own: one that was built for another CPU dies.
"""

from __future__ import annotations

import json
import platform
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

Device = Mapping[str, Any]  # as openai_local.engine.llama.devices has it

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


# Backends that compute on no GPU of this machine.
NO_GPU = {"CPU", "BLAS", "RPC", "ZenDNN"}
# Files that drivers make, and the build that uses such a GPU. The last is Windows's, in its Linux.
GPU_FILES = {"dev/nvidia0": "CUDA", "dev/kfd": "HIP", "dev/dxg": "CUDA"}


@dataclass(frozen=True, slots=True)
class Build:
    """What the other process said."""

    version: str
    features: tuple[str, ...]
    backends: tuple[str, ...]
    devices: tuple[Device, ...]

    @property
    def gpus(self) -> list[Device]:
        """Those that it uses: an integrated one only beside no other."""
        gpus = [device for device in self.devices if device["kind"] == "gpu"]
        return gpus or [device for device in self.devices if device["kind"] == "igpu"][:1]

    def gpu_memory(self, settings: Settings) -> int | None:
        """Bytes that are free on them; None where models are in the machine's memory."""
        if settings.n_gpu_layers == 0 or not self.gpus:
            return None
        return sum(int(gpu["free_bytes"]) for gpu in self.gpus)

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
            said["version"],
            tuple(said["features"]),
            tuple(said["backends"]),
            tuple(said["devices"]),
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


def of_gpu(build: Build, settings: Settings, root: Path = Path("/")) -> Iterator[Finding]:
    """Of those that the build uses, or why it uses none; ``root`` has the machine's files."""
    for gpu in build.gpus:
        memory = f"{size(gpu['free_bytes'])} of {size(gpu['total_bytes'])} free"
        unified = gpu["kind"] == "igpu" or gpu["name"].startswith(("MTL", "Metal"))
        shared = ", which is the machine's own memory" if unified else ""
        yield Finding("GPU", "ok", f"{gpu['name']}: {gpu['description']}, {memory}{shared}")
    if build.gpus and settings.n_gpu_layers == 0:
        text = "n_gpu_layers is 0: the GPU is left alone"
        yield Finding("GPU", "slow", text, "leave it out, and all layers go there")
    if not build.gpus:
        yield _no_gpu(build, root)


def _no_gpu(build: Build, root: Path) -> Finding:
    present = next((name for name in GPU_FILES if (root / name).exists()), None)
    built_for = ", ".join(name for name in build.backends if name not in NO_GPU)
    if built_for and present:
        advice = "look at its driver (nvidia-smi, rocminfo), and whether it is older than the build"
        text = f"/{present} is there, but the build, which is for {built_for}, sees no GPU"
        return Finding("GPU", "slow", text, advice)
    if built_for:
        advice = "a container is shown those of its host by an option, such as Docker's --gpus all"
        return Finding("GPU", "slow", f"the build is for {built_for}, but sees no GPU", advice)
    if present:
        advice = f"CMAKE_ARGS=-DGGML_{GPU_FILES[present]}=on {REBUILD}"
        return Finding("GPU", "slow", f"/{present} is there; the build is for CPUs", advice)
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        advice = f"CMAKE_ARGS=-DGGML_METAL=on {REBUILD}"
        return Finding("GPU", "slow", "Apple's GPU is there; the build is for CPUs", advice)
    return Finding("GPU", "ok", "none, and the build is for CPUs")
