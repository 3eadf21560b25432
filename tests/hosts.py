"""Hosts in processes of their own, on the fake backend: what any of them must answer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from servers import Process, client_at, server_process

TESTS = Path(__file__).parent
ROOT = TESTS.parent
MODEL = "fake"
MESSAGES = [{"role": "user", "content": "hello"}]
CHAT = {"model": MODEL, "messages": MESSAGES, "max_tokens": 12}
ENDLESS = {**CHAT, "max_tokens": None, "ignore_eos": True, "stream": True}


def faked(*paths: Path, **settings: object) -> dict[str, str]:
    """Variables of a process without llama.cpp, that can import from ``paths``."""
    folders = [TESTS / "faked", TESTS, *paths, ROOT]
    return {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "OPENAI_LOCAL_MODEL": "fake.gguf",
        **{f"OPENAI_LOCAL_{name.upper()}": str(value) for name, value in settings.items()},
    }


def host_process(
    command: str, *paths: Path, health: str = "/v1/health", **variables: str
) -> AbstractContextManager[Process]:
    """``python -m command``, once it answers GET ``health``; {port} becomes its port."""
    return server_process(["-m", *command.split()], {**faked(*paths), **variables}, health)


def check(url: str, headers: Mapping[str, str] | None = None) -> None:
    """The routes at ``url`` list, answer, stream, refuse, and free the place of who leaves."""
    with client_at(url) as client:
        client.headers.update(headers or {})
        listed = client.get("/models")
        assert listed.status_code == 200, listed.text
        assert [entry["id"] for entry in listed.json()["data"]] == [MODEL]
        whole = client.post("/chat/completions", json=CHAT)
        assert whole.status_code == 200, whole.text
        text = whole.json()["choices"][0]["message"]["content"]
        assert len(text) == CHAT["max_tokens"]
        with client.stream("POST", "/chat/completions", json={**CHAT, "stream": True}) as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            data = list(data_of(response.iter_lines()))
        assert data.pop() == "[DONE]"
        deltas = [json.loads(piece)["choices"][0]["delta"] for piece in data]
        assert "".join(delta.get("content", "") for delta in deltas) == text
        for path in ("/nothing", "/models/nothing"):
            missing = client.get(path)
            assert missing.status_code == 404
            assert missing.json()["error"].keys() == {"message", "type", "param", "code"}
        check_places(client, "/chat/completions")


def check_places(client: Any, path: str) -> None:
    """More streams than there are places, all left: those who come later still get in."""
    for _ in range(6):
        with client.stream("POST", path, json=ENDLESS) as response:
            data = data_of(response.iter_lines())
            assert [next(data) for _ in range(3)]
    after = client.post(path, json=CHAT)
    assert after.status_code == 200


def data_of(lines: Iterable[str]) -> Iterator[str]:
    """The data of an event stream's lines, without comments."""
    for line in lines:
        if line and not line.startswith(":"):
            assert line.startswith("data: "), line
            yield line.removeprefix("data: ")


def lines_of(process: Process, beginning: str) -> Sequence[str]:
    return [line for line in process.output.splitlines() if line.startswith(beginning)]
