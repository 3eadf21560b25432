"""Versions of what answers depend on."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import openai_local
from openai_local.cli.diagnosis.finding import Finding

NEEDED = ("llama-cpp-python", "llguidance", "numpy", "starlette", "pydantic", "uvicorn")


def look_at_packages() -> Iterator[Finding]:
    found, missing = [], []
    for name in NEEDED:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    python = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    ours = f"openai_local {openai_local.__version__}"
    yield Finding("versions", "ok", ", ".join([ours, *found, python]))
    for name in missing:
        advice = "pip install 'openai-local[server]'"
        yield Finding("versions", "broken", f"{name} is not installed", advice)
