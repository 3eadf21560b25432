"""Servers under test: started, warmed, stopped; the options that name them. Measures nothing."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from load import Endpoint, HTTPFailure, Shape, chat, chat_body, get_json

SELF = "openai-local"
SELF_COMMAND = (
    f"{shlex.quote(sys.executable)} -m uvicorn openai_local:app --factory"
    " --host 127.0.0.1 --port {port} --log-level warning"
)
READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 10.0
LOG_TAIL_BYTES = 4000


@dataclass(slots=True)
class Server:
    """One server under test; `process` and `log` only when this program started it."""

    name: str
    endpoint: Endpoint
    model: str | None
    process: subprocess.Popen[bytes] | None = None
    log: IO[bytes] | None = None

    def log_tail(self) -> str:
        if self.log is None:
            return ""
        # pread, because the server writes at the offset that a seek here would move.
        size = os.fstat(self.log.fileno()).st_size
        tail = os.pread(self.log.fileno(), LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES))
        return tail.decode(errors="replace")


class ServerFailed(Exception):
    """A server died, or was not ready in time: its `name`, the reason, and what it printed."""

    def __init__(self, server: Server, reason: str) -> None:
        super().__init__(f"{server.name}: {reason}\n{server.log_tail()}".rstrip())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(name: str, command: str, model: str | None, env: dict[str, str]) -> Server:
    """Starts `command` with a free port for its `{port}`; its output goes to a temporary file."""
    port = free_port()
    log = tempfile.TemporaryFile()
    process = subprocess.Popen(
        # Not str.format: a command may hold braces of its own, such as a JSON setting.
        shlex.split(command.replace("{port}", str(port))),
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # A Ctrl-C in the terminal is for us; the server gets its own signal in stop().
        start_new_session=True,
    )
    return Server(name, Endpoint("127.0.0.1", port, "/v1"), model, process, log)


def stop(server: Server) -> None:
    """Asks the process to end, then insists. A server that we did not start is left alone."""
    if server.process is None:
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if server.process.poll() is not None:
            break
        server.process.send_signal(number)
        try:
            server.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            continue
    if server.log is not None:
        server.log.close()


@contextmanager
def running(args: argparse.Namespace) -> Iterator[list[Server]]:
    """Every server of this run, ours first, warm; those started here are stopped at the end."""
    # A terminated benchmark stops them too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    models: dict[str, str] = dict(args.peer_model)
    commands = ([] if args.no_self else [(SELF, SELF_COMMAND)]) + args.peer_command
    servers: list[Server] = []
    try:
        for name, command in commands:
            env = self_env(args) if name == SELF else {}
            servers.append(start(name, command, models.get(name), env))
        for name, endpoint in args.peer:
            servers.append(Server(name, endpoint, models.get(name)))
        for server in servers:
            asyncio.run(warm(server, extras=args.extras))
        yield servers
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would leave some running
        for server in servers:
            stop(server)


def self_env(args: argparse.Namespace) -> dict[str, str]:
    env = {f"OPENAI_LOCAL_{key.upper()}": value for key, value in args.setting}
    return env | {"OPENAI_LOCAL_MODEL": str(args.model.resolve())} if args.model else env


async def warm(server: Server, *, extras: bool) -> None:
    """Waits until the server names its models and completes one short chat."""
    shape = Shape(max_tokens=8, extras=extras)
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    reason = ""
    while time.monotonic() < deadline_s:
        if server.process is not None and server.process.poll() is not None:
            raise ServerFailed(server, f"ended with status {server.process.returncode}")
        try:
            models = await asyncio.wait_for(get_json(server.endpoint, "/models"), READY_TIMEOUT_S)
            server.model = server.model or str(models["data"][0]["id"])
            body = chat_body(server.model, "Count to ten.", 0, shape)
            await asyncio.wait_for(chat(server.endpoint, body), READY_TIMEOUT_S)
            return
        except HTTPFailure as error:
            # 503: still loading its model. Any other refusal would only be repeated.
            if error.status != 503:
                raise ServerFailed(server, str(error)) from error
            reason = str(error)
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            reason = str(error) or type(error).__name__
        await asyncio.sleep(0.25)
    raise ServerFailed(server, f"not ready after {READY_TIMEOUT_S:.0f} s: {reason}")


def cpu_time_s(pid: int) -> float | None:
    """User and system time of a process so far (proc(5)), or None where there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, field 2, may hold spaces and brackets: count from its closing one.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, Any]:
    """What a figure is worth nothing without."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, not {text!r}")
    return key, value


def peer(text: str) -> tuple[str, Endpoint]:
    name, url = pair(text)
    try:
        return name, Endpoint.parse(url)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, not {number}")
    return number


def server_options(group: argparse._ArgumentGroup) -> None:
    many: dict[str, Any] = {"action": "extend", "nargs": "+", "default": []}
    group.add_argument("--model", type=Path, help="the GGUF that our server loads")
    group.add_argument("--no-self", action="store_true", help="measure the peers only")
    group.add_argument(
        "--setting",
        **many,
        type=pair,
        metavar="KEY=VALUE",
        help="OPENAI_LOCAL_KEY in our server's environment",
    )
    group.add_argument(
        "--peer",
        **many,
        type=peer,
        metavar="NAME=URL",
        help="a running server, by its base URL",
    )
    group.add_argument(
        "--peer-command",
        **many,
        type=pair,
        metavar="NAME=CMD",
        help="a peer to start and stop; {port} becomes a free one, its routes are under /v1",
    )
    group.add_argument(
        "--peer-model",
        **many,
        type=pair,
        metavar="NAME=ID",
        help="the model to ask a server for, instead of the first it lists",
    )


def check_servers(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where the options name no server, or two alike."""
    names = [name for name, _ in [*args.peer, *args.peer_command]]
    if len({SELF, *names}) <= len(names):
        parser.error(f"every server needs its own name, and {SELF} is ours: {', '.join(names)}")
    if args.no_self and not names:
        parser.error("--no-self leaves nothing to measure without a peer")
