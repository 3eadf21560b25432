"""Serves applications on loopback sockets: on a thread of this process, or as a process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import httpx
import uvicorn

MODEL = "smollm2-135m-instruct"
START_S = 60.0
STOP_S = 20.0

# One thread a model: those of two engines on the same cores would wait for each other every step.
SMALL = {"n_ctx": 512, "n_parallel": 4, "n_threads": 1, "n_threads_batch": 1}


def environment(**settings: object) -> dict[str, str]:
    """Variables of the small settings, and of ``settings`` in their place."""
    return {f"OPENAI_LOCAL_{k.upper()}": str(v) for k, v in {**SMALL, **settings}.items()}


def engine_threads() -> set[threading.Thread]:
    """The engines' threads in this process."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("openai_local ")}


def client_at(url: str) -> httpx.Client:
    """A client that waits long, and asks no proxy."""
    # Reading certificates takes longer than most requests here, and all are plain HTTP.
    return httpx.Client(base_url=url, timeout=START_S, trust_env=False, verify=False)


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = START_S) -> None:
    """Look every few milliseconds until ``condition`` holds; ``what`` says what did not come."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {timeout_s} s"
        time.sleep(0.01)


@contextmanager
def serve(app: Any) -> Iterator[str]:
    """The URL of ``app`` under a uvicorn on a thread of this process."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)

    def run() -> None:
        try:
            server.run([listener])
        except SystemExit:
            pass  # How uvicorn says that the application did not start.

    thread = threading.Thread(target=run, name="uvicorn")
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), "the server's start")
        assert server.started, "the application did not start"
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(STOP_S)
        listener.close()
        assert not thread.is_alive(), "the server did not end"


@dataclass
class Process:
    """A running command; ``output`` is all that it wrote so far, to either stream."""

    url: str
    process: subprocess.Popen[bytes]
    file: IO[bytes]

    @property
    def output(self) -> str:
        # Not read(): the process writes at the same file offset.
        return os.pread(self.file.fileno(), 1 << 20, 0).decode(errors="replace")

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """As the function; fails with the output when the process ends before."""

        def holds_or_ended() -> bool:
            return bool(condition()) or self.process.poll() is not None

        wait_until(holds_or_ended, what)
        assert condition(), f"{what}: the process ended with {self.process.returncode} before"

    def wait(self, timeout_s: float) -> int:
        """The exit status."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the process did not end within {timeout_s} s") from None


@contextmanager
def process(
    command: Sequence[str], variables: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """``python`` with the arguments ``command``, in which {port} becomes a free port.

    Only the small settings and ``variables`` are set. Its output is shown where a test fails.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    outer = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_LOCAL_")}
    with tempfile.TemporaryFile() as file:
        running = Process(
            f"http://127.0.0.1:{port}",
            subprocess.Popen(
                [sys.executable, *(part.replace("{port}", str(port)) for part in command)],
                env={**outer, "PYTHONUNBUFFERED": "1", **environment(), **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            ),
            file,
        )
        try:
            yield running
        finally:
            try:
                _end(running.process)
            finally:
                sys.stdout.write(f"$ {' '.join(command)}\n{running.output}\n")


@contextmanager
def server_process(
    command: Sequence[str], variables: Mapping[str, str] | None = None, health: str = "/health"
) -> Iterator[Process]:
    """As :func:`process`, once it answers GET ``health``."""
    with process(command, variables) as running, client_at(running.url) as client:

        def healthy() -> bool:
            try:
                return client.get(health).status_code == 200
            except httpx.TransportError:
                return False

        running.wait_until(healthy, "the server's start")
        yield running


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(STOP_S)
