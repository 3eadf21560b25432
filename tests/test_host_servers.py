"""A host under every server, in the forms that change where its code runs: workers, forks, trio."""

from __future__ import annotations

import signal

import pytest
from hosts import check, host_process, lines_of
from servers import Process, client_at, wait_until

ASGI_BIND = "--bind 127.0.0.1:{port}"
SERVERS = {
    "uvicorn with workers": ("uvicorn fake_host:app --port {port} --workers 2", 2),
    "gunicorn with preload": (
        "gunicorn fake_host:app --preload -w 2 -k uvicorn_worker.UvicornWorker " + ASGI_BIND,
        2,
    ),
    "gunicorn's own worker": ("gunicorn fake_host:app -k asgi " + ASGI_BIND, 1),
    "hypercorn": ("hypercorn fake_host:app " + ASGI_BIND, 1),
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
def test_it_answers_and_ends_under(server: str) -> None:
    command, n_workers = SERVERS[server]
    with host_process(command) as running:
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
