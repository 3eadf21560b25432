"""What the installed llama.cpp says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from openai_local.engine.llama.build import features


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
    assert [device["kind"] for device in build["devices"]].count("cpu") == 1
    assert any(feature.startswith("CPU.") for feature in build["features"])
    assert any(Path(build["library"]).iterdir())
