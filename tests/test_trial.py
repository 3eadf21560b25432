"""A model of an architecture that was not searched for crashes is tried in another process."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path

import gguf
import pytest
from assets import tiny

from openai_local.engine import EngineConfig, ModelLoadFailed
from openai_local.engine.errors import EngineStopped
from openai_local.engine.llama import LlamaBackend, trial
from openai_local.engine.loading import Loading

pytestmark = pytest.mark.model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def load(path: Path, loading: Loading | None = None) -> None:
    LlamaBackend(EngineConfig(path, n_ctx=64, n_threads=1), loading).close()


@pytest.mark.parametrize("n_bytes", [0, 1 << 30], ids=["without weights", "with weights"])
def test_what_ends_that_process_is_refused_with_its_last_words(
    path: Path, monkeypatch: pytest.MonkeyPatch, n_bytes: int
) -> None:
    def sizes(writer: gguf.GGUFWriter) -> None:
        writer.add_expert_feed_forward_length(32)
        writer.add_expert_shared_count(1)
        writer.add_leading_dense_block_count(1)

    monkeypatch.setattr(trial, "_COMPUTED_BYTES", n_bytes)
    tiny.llama(path, arch="glm4moe", edit=sizes)
    with pytest.raises(ModelLoadFailed, match=r"does not survive it: GGML_ASSERT\(hparams.n_exp"):
        load(path)


def test_a_signal_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_RUN", "import os; os.kill(os.getpid(), 11)")
    tiny.llama(path, arch="xverse")
    with pytest.raises(ModelLoadFailed, match="does not survive it: it ends with SIGSEGV"):
        load(path)


@pytest.mark.parametrize("n_bytes", [0, 1 << 30], ids=["without weights", "with weights"])
def test_what_lives_there_is_loaded_here(
    path: Path, monkeypatch: pytest.MonkeyPatch, n_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trial, "_COMPUTED_BYTES", n_bytes)
    tiny.llama(path, arch="xverse")
    load(path)
    assert "could not be tried" not in caplog.text


def test_what_is_refused_there_is_refused_here_with_the_reason(path: Path) -> None:
    tiny.llama(path, arch="nobody")
    with pytest.raises(ModelLoadFailed, match="unknown model architecture: 'nobody'"):
        load(path)


def test_a_load_that_is_given_up_ends_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*args: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **options))  # type: ignore[call-overload]
        stop.set()
        return started[-1]

    stop = threading.Event()
    monkeypatch.setattr(subprocess, "Popen", start)
    tiny.llama(path, arch="xverse")
    with pytest.raises(EngineStopped):
        load(path, Loading("it", stop.is_set))
    assert started[0].returncode is not None


def test_what_was_searched_is_not_tried(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    tiny.llama(path)
    load(path)


@pytest.mark.parametrize("executable", [None, "/usr/bin/uwsgi"])
def test_a_host_that_is_no_python_is_told(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    executable: str | None,
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    tiny.llama(path, arch="xverse")
    with caplog.at_level(logging.WARNING, "openai_local"):
        load(path)
    assert "is not tried out" in caplog.text


def test_a_trial_that_cannot_be_made_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.llama(path, arch="xverse")
    monkeypatch.setattr(sys, "path", [])
    with caplog.at_level(logging.WARNING, "openai_local"):
        load(path)
    assert "could not be tried out: ModuleNotFoundError" in caplog.text


def test_where_no_process_can_be_started_that_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object, **options: object) -> None:
        raise BlockingIOError("no more processes")

    tiny.llama(path, arch="xverse")
    monkeypatch.setattr(subprocess, "Popen", none)
    with caplog.at_level(logging.WARNING, "openai_local"):
        load(path)
    assert "could not be tried out: no more processes" in caplog.text
