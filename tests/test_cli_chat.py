"""Chat, completions and embeddings from the command line, with a server and in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from assets.tiny import llama
from fakes import FakeBackend, fake_app, fake_engine, spelling
from servers import engine_threads, serve, wait_until
from terminal import CTRL_C, CTRL_D, Terminal, terminal
from test_cli import line_of, run

from openai_local.application import Application
from openai_local.cli import service
from openai_local.cli.client import Client
from openai_local.cli.conversation import Conversation
from openai_local.cli.failures import CommandFailed
from openai_local.cli.service import Service
from openai_local.engine import Engine, EngineConfig

THINKING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
GREEDY = ("--temperature", "0")
THOUGHT = "<think>\nHm.\n</think>\n\nFour."


@contextmanager
def a_server(backend: FakeBackend | None = None, **settings: Any) -> Iterator[str]:
    app = fake_app(backend, **settings)
    with serve(app) as url:
        yield url
    anyio.run(app.aclose)


def saying(text: str, **options: Any) -> FakeBackend:
    return FakeBackend(next_token=spelling(text), n_ctx=4096, **options)


def test_in_a_pipe_the_answer_alone_is_on_standard_output() -> None:
    with a_server(saying("Paris.\nReally.")) as url:
        result = run("chat", "--url", url, *GREEDY, stdin="What is\nthe capital?\n")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Paris.\nReally.\n", "")


def test_in_a_pipe_thoughts_are_left_out() -> None:
    with a_server(saying(THOUGHT, chat_template=THINKING)) as url:
        result = run("chat", "--url", url, *GREEDY, stdin="2 + 2?")
    assert result.stdout == "Four.\n"


def test_parameters_reach_the_server() -> None:
    backend = FakeBackend()
    with a_server(backend) as url:
        options = ("--max-tokens", "3", "--seed", "7", "--temperature", "0.5")
        result = run("chat", "--url", f"{url}/v1", *options, "-v", stdin="hi")
    assert len(result.stdout) == 4
    assert backend.sampled[-1].temperature == 0.5
    assert backend.sampled[-1].seed == 7
    assert result.stderr.startswith("3 tokens, ")
    assert "prompt: 19 tokens, 0 of them from before" in result.stderr


def test_the_system_message_and_the_schema_are_sent(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.append(json.loads((await receive())["body"] or b"{}"))
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            done = b'data: {"choices": [{"delta": {"content": "{}"}}]}\n\ndata: [DONE]\n\n'
            await send({"type": "http.response.body", "body": done})

    file = tmp_path / "schema.json"
    file.write_text('{"type": "object"}')
    with serve(app) as url:
        options = ("--system", "Be brief.", "--json-schema", str(file))
        result = run("chat", "named", "--url", url, *options, stdin="hi")
    assert result.stdout == "{}\n"
    (body,) = seen
    assert body["model"] == "named"
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert body["stream"] is True


def test_a_schema_binds_an_answer(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"type": "not a type"}')
    with a_server() as url:
        refused = run("chat", "--url", url, "--json-schema", str(file), stdin="hi")
    assert "400" in line_of(refused, 1)
    file.write_text("{")
    assert "no JSON" in line_of(run("chat", "--url", url, "--json-schema", str(file), stdin="x"), 2)


def test_what_the_server_refuses_is_one_line_and_a_status() -> None:
    with a_server(api_key="secret") as url:
        keyless = run("chat", "--url", url, stdin="hi")
        keyed = run("chat", "--url", url, "--max-tokens", "2", stdin="hi", OPENAI_API_KEY="secret")
        unknown = run("chat", "other", "--url", url, "--api-key", "secret", stdin="hi")
    assert line_of(keyless, 1).startswith("401 Unauthorized: ")
    assert keyed.exit_code == 0
    assert "'other'" in line_of(unknown, 1)


def test_what_makes_no_sense_is_refused_before_anything_is_asked() -> None:
    assert "message" in line_of(run("chat", "--url", "http://127.0.0.1:9", stdin=" \n"), 2)
    assert "--n-ctx" in line_of(run("chat", "--url", "http://x", "--n-ctx", "9", stdin="hi"), 2)
    assert "not an http" in line_of(run("chat", "--url", "example.com", stdin="hi"), 2)
    assert "127.0.0.1:9" in line_of(run("chat", "--url", "http://127.0.0.1:9", stdin="hi"), 1)
    assert "no such file" in line_of(run("chat", "/nothing.gguf", stdin="hi"), 1)
    assert "PROMPT" not in run("complete", "--url", "http://127.0.0.1:9", stdin="x").stdout


def test_a_completion_is_printed_as_it_comes() -> None:
    with a_server() as url:
        plain = run("complete", "once", "--url", url, "--max-tokens", "4", "--temperature", "0")
        echoed = run(
            *("complete", "--echo", "--url", url, "--max-tokens", "4", "--temperature", "0"),
            stdin="once",
        )
        stopped = run(
            *("complete", "once", "--url", url, "--max-tokens", "4", "--temperature", "0"),
            *("--stop", "nothing", "--stop", plain.stdout[1]),
        )
    assert len(plain.stdout) == 5
    assert echoed.stdout == f"once{plain.stdout}"
    assert stopped.stdout == f"{plain.stdout[0]}\n"


def test_embeddings_are_a_line_each_in_order() -> None:
    texts = [f"text {i}" for i in range(70)]
    with a_server() as url:
        given = run("embed", *texts[:3], "--url", url)
        read = run("embed", "--url", url, stdin="\n".join(texts) + "\n")
        short = run("embed", "a", "--url", url, "--dimensions", "2")
        empty = run("embed", "--url", url, stdin="a\n\nb\n")
    vectors = [json.loads(line) for line in read.stdout.splitlines()]
    assert len(vectors) == 70
    assert [json.loads(line) for line in given.stdout.splitlines()] == vectors[:3]
    assert len({tuple(vector) for vector in vectors}) > 3
    assert len(json.loads(short.stdout)) == 2
    assert "line 2 on standard input is empty" in line_of(empty, 2)


@contextmanager
def a_dialogue(backend: FakeBackend, *options: str) -> Iterator[Terminal]:
    with a_server(backend) as url:
        with terminal(["-m", "openai_local", "chat", "--url", url, *GREEDY, *options]) as screen:
            screen.until("> ")
            yield screen


def test_a_dialogue_goes_on_until_the_end_of_input(tmp_path: Path) -> None:
    file = tmp_path / "saved.json"
    with a_dialogue(saying("Yes."), "--system", "S") as screen:
        screen.press("one\r")
        at = screen.until("> ", screen.until("Yes.\n"))
        screen.press("two \\\rlines\r")
        at = screen.until("> ", screen.until("Yes.\n", at))
        screen.press('"""a\rb"""\r')
        at = screen.until("> ", screen.until("Yes.\n", at))
        screen.press(f"/save {file}\r")
        at = screen.until("> ", at)
        screen.press("/clear\r/system\rthree\r")
        at = screen.until("> ", screen.until("Yes.\n", at))
        screen.press("/retry\r")
        at = screen.until("> ", screen.until("Yes.\n", at))
        screen.press(f"/save {tmp_path}/two.json\r/load {file}\r")
        at = screen.until("> ", screen.until("7 messages", at))
        screen.press(f"/save {tmp_path}/three.json\r/load {tmp_path}\r/load\r")
        at = screen.until("/load needs a FILE", screen.until(f"{tmp_path}: Is a directory", at))
        screen.press("/frob\r")
        screen.until("> ", screen.until("no command /frob", at))
        screen.press(CTRL_D)
        assert screen.end() == 0
    saved = json.loads(file.read_text())
    assert [m["content"] for m in saved] == [
        "S", "one", "Yes.", "two \nlines", "Yes.", "a\nb", "Yes.",
    ]  # fmt: skip
    two = json.loads((tmp_path / "two.json").read_text())
    assert two == [{"role": "user", "content": "three"}, {"role": "assistant", "content": "Yes."}]
    assert (tmp_path / "three.json").read_text() == file.read_text()
    assert "Traceback" not in screen.text


def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    backend = FakeBackend(n_ctx=10**6, step_s=0.01)
    with a_dialogue(backend) as screen:
        screen.press("go on\r")
        at = screen.until("> ")
        wait_until(lambda: backend.slots[0], "the answer's beginning")
        screen.press(CTRL_C)
        at = screen.until("> ", screen.until("(stopped)", at))
        n = len(backend.batches)
        threading.Event().wait(0.2)
        assert len(backend.batches) <= n + 2, "nobody waits for it any more"
        screen.press(CTRL_C)
        screen.until("Ctrl-D ends", at)
        screen.press("/exit\r")
        assert screen.end() == 0


def test_parameters_are_set_shown_and_forgotten() -> None:
    backend = FakeBackend()
    with a_dialogue(backend) as screen:
        screen.press("/set max_tokens 3\r/set seed 7\r/set stop STOP\r/set\r")
        at = screen.until('temperature: 0.0\nmax_tokens: 3\nseed: 7\nstop: "STOP"\n')
        screen.press("hi\r")
        at = screen.until("(cut off: no more tokens)", at)
        screen.press("/set temperature\r/set frob 1\r/set model x\rhi\r")
        at = screen.until("model cannot be set here", at)
        at = screen.until("frob", screen.until("error: 400", at))
        screen.press("/set frob\r/set frob\rhi\r")
        screen.until("(cut off", screen.until("frob is not set", at))
        screen.press("/exit\r")
        assert screen.end() == 0
    assert [(s.temperature, s.seed) for s in backend.sampled] == [(1, 7)], "greedy ones need none"


def test_thoughts_are_dimmed_and_the_speed_is_told() -> None:
    backend = saying(THOUGHT, chat_template=THINKING)
    with a_dialogue(backend, "--verbose") as screen:
        screen.press("2 + 2?\r")
        screen.until("> ", screen.until("tokens/s"))
        screen.press(CTRL_D)
        screen.end()
    assert "\x1b[2mH" in screen.raw
    assert "Hm.\n" in screen.text
    answer = screen.text.index("Four.")
    assert screen.text.index("Hm.") < answer
    assert "\x1b[2mF" not in screen.raw


def test_an_answer_cannot_command_the_terminal() -> None:
    with a_dialogue(saying("a\x1b]0;owned\x07b")) as screen:
        screen.press("hi\r")
        screen.until("a]0;ownedb\n")
    assert "\x1b]0" not in screen.raw


def test_an_error_does_not_end_the_dialogue() -> None:
    with a_dialogue(saying("Yes.", n_slots=1), "--max-tokens", "5") as screen:
        screen.press("x" * 3000 + "\r")
        screen.press("x" * 3000 + "\\\r" + "y" * 3000 + "\r")
        at = screen.until("error: 400")
        at = screen.until("> ", at)
        screen.press("short\r")
        screen.until("Yes.", at)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[EngineConfig]:
    """What engines were opened with; all of them are fakes that say yes."""
    opened: list[EngineConfig] = []

    def open_engine(config: EngineConfig) -> Engine:
        opened.append(config)
        return fake_engine(saying("Yes."))

    monkeypatch.setattr(service, "Application", lambda s: Application(s, open_engine))
    return opened


def test_a_file_is_loaded_for_one_conversation_and_freed(opened: list[EngineConfig]) -> None:
    before = engine_threads()
    result = run("chat", "some.gguf", *GREEDY, "--n-ctx", "99", stdin="?", OPENAI_LOCAL_API_KEY="k")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Yes.\n", "")
    (config,) = opened
    assert (config.model, config.n_ctx, config.n_parallel) == (Path("some.gguf"), 99, 1)
    assert engine_threads() == before
    run("chat", "some.gguf", *GREEDY, stdin="?", OPENAI_LOCAL_N_PARALLEL="3")
    assert opened[-1].n_parallel == 3


def test_a_model_of_the_settings_is_named_without_its_path(
    opened: list[EngineConfig], tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    one, two, three, four = (tmp_path / f"{i}.gguf" for i in (1, 2, 3, 4))
    for path in (one, two, three, four):
        llama(path)
    file.write_text(
        '[models]\nfirst = "1.gguf"\n[models.second]\npath = "2.gguf"\nalias = "two"\n'
        'n_ctx = 77\n[models.vectors]\npath = "3.gguf"\nuse = "embedding"\n'
    )
    for word in ("second", "two"):
        assert run("chat", word, "--config", str(file), *GREEDY, stdin="?").stdout == "Yes.\n"
        assert (opened[-1].model, opened[-1].n_ctx) == (two, 77)
    run("chat", "--config", str(file), *GREEDY, stdin="?")
    assert opened[-1].model == one
    run("embed", "a text", "--config", str(file))
    assert opened[-1].model == three
    run("chat", str(four), "--config", str(file), *GREEDY, stdin="?")
    assert opened[-1].model == four
    assert "embedding only" in line_of(run("chat", "vectors", "--config", str(file), stdin="?"), 1)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (httpx.Response(200, text="data: nonsense\n\n"), "no JSON: nonsense"),
        (httpx.Response(200, text="data: [1]\n\n"), "no object"),
        (httpx.Response(200, text='data: {"choices": []}\n\n'), "before the answer"),
        (httpx.Response(200, text='data: {"error": {"message": "boom"}}\n\n'), "boom"),
        (httpx.Response(200, text='data: {"choices": 5}\n\n'), "shape"),
        (httpx.Response(200, text='data: {"choices": ["x"]}\n\n'), "shape"),
        (httpx.Response(200, text='data: {"choices": [{"delta": {"content": 5}}]}\n\n'), "shape"),
        (httpx.Response(502, text="<html>"), "502 Bad Gateway: <html>"),
        (httpx.Response(404, json={"error": {"message": "no model"}}), "404 Not Found: no model"),
    ],
)
def test_what_other_servers_send_in_its_place_is_an_error(
    answer: httpx.Response, reason: str
) -> None:
    client = Client("http://other/v1", transport=httpx.MockTransport(lambda request: answer))
    conversation = Conversation(Service(client, "m"))
    with pytest.raises(CommandFailed) as failure:
        list(conversation.ask("hi"))
    assert reason in str(failure.value)
    assert conversation.messages == []


@pytest.mark.parametrize("models", [None, {}, ["m"], [{"id": 5}]])
def test_models_that_are_listed_in_another_shape_are_an_error(models: Any) -> None:
    answer = httpx.Response(200, json={"data": models})
    client = Client("http://other/v1", transport=httpx.MockTransport(lambda request: answer))
    with pytest.raises(CommandFailed, match="shape"):
        client.models()


@contextmanager
def a_short_context() -> Iterator[tuple[Conversation, list[list[str]]]]:
    """A conversation with a model that takes three messages, and what it was shown in turn."""
    shown: list[list[str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        messages = [m["content"] for m in json.loads(request.content)["messages"]]
        if len(messages) > 3:
            code = {"message": "too long", "code": "context_length_exceeded"}
            return httpx.Response(400, json={"error": code})
        shown.append(messages)
        said = json.dumps({"choices": [{"delta": {"content": f"to {messages[-1]}"}}]})
        return httpx.Response(200, text=f"data: {said}\n\ndata: [DONE]\n\n")

    client = Client("http://other/v1", transport=httpx.MockTransport(answer))
    yield Conversation(Service(client, "m")), shown


def test_where_the_context_is_full_the_first_messages_are_left_out_and_kept() -> None:
    with a_short_context() as (conversation, shown):
        conversation.set_system("S")
        for text in ("one", "two", "three"):
            list(conversation.ask(text))
        assert shown == [["S", "one"], ["S", "two"], ["S", "three"]]
        assert conversation.n_left_out == 4
        assert [m["content"] for m in conversation.messages] == [
            "S", "one", "to one", "two", "to two", "three", "to three",
        ]  # fmt: skip
        conversation.clear()
        list(conversation.ask("four"))
    assert (conversation.n_left_out, shown[-1]) == (0, ["S", "four"])


def test_a_last_message_that_is_too_long_alone_is_an_error_and_forgotten() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        error = {"message": "too long", "type": "exceed_context_size_error"}
        return httpx.Response(400, json={"error": error})

    client = Client("http://other/v1", transport=httpx.MockTransport(refuse))
    before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    conversation = Conversation(Service(client, "m"), messages=list(before))
    with pytest.raises(CommandFailed, match="too long"):
        list(conversation.ask("c"))
    assert conversation.messages == before


def test_an_answer_that_is_asked_for_again_in_vain_stays() -> None:
    client = Client("http://other/v1", transport=httpx.MockTransport(lambda r: httpx.Response(503)))
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    conversation = Conversation(Service(client, "m"), messages=list(messages))
    again = conversation.retry()
    assert again is not None
    with pytest.raises(CommandFailed):
        list(again)
    assert conversation.messages == messages


@pytest.mark.parametrize(
    "saved",
    [
        {},
        [],
        ["hi"],
        [{"role": "user"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
    ],
)
def test_what_is_no_conversation_is_not_loaded(saved: Any) -> None:
    with a_short_context() as (conversation, _):
        list(conversation.ask("one"))
        with pytest.raises(ValueError):
            conversation.load(saved)
        assert len(conversation.messages) == 2
