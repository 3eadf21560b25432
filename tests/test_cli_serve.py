"""``serve``: what it says, where it listens, how it ends; and commands on a real model."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import anyio
import httpx
import pytest
from fakes import FakeBackend, fake_app
from rich.console import Console
from servers import MODEL, process, server_process
from terminal import CTRL_C, terminal
from test_cli import line_of, run

from openai_local.cli.failures import CommandFailed
from openai_local.cli.listener import address, forget, listen, listen_at
from openai_local.cli.welcome import welcome

SERVE = ["-m", "openai_local", "serve"]


def test_a_port_in_use_is_told_before_a_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = run("serve", "/nothing.gguf", "--port", str(port))
    assert re.match(rf"cannot listen on 127.0.0.1:{port}: address .*--port", line_of(result, 1))
    assert "cannot listen" in line_of(run("serve", "--host", "256.0.0.1"), 1)


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        (("--port", "70000"), 2, "65535. Try"),
        (("--uds", "/nothing/socket"), 1, "cannot listen on /nothing/socket: no such file"),
        (("--uds", "/tmp/" + "x" * 200), 1, "af_unix path too long"),
        (("--ssl-certfile", "/nothing.pem"), 1, "cannot use /nothing.pem: No such file"),
        (("--ssl-certfile", __file__), 1, f"cannot use {__file__}: this is no PEM file"),
        (("--ssl-keyfile", "/nothing.pem"), 2, "--ssl-keyfile needs --ssl-certfile"),
    ],
)
def test_what_cannot_be_listened_on_is_told_before_a_model_is_loaded(
    options: tuple[str, ...], status: int, reason: str
) -> None:
    assert reason in line_of(run("serve", "/nothing.gguf", "--port", "0", *options), status)


def test_a_socket_is_replaced_only_if_nobody_answers_there(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listener = listen_at(path)
    listener.listen()
    with pytest.raises(CommandFailed, match="another process answers there"):
        listen_at(path)
    listener.close()
    with listen_at(path) as again:
        again.listen()
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o666
    forget(path)
    forget(path)
    Path(path).write_text("mine")
    with pytest.raises(CommandFailed, match="address already in use"):
        listen_at(path)
    assert Path(path).read_text() == "mine"


def test_an_address_of_ipv6_is_taken_and_told_as_in_a_url() -> None:
    with listen("::1", 0) as listener:
        port = listener.getsockname()[1]
        listener.listen()
        assert f"[::1]:{port}: address already in use" in line_of(
            run("serve", "/nothing.gguf", "--host", "[::1]", "--port", str(port)), 1
        )
    assert address("127.0.0.1", 80) == "127.0.0.1:80"


def test_a_model_that_cannot_be_loaded_is_told_and_the_status_is_1() -> None:
    with process([*SERVE, "/nothing.gguf", "--port", "0"]) as running:
        assert running.wait(60) == 1
        output = running.output
    (line,) = re.findall("^(?:error|ERROR).*$", output, re.M)
    assert line == "error: cannot load /nothing.gguf: there is no such file"
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("n_gpu_layers", "gpus", "told"),
    [
        (0, (), "the CPU"),
        (31, ("CUDA0 (H100)",), "CUDA0 (H100): 31 of 31 layers"),
        (10, ("CUDA0 (H100)",), "CUDA0 (H100): 10 of 31 layers, the others on the CPU"),
        (31, ("CUDA0 (H100)", "CUDA1 (H100)"), "CUDA0 (H100) and CUDA1 (H100): 31 of 31 layers"),
        (31, ("MTL0 (Apple M4)",), "MTL0 (Apple M4): 31 of 31 layers"),
    ],
)
def test_the_panel_says_on_what_the_model_runs(
    n_gpu_layers: int, gpus: tuple[str, ...], told: str
) -> None:
    backend = FakeBackend()
    backend.info = replace(backend.info, n_layers=31, n_gpu_layers=n_gpu_layers, gpus=gpus)
    app = fake_app(backend)
    console = Console(file=io.StringIO(), force_terminal=True, width=100, no_color=True)

    async def main() -> None:
        async with app.lifespan():
            welcome(app, "http://127.0.0.1:8000", console)

    anyio.run(main)
    assert f" {told} " in console.file.getvalue()


@pytest.mark.model
def test_in_a_terminal_a_panel_has_the_facts_and_what_is_pasted_works() -> None:
    with terminal([*SERVE, "--port", "0", "--no-access-log"]) as screen:
        screen.until("print(answer.choices[0].message.content)")
        said = screen.text
        for fact in (f" {MODEL} ", "weights", "keys and values", "4 sequences", "the CPU"):
            assert fact in said, fact
        (curl,) = re.findall(r"^curl .*$", said, re.M)
        program = said[said.index("from openai import") :]
        answered = subprocess.run(curl, shell=True, capture_output=True, timeout=60, check=True)
        text = json.loads(answered.stdout)["choices"][0]["message"]["content"]
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
        assert "Paris" in text
        assert ran.stdout.decode().strip() == text, ran.stderr
        screen.press(CTRL_C)
        assert screen.end() == 0
    assert "Traceback" not in screen.text


@pytest.mark.model
def test_settings_are_options_and_sockets_can_be_files(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    options = ["--uds", str(path), "--model-id", "mine", "--n-ctx", "256", "--api-key", "secret"]
    with process([*SERVE, *options], {}) as running:
        running.wait_until(lambda: "Serving mine on unix:" in running.output, "the start")
        key = {"authorization": "Bearer secret"}
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://x", headers=key) as client:
            (model,) = client.get("/v1/models").json()["data"]
            assert client.get("/v1/models", headers={"authorization": ""}).status_code == 401
            long = {"model": "mine", "prompt": [100] * 300}
            error = client.post("/v1/completions", json=long).json()["error"]
        running.process.send_signal(signal.SIGTERM)
        running.wait(20)
    assert model["id"] == "mine"
    assert error["code"] == "context_length_exceeded"
    assert not path.exists()


@pytest.mark.model
def test_a_second_ctrl_c_ends_open_streams_without_a_traceback() -> None:
    with terminal([*SERVE, "--port", "0", "--no-access-log"]) as screen:
        screen.until("print(answer")
        (url,) = re.findall(r"^curl (http://[^ ]*)/chat", screen.text, re.M)
        body = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True}
        with httpx.Client(trust_env=False, timeout=60) as client:
            with client.stream("POST", f"{url}/completions", json=body) as stream:
                next(stream.iter_lines())
                screen.press(CTRL_C)
                time.sleep(0.02)
                screen.press(CTRL_C)
                assert screen.end() in (0, -signal.SIGINT)
    assert "Traceback" not in screen.text
    assert "Exception" not in screen.text


@pytest.mark.model
def test_a_settings_file_has_several_models_and_a_chat_may_name_one(
    tmp_path: Path, smollm2: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f'n_ctx = 256\nn_parallel = 2\n[models]\none = "{smollm2}"\ntwo = "x.gguf"\n')
    with server_process([*SERVE, "--config", str(file), "--port", "{port}"]) as running:
        with httpx.Client(base_url=running.url, trust_env=False) as client:
            listed = client.get("/v1/models").json()["data"]
        told = run("chat", "--url", running.url, "-m", "one", "--max-tokens", "3", stdin="Hi")
    assert [model["id"] for model in listed] == ["one", "two"]
    assert told.exit_code == 0, told.output
    options = ("--config", str(file), "--n-threads", "1", "--max-tokens", "3")
    assert run("chat", "one", *options, stdin="Hi").exit_code == 0
    assert "x.gguf: there is no such file" in line_of(run("chat", "two", *options, stdin="Hi"), 1)


@pytest.mark.model
def test_without_a_server_a_model_is_loaded_in_the_process() -> None:
    small = ("--n-ctx", "256", "--n-threads", "1")
    system = ("--system", "You are a helpful assistant.", "--temperature", "0")
    chat = run("chat", *small, *system, stdin="What is the capital of France?")
    assert (chat.exit_code, chat.stdout) == (0, "The capital of France is Paris.\n")
    text = run("complete", "1, 2, 3,", *small, "--temperature", "0", "--max-tokens", "6")
    assert text.stdout.startswith(" 4, 5")
    vectors = run("embed", "a cat", "a dog", *small).stdout.splitlines()
    assert [len(json.loads(vector)) for vector in vectors] == [576, 576]
