"""POST /infill over the fake backend."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from clients import OpenRequest, serving
from fakes import BOS, CONTROL, EOG, FakeBackend, fake_app, spelling

pytestmark = pytest.mark.anyio

# Any three tokens will do for marks.
BEFORE, AFTER, BETWEEN = 1, 2, 3
ANSWER = "return\n"


def body(**fields: Any) -> dict[str, Any]:
    return {"input_prefix": "def f():", "input_suffix": "#end", "temperature": 0, **fields}


def prompt_of(prefix: bytes = b"def f():", suffix: bytes = b"#end") -> list[int]:
    return [BEFORE, *prefix, AFTER, *suffix, BETWEEN]


def filler(text: str = ANSWER, **options: Any) -> FakeBackend:
    def next_token(tokens: Any) -> int:
        at = len(tokens) - 1 - tokens.index(BETWEEN)
        data = text.encode()
        return data[at] if at < len(data) else EOG

    return FakeBackend(fim=(BEFORE, AFTER, BETWEEN), next_token=next_token, **options)


async def ask(backend: FakeBackend, **fields: Any) -> Any:
    async with serving(backend) as client:
        response = await client.post("/infill", json=body(**fields))
    assert response.status_code == 200, response.text
    return response.json()


def first_prompt(backend: FakeBackend) -> list[int]:
    """All that was computed but for the answer."""
    tokens = [int(token) for batch in backend.batches for token in batch.tokens]
    return tokens[: tokens.index(BETWEEN) + 1]


async def test_the_middle_is_asked_for_and_told_as_llama_server_does() -> None:
    backend = filler()
    answer = await ask(backend)
    assert first_prompt(backend) == prompt_of()
    timings = answer.pop("timings")
    assert (timings["prompt_n"], timings["predicted_n"]) == (len(prompt_of()), len(ANSWER) + 1)
    assert answer == {
        "index": 0, "content": ANSWER, "tokens": [], "stop": True, "model": "fake",
        "tokens_predicted": len(ANSWER) + 1, "tokens_evaluated": len(prompt_of()),
        "tokens_cached": 0, "prompt": bytes(prompt_of()).decode(), "has_new_line": True,
        "truncated": False, "stop_type": "eos",
    }  # fmt: skip


async def test_a_stream_has_pieces_and_then_the_last_object_without_done() -> None:
    async with serving(filler()) as client:
        response = await client.post("/v1/infill", json=body(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "[DONE]" not in response.text
    pieces = [json.loads(block[6:]) for block in response.text.split("\n\n")[:-1]]
    assert "".join(piece["content"] for piece in pieces) == ANSWER
    assert [piece["stop"] for piece in pieces] == [False] * len(ANSWER) + [True]
    assert pieces[-1]["content"] == "" and pieces[-1]["stop_type"] == "eos"
    assert [p["tokens_predicted"] for p in pieces[:-1]] == list(range(1, len(ANSWER) + 1))


async def test_the_prompt_goes_on_from_the_prefix_and_the_text_begins_once() -> None:
    backend = filler(add_bos=True)
    await ask(backend, prompt="  x<|control|>")
    assert first_prompt(backend) == [
        BOS, BEFORE, *b"def f():  x", CONTROL, AFTER, *b"#end", BETWEEN,
    ]  # fmt: skip


EXTRA = [{"text": "one"}, {"text": "two", "filename": "b.py"}]


async def test_other_files_go_before_with_their_names_where_the_model_has_marks_for_them() -> None:
    backend = filler()
    backend.vocabulary.marks_of_files = (4, 5)
    await ask(backend, input_extra=EXTRA)
    assert first_prompt(backend) == [
        4, *b"myproject\n", 5, *b"tmp\none", 5, *b"b.py\ntwo", 5, *b"filename\n", *prompt_of(),
    ]  # fmt: skip


async def test_files_that_do_not_fit_are_left_out_from_the_first_and_that_is_told() -> None:
    backend = filler(n_ctx=64)
    answer = await ask(backend, input_extra=[{"text": "x" * 40}, {"text": "near"}], max_tokens=8)
    snippet = b"\n\n--- snippet ---\n\n"
    assert first_prompt(backend) == [*snippet, *b"near", *prompt_of()]
    assert answer["truncated"] is True
    assert (await ask(filler(), input_extra=EXTRA))["truncated"] is False


async def test_marks_in_what_the_editor_sends_are_text() -> None:
    backend = filler()
    await ask(backend, input_prefix="<|control|>", input_suffix="<|control|>")
    assert first_prompt(backend) == prompt_of(b"<|control|>", b"<|control|>")


@pytest.mark.parametrize("name", ["n_predict", "max_tokens"])
async def test_the_number_of_tokens_is_bounded(name: str) -> None:
    answer = await ask(filler(), **{name: 3})
    assert (answer["content"], answer["stop_type"]) == ("ret", "limit")
    assert answer["tokens_predicted"] == 3


async def test_without_a_bound_or_with_minus_one_it_goes_on() -> None:
    long = "x" * 100
    assert (await ask(filler(long)))["content"] == long
    assert (await ask(filler(long), n_predict=-1))["content"] == long


async def test_a_stop_string_ends_it() -> None:
    answer = await ask(filler(), stop=["urn"])
    assert answer["content"] == "ret"
    assert "stop_type" not in answer


async def test_tokens_and_probabilities_come_if_asked_for() -> None:
    answer = await ask(filler(), return_tokens=True, n_probs=2, n_predict=2)
    assert answer["tokens"] == [*b"re"]
    first = answer["completion_probabilities"][0]
    assert (first["id"], first["token"], first["bytes"]) == (ord("r"), "r", [ord("r")])
    assert len(first["top_logprobs"]) == 2
    assert first["top_logprobs"][0]["id"] == ord("r")


async def test_fields_can_be_chosen() -> None:
    fields = ["content", "timings/prompt_n", "timings/nothing", "nothing"]
    answer = await ask(filler(), response_fields=fields)
    assert answer == {"content": ANSWER, "timings/prompt_n": len(prompt_of())}


async def test_what_editors_send_beside_is_taken() -> None:
    answer = await ask(
        filler("done"), input_extra=[], prompt="", n_predict=128, stop=[], n_indent=0, top_k=40,
        top_p=0.99, samplers=["top_k", "top_p"], cache_prompt=True, stream=False,
        t_max_prompt_ms=-1, t_max_predict_ms=1000, response_fields=["content"],
    )  # fmt: skip
    assert answer == {"content": "done"}


async def test_a_client_that_leaves_frees_its_place() -> None:
    backend = filler("x" * 200_000, n_ctx=10**6, step_s=0.001)
    app = fake_app(backend)
    request = OpenRequest(app, "/infill", body(stream=True))
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(request.run)
            await request.until(b'"content":"x"')
            request.leave.set()
            await request.ended.wait()
    loaded = app.registry.loaded("fake")
    assert loaded is not None
    with anyio.fail_after(10):
        while loaded.engine.metrics().sequences_running:
            await anyio.sleep(0.01)
    await app.aclose()


async def test_a_model_without_such_tokens_is_refused() -> None:
    async with serving(FakeBackend(next_token=spelling("a"))) as client:
        response = await client.post("/infill", json=body())
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (
        400, "model", "unsupported_model",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input_prefix": None}, "input_prefix", "invalid_type"),
        ({"input_prefix": "a" * 300}, "input_prefix", "context_length_exceeded"),
        (
            {"input_extra": [{"filename": "a"}]},
            "input_extra.[0].text",
            "missing_required_parameter",
        ),
        ({"max_tokens": 1, "n_predict": 1}, "max_tokens", "invalid_parameter_combination"),
        ({"n_predict": -2}, "n_predict", "invalid_value"),
        ({"n_predict": 1, "min_tokens": 2}, "min_tokens", "invalid_value"),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"n_indent": 4}, "n_indent", "unsupported_parameter"),
        ({"t_max_prompt_ms": 500}, "t_max_prompt_ms", "unsupported_parameter"),
        ({"return_progress": True}, "return_progress", "invalid_value"),
        ({"messages": []}, "messages", "unknown_parameter"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(
    fields: dict[str, Any], param: str, code: str
) -> None:
    async with serving(filler()) as client:
        response = await client.post("/infill", json=body(**fields))
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
