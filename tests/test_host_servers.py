"""A host under every server, in the forms that change where its code runs: workers, forks, trio."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import httpx
import pytest
from hosts import CHAT, ENDLESS, TESTS, check, data_of, host_process, lines_of
from servers import Process, client_at, wait_until

ASGI_BIND = "--bind 127.0.0.1:{port}"
SERVERS = {
    "uvicorn with workers": ("uvicorn fake_host:app --port {port} --workers 2", 2),
    "gunicorn with preload": (
        "gunicorn fake_host:app --preload -w 2 -k uvicorn_worker.UvicornWorker " + ASGI_BIND,
        2,
    ),
    "gunicorn's own worker": ("gunicorn fake_host:app -w 2 -k asgi " + ASGI_BIND, 2),
    "hypercorn on trio": ("hypercorn fake_host:app -k trio " + ASGI_BIND, 1),
    "granian with workers": (
        "granian fake_host:app --interface asgi --workers 2 --port {port}",
        2,
    ),
    "daphne": ("daphne fake_host:app --port {port}", 1),
}


def pids_of(running: Process, n: int) -> set[int]:
    """The workers that answer; there must be ``n``."""
    pids: set[int] = set()

    def seen() -> bool:
        with client_at(running.url) as client:
            pids.add(int(client.get("/about").text.split()[1]))
        return len(pids) == n

    wait_until(seen, f"{n} workers", 20)
    return pids


@pytest.mark.parametrize("server", SERVERS)
def test_it_answers_and_ends_under(server: str, tmp_path: Path) -> None:
    command, n_workers = SERVERS[server]
    # gunicorn leaves a socket in its user's home.
    with host_process(command, HOME=str(tmp_path)) as running:
        pids = pids_of(running, n_workers)
        check(f"{running.url}/v1")
        running.process.send_signal(signal.SIGTERM)
        running.wait(10)
        assert "Traceback" not in running.output
        if server == "daphne":  # has no lifespan
            assert not lines_of(running, "started")
            return
        for moment in ("started", "stopped"):
            assert {int(line.split()[1]) for line in lines_of(running, moment)} == pids
        imports = {int(line.split()[1]) for line in lines_of(running, "imported")}
        # A preload imports in the parent, and the workers are its forks.
        assert imports.isdisjoint(pids) == ("preload" in server)


def test_a_reload_ends_a_running_stream_and_serves_the_new_code(tmp_path: Path) -> None:
    source = (TESTS / "fake_host.py").read_text()
    program = tmp_path / "reloaded.py"
    program.write_text(source)
    command = f"uvicorn reloaded:app --port {{port}} --reload --reload-dir {tmp_path}"
    with host_process(command, tmp_path) as running, client_at(running.url) as client:
        assert client.get("/about").text.startswith("1 ")
        # Before it watches, it sees no change.
        running.wait_until(
            lambda: "StatReload" in running.output or "WatchFiles" in running.output, "the watch"
        )
        with client.stream("POST", "/v1/chat/completions", json=ENDLESS) as response:
            data = data_of(response.iter_lines())
            assert [next(data) for _ in range(3)]
            program.write_text(source.replace("VERSION = 1", "VERSION = 2"))
            *_, last = data
        assert json.loads(last)["error"]["code"] == "engine_stopped"

        def reloaded() -> bool:
            try:
                return client.get("/about").text.startswith("2 ")
            except httpx.TransportError:
                return False

        running.wait_until(reloaded, "the new code")
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        assert len(lines_of(running, "stopped")) == 1
        assert "Traceback" not in running.output
