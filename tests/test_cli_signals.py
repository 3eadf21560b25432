"""Commands that are interrupted, told to end, or given what is no text, and their terminal then."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeBackend
from servers import environment, serve, wait_until
from terminal import CTRL_C, CTRL_D, Terminal, terminal
from test_cli import run
from test_cli_chat import a_dialogue, a_server, saying

from openai_local.cli.client import Client
from openai_local.cli.conversation import Conversation
from openai_local.cli.dialogue import Dialogue
from openai_local.cli.screen import answering, out
from openai_local.cli.service import Service
from openai_local.cli.signals import terminable
from openai_local.cli.streams import whole

CHAT = ["-m", "openai_local", "chat"]
HIDES, SHOWS = "\x1b[?25l", "\x1b[?25h"

# A model whose load goes on until it is given up, or for a minute if it is deaf.
SLOW_LOAD = """
import sys, time
from openai_local.application import Application
from openai_local.cli import serve, service
from openai_local.cli.program import program
from openai_local.engine import Engine, EngineStopped

def slow(config, loading):
    print("LOADING", flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end and (config.n_ctx == 99 or not loading()):
        time.sleep(0.01)
    raise EngineStopped

def application(settings):
    return Application(settings, lambda config: Engine(config, open_backend=slow))

serve.Application = service.Application = application
program(sys.argv[1:])
"""
DEAF = ("--n-ctx", "99")


@contextmanager
def loading(command: str, *options: str) -> Iterator[Terminal]:
    with terminal(["-c", SLOW_LOAD, command, "some.gguf", *options]) as screen:
        screen.until("LOADING")
        if command == "chat":
            screen.until_raw(HIDES)  # a spinner turns
        yield screen


def test_ctrl_c_during_a_load_ends_the_chat_with_130_and_gives_the_cursor_back() -> None:
    with loading("chat") as screen:
        screen.press(CTRL_C)
        assert screen.end() == 130
    assert screen.raw.rindex(SHOWS) > screen.raw.rindex(HIDES)
    assert "Traceback" not in screen.text
    assert screen.raw.endswith("\n")


def test_a_term_during_a_load_gives_the_cursor_back() -> None:
    with loading("chat") as screen:
        screen.process.send_signal(signal.SIGTERM)
        assert screen.end() == -signal.SIGTERM
    assert screen.raw.rindex(SHOWS) > screen.raw.rindex(HIDES)
    assert "Traceback" not in screen.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_wait_for_the_load(number: signal.Signals) -> None:
    with loading("chat", *DEAF) as screen:
        screen.process.send_signal(number)
        screen.until_raw(SHOWS)  # it is being handled
        threading.Event().wait(0.2)
        screen.process.send_signal(number)
        assert screen.end() in (-number, 130)
    assert "Traceback" not in screen.text


def test_serving_that_is_given_up_during_the_load_says_no_welcome() -> None:
    with loading("serve", "--port", "0") as screen:
        screen.press(CTRL_C)
        assert screen.end() == 130
    assert "curl" not in screen.text
    assert "Traceback" not in screen.text


def test_a_second_ctrl_c_does_not_wait_for_what_a_server_loads(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with loading("serve", "--uds", str(path), *DEAF) as screen:
        screen.press(CTRL_C)
        screen.until("Shutting down")
        screen.press(CTRL_C)
        assert screen.end() == -signal.SIGINT
    assert "Traceback" not in screen.text
    assert not path.exists()


def test_a_term_at_the_prompt_gives_the_terminal_back_as_it_was() -> None:
    with a_server() as url, terminal([*CHAT, "--url", url]) as screen:
        screen.until("> ")
        wait_until(lambda: not screen.echoes(), "the editing of a line")
        threading.Event().wait(0.2)  # until it sleeps: one that comes before is seen at a key
        screen.process.send_signal(signal.SIGTERM)
        assert screen.end() == -signal.SIGTERM
        assert screen.echoes()


def test_a_term_within_an_answer_tells_the_server() -> None:
    backend = FakeBackend(n_ctx=10**6, step_s=0.01)
    with a_dialogue(backend) as screen:
        screen.press("go on\r")
        wait_until(lambda: backend.slots[0], "the answer's beginning")
        screen.process.send_signal(signal.SIGTERM)
        assert screen.end() == -signal.SIGTERM
        n = len(backend.batches)
        threading.Event().wait(0.2)
        assert len(backend.batches) <= n + 2, "nobody waits for it any more"


def test_ctrl_c_twice_at_once_stops_the_answer_and_nothing_else(tmp_path: Path) -> None:
    backend = FakeBackend(n_ctx=10**6, step_s=0.01)
    file = tmp_path / "saved.json"
    with a_dialogue(backend) as screen:
        screen.press("go on\r")
        at = screen.until("go on\n")
        wait_until(lambda: backend.slots[0], "the answer's beginning")
        screen.process.send_signal(signal.SIGINT)
        screen.process.send_signal(signal.SIGINT)
        screen.until("\n> ", at)
        # The second may come while the first is handled, or to the prompt that follows; then it
        # takes the next line with it.
        screen.press("/help\r")
        screen.press(f"/save {file}\r/exit\r")
        assert screen.end() == 0
    roles = [message["role"] for message in json.loads(file.read_text())]
    assert roles in ([], ["user", "assistant"]), "never a question without an answer"
    assert "Traceback" not in screen.text


@pytest.mark.model
def test_the_answer_of_a_local_model_is_stopped_and_the_next_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "saved.json"
    system = "You are a helpful assistant."
    with terminal([*CHAT, "--temperature", "0", "--system", system, "-v"]) as screen:
        screen.until("> ")
        screen.press("Write a long story about a dog.\r")
        screen.until("Once upon a time")
        screen.press(CTRL_C)
        at = screen.until("> ", screen.until("(stopped)"))
        screen.press("What is the capital of France?\r")
        at = screen.until("> ", screen.until("of them from before", screen.until("Paris", at)))
        screen.press(f"/save {file}\r/exit\r")
        assert screen.end() == 0
    messages = json.loads(file.read_text())
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[2]["content"].startswith("Once upon a time")
    assert "Traceback" not in screen.text


def test_lines_that_are_pasted_are_one_message(tmp_path: Path) -> None:
    file = tmp_path / "saved.json"
    with a_dialogue(saying("Yes.")) as screen:
        assert "\x1b[?2004h" in screen.raw, "the terminal is asked to say what is pasted"
        screen.press("\x1b[200~one\ttwo\n\n  three\x1b[201~\r")
        at = screen.until("> ", screen.until("Yes.\n"))
        screen.press(f"/save {file}\r")
        screen.until("> ", at)
        screen.press(CTRL_D)
        assert screen.end() == 0
    assert json.loads(file.read_text())[0]["content"] == "one\ttwo\n\n  three"


@pytest.mark.parametrize("locale", ["C.UTF-8", "POSIX"])
def test_bytes_that_are_no_text_end_no_chat(tmp_path: Path, locale: str) -> None:
    file = tmp_path / "saved.json"
    variables = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with a_server(saying("Oui: caf\u00e9.")) as url:
        with terminal([*CHAT, "--url", url, "--temperature", "0"], variables) as screen:
            screen.until("> ")
            screen.press(b"caf\xff caf\xc3\xa9\r")
            at = screen.until("> ", screen.until("Oui: caf"))
            screen.press(f"/save {file}\r")
            screen.until("> ", at)
            screen.press(CTRL_D)
            assert screen.end() == 0
    asked, answered = json.loads(file.read_text(encoding="utf-8"))
    assert asked["content"] == "caf\ufffd caf\u00e9"
    assert answered["content"] == "Oui: caf\u00e9."


def test_bytes_that_are_no_text_are_asked_and_completed_all_the_same() -> None:
    def ran(*args: Any, stdin: bytes = b"") -> bytes:
        done = subprocess.run(
            [sys.executable, "-m", "openai_local", *args, "--url", url],
            input=stdin, capture_output=True, timeout=60, env={**os.environ, **environment()},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    with a_server(saying("Yes.")) as url:
        assert ran("chat", "--temperature", "0", stdin=b"\xff\xfe") == b"Yes.\n"
        assert len(ran("embed", b"\xff")) == len(ran("embed", stdin=b"\xff\n"))
    with a_server() as url:
        echoed = ran("complete", b"a\xffb", "--echo", "--max-tokens", "1", "--temperature", "0")
        assert echoed.startswith("a\ufffdb".encode())
        assert ran("embed", "a") == ran("embed", stdin=b"\xef\xbb\xbfa\r\n")


def test_what_is_whole_stays_and_what_is_not_is_marked() -> None:
    assert whole("caf\u00e9 \U0001f600") == "caf\u00e9 \U0001f600"
    assert whole("caf\udcc3\udca9 \udcff") == "caf\u00e9 \ufffd"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_end_no_command(closed: str) -> None:
    line = f"exec {sys.executable} -m openai_local config show --json {closed}"
    assert subprocess.run(["sh", "-c", line], timeout=60, capture_output=True).returncode == 0


def test_a_message_is_needed_where_standard_input_is_closed() -> None:
    line = f"exec {sys.executable} -m openai_local chat --url http://127.0.0.1:9 <&-"
    done = subprocess.run(["sh", "-c", line], timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: there is no message on standard input\n")


def test_a_terminal_is_asked_for_no_texts_before_a_model_is_loaded() -> None:
    with terminal(["-m", "openai_local", "embed", "-m", "/nothing.gguf"]) as screen:
        assert screen.end() == 2
    assert screen.text == "error: there is no TEXT, and nothing on standard input\n"


def test_an_error_behind_a_part_of_an_answer_has_a_line_of_its_own() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        part = b'data: {"choices": [{"text": "half", "delta": {"content": "half"}}]}\n\n'
        failed = b'data: {"error": {"message": "\\u001b[2Jboom"}}\n\n'
        await send({"type": "http.response.body", "body": part + failed})

    with serve(app) as url:
        told = run("complete", "x", "--url", url, "-m", "m")
        assert (told.stdout, told.exit_code) == ("half\n", 1)
        with terminal([*CHAT, "m", "--url", url]) as screen:
            screen.until("> ")
            screen.press("hi\r")
            screen.until("> ", screen.until("half\nerror: [2Jboom\n"))
            screen.press(CTRL_D)
            assert screen.end() == 0


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_without_colours_gets_none(variable: str, value: str) -> None:
    with a_server(saying("Yes.")) as url:
        command = [*CHAT, "other", "--url", url, "--temperature", "0"]
        with terminal(command, {variable: value}) as screen:
            screen.until("> ")
            screen.press("hi\r")
            screen.until("> ", screen.until("error: 404"))
            screen.press(CTRL_D)
            assert screen.end() == 0
    assert not re.findall(r"\x1b\[[0-9;]*3[0-9]", screen.raw)
    assert value != "dumb" or "\x1b" not in screen.raw


def test_an_error_that_nobody_expected_ends_no_dialogue(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(Conversation):
        def ask(self, text: str) -> Any:
            raise KeyError(text)

    for debug in (False, True):
        dialogue = Dialogue(Broken(Service(Client("http://x"), "m")), debug)
        dialogue._turn("hi")
        told = capsys.readouterr().err
        assert "error: unexpected KeyError: 'hi'; --debug shows the traceback\n" in told
        assert ("Traceback" in told) is debug


def test_a_term_is_left_alone_where_it_is_anothers_business() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with terminable():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)

    def within() -> None:
        with terminable():
            assert signal.getsignal(signal.SIGTERM) is before

    thread = threading.Thread(target=within)
    thread.start()
    thread.join()
    with terminable():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_nothing_is_shown_above_the_error_of_an_answer_that_never_began(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(OSError), answering(out()):
        raise OSError
    assert capsys.readouterr().out == ""
