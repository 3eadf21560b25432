"""Every example runs, as its own docstring says."""

from __future__ import annotations

from pathlib import Path

import pytest
from servers import client_at, process, server_process
from test_hosts import check

pytestmark = pytest.mark.model

EXAMPLES = Path(__file__).parent.parent / "examples"
UVICORN = ["-m", "uvicorn", "--port", "{port}", "--app-dir", str(EXAMPLES.parent)]


def test_every_example_has_a_test() -> None:
    tested = {"fastapi_app", "starlette_app", "standalone", "engine_without_http"}
    tested |= {"fastapi_openapi", "fastapi_chat", "engine_chat", "script"}
    tested |= {"test_fastapi_chat"}  # in test_testing.py: it needs no weights
    # Without a model, in test_host_frameworks.py.
    tested |= {"asgi_app", "fastapi_auth", "litestar_app", "quart_app"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_fastapi() -> None:
    with server_process([*UVICORN, "examples.fastapi_app:app"], health="/v1/health") as server:
        check(f"{server.url}/v1")
        with client_at(server.url) as client:
            assert "host" in client.get("/").json()["message"]


def test_fastapis_own_documentation() -> None:
    app = "examples.fastapi_openapi:app"
    with server_process([*UVICORN, app], health="/v1/health") as server:
        with client_at(server.url) as client:
            paths = client.get("/openapi.json").json()["paths"]
            assert "/v1/chat/completions" in paths
            assert client.get("/docs").status_code == 200


def test_starlette() -> None:
    with server_process([*UVICORN, "examples.starlette_app:app"], health="/") as server:
        check(f"{server.url}/ai/v1")


def test_standalone() -> None:
    with server_process([str(EXAMPLES / "standalone.py"), "{port}"]) as server:
        check(f"{server.url}/v1")


def test_the_engine_without_http() -> None:
    with process([str(EXAMPLES / "engine_without_http.py")]) as script:
        assert script.wait(60) == 0
        assert "Once upon a time" in script.output


def test_a_view_that_asks_its_own_application() -> None:
    app = "examples.fastapi_chat:app"
    with server_process([*UVICORN, app], health="/v1/health") as server:
        with client_at(server.url) as client:
            assert client.get("/summary", params={"text": "Rome is old."}).json()["summary"]
            with client.stream("GET", "/story", params={"about": "mice"}) as response:
                assert len(list(response.iter_text())) > 1


def test_chats_in_python() -> None:
    with process([str(EXAMPLES / "engine_chat.py")]) as script:
        assert script.wait(60) == 0
        assert "similar:" in script.output


def test_a_script_without_a_loop() -> None:
    with process([str(EXAMPLES / "script.py")]) as script:
        assert script.wait(60) == 0
        assert "city='" in script.output
