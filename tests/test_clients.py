"""Clients that nobody here wrote, each a program of examples/clients, against a running server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import server_process

pytestmark = pytest.mark.model

ROOT = Path(__file__).parent.parent
CLIENTS = ROOT / "examples" / "clients"
# Made by `make tests`: their packages go with another openai than ours.
ENVIRONMENT = Path(os.environ.get("CLIENTS_VENV", ROOT / ".venv-clients"))
TIMEOUT_S = 120
SERVER = ["-m", "uvicorn", "openai_local:app", "--factory", "--port", "{port}"]
SETTINGS = {"OPENAI_LOCAL_N_CTX": "2048"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The real model behind a real socket, the same for all clients."""
    with server_process(SERVER, SETTINGS) as server:
        yield f"{server.url}/v1"


def run(command: list[str]) -> str:
    """What a program prints; it must end well."""
    # No proxy on the way to this machine, and nothing asked of another.
    variables = {
        **{k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")},
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LANGSMITH_TRACING": "false",
        "NO_PROXY": "127.0.0.1",
    }
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, env=variables, cwd=ROOT
    )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def run_client(name: str, url: str) -> str:
    """The same, of one in the clients' own environment."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        pytest.skip("the clients' environment is not here: make tests")
    return run([str(python), str(CLIENTS / name), url])


def answer(output: str, label: str) -> str:
    """The rest of the line that begins with ``label``."""
    found = re.search(rf"^{re.escape(label)}: (.*)$", output, re.MULTILINE)
    assert found, output
    return found[1]


def check_weather(text: str, name: str | None = None) -> None:
    """The object that all programs ask for, after the ``name`` of a call."""
    if name is not None:
        called, _, text = text.partition(" ")
        assert called == name
    value = json.loads(text)
    assert value.keys() == {"city", "metric"}
    assert value["city"] in ("Paris", "Rome") and isinstance(value["metric"], bool)


def test_every_client_has_a_test() -> None:
    source = Path(__file__).read_text()
    for path in CLIENTS.iterdir():
        assert f'"{path.name}"' in source, path.name
        assert len(path.read_text().splitlines()) < 30, path.name


def test_openai_python(url: str) -> None:
    output = run([sys.executable, str(CLIENTS / "openai_python.py"), url])
    check_weather(answer(output, "parsed"))
    check_weather(answer(output, "called"), "Weather")
    events = re.findall(r"^event: (.*)$", output, re.MULTILINE)
    assert "tool_calls.function.arguments.delta" in events
    assert events.count("tool_calls.function.arguments.done") == 1


def test_openai_node(url: str) -> None:
    node = shutil.which("node")
    if node is None or not (ENVIRONMENT / "node_modules" / "openai").exists():
        pytest.skip("openai for Node is not here: npm, then make tests")
    # Node looks for packages beside the program.
    program = shutil.copy(CLIENTS / "openai_node.mjs", ENVIRONMENT)
    output = run([node, str(program), url])
    assert answer(output, "the tool's result") in (
        "The sun shines on Paris.", "The sun shines on Rome."
    )  # fmt: skip
    assert len(re.findall("^chunk: ", output, re.MULTILINE)) >= 2


def test_langchain(url: str) -> None:
    output = run_client("langchain_tools.py", url)
    check_weather(answer(output, "called"), "Weather")
    check_weather(answer(output, "structured"))


def test_instructor(url: str) -> None:
    output = run_client("instructor_models.py", url)
    check_weather(answer(output, "TOOLS"))
    check_weather(answer(output, "JSON_SCHEMA"))


def test_pydantic_ai(url: str) -> None:
    output = run_client("pydantic_ai_agent.py", url)
    check_weather(answer(output, "tool"))
    check_weather(answer(output, "native"))


def test_litellm(url: str) -> None:
    output = run_client("litellm_calls.py", url)
    assert int(answer(output, "dimensions")) > 100
    check_weather(answer(output, "called"), "weather")
    check_weather(answer(output, "schema"))


def test_llama_index(url: str) -> None:
    check_weather(answer(run_client("llama_index_like.py", url), "structured"))
