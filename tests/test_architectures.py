"""The engine on models of each kind of memory, tiny ones with random weights.

What it makes of many requests that share, fork, lose and regain what was computed is compared with
one sequence at a time in a fresh context of llama.cpp.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import anyio
import llama_cpp as lib
import numpy as np
import pytest
from assets.tiny import FIRST_BYTE, TINY_MODELS, WINDOW
from reference import Reference

from openai_local.engine import (
    Engine,
    EngineConfig,
    Finished,
    GenerationRequest,
    PromptTooLong,
    SamplingParams,
    TextDelta,
)
from openai_local.engine.backend import Batch
from openai_local.engine.llama import LlamaBackend
from openai_local.engine.llama.context import measure_cost
from openai_local.engine.llama.library import prepare_process
from openai_local.engine.memory import KvCost

pytestmark = [pytest.mark.model, pytest.mark.anyio]

GREEDY = SamplingParams(temperature=0, ignore_eos=True)
N_CTX = 256
STATEFUL = {"mamba", "jamba", "lfm2"}
WINDOWED = {"gemma3", "lfm2"}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"  # what is tested here runs on the engine's thread


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    directory = tmp_path_factory.mktemp("tiny")

    @cache
    def make(name: str) -> Path:
        path = directory / f"{name}.gguf"
        TINY_MODELS[name](path)
        return path

    return make


@pytest.fixture(scope="module", params=TINY_MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reference(name: str, tiny: Callable[[str], Path]) -> Iterator[Reference]:
    reference = Reference(tiny(name))
    yield reference
    reference.close()


def bytes_of(text: str) -> list[int]:
    return [FIRST_BYTE + byte for byte in text.encode()]


def tokens_of(text: str) -> list[int]:
    return [1, *bytes_of(text)]


async def read(engine: Engine, request: GenerationRequest) -> tuple[str, Finished]:
    text = ""
    async for event in engine.submit(request):
        if isinstance(event, TextDelta):
            text += event.text
        else:
            return text, event
    raise AssertionError("a generation ends with Finished")


async def ask(engine: Engine, prompt: Sequence[int], n: int = 24) -> tuple[str, int]:
    text, end = await read(engine, GenerationRequest(prompt, n, GREEDY))
    assert len(text) == end.usage.n_completion == n
    return text, end.usage.n_cached


def config(path: Path, **options: Any) -> EngineConfig:
    defaults: dict[str, Any] = {"n_ctx": N_CTX, "n_parallel": 4, "n_threads": 1, "n_batch": 64}
    return EngineConfig(path, **{**defaults, "n_ubatch": 32, **options})


LETTERS = "abcdefghijklmnopqrstuvwxyz    "
SYSTEM = "You are a helpful assistant, and you answer at length. " * 2
QUESTIONS = ["Who are you?", "Where is it?", "Who was that man?", "And what of the sea, then?"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_unified": True},
        {"cache_ram": 0},
        {"kv_unified": True, "cache_ram": 0},
        {"n_parallel": 2, "n_ubatch": 512, "n_batch": 512},
    ],
    ids=str,
)
async def test_many_at_once_each_have_what_one_alone_has(
    name: str, tiny: Callable[[str], Path], reference: Reference, options: dict[str, Any]
) -> None:
    prompts = [tokens_of(SYSTEM + question) for question in QUESTIONS]
    prompts += [
        tokens_of("Short."),
        prompts[1],
        tokens_of(SYSTEM[:60]),
        tokens_of(SYSTEM * 2)[:220],
    ]
    texts: dict[int, str] = {}
    async with Engine(config(tiny(name), **options)) as engine:
        for _ in range(2):

            async def one(i: int) -> None:
                texts[i] = (await ask(engine, prompts[i]))[0]

            async with anyio.create_task_group() as group:
                for i in range(len(prompts)):
                    group.start_soon(one, i)
            for i, prompt in enumerate(prompts):
                reference.check(prompt, bytes_of(texts[i]))
        metrics = engine.metrics()
    assert metrics.requests_failed_total == 0
    # Without RAM a state can be gone on from only where it ends.
    assert metrics.prompt_tokens_reused_total > 0 or (name in STATEFUL and "cache_ram" in options)


@pytest.mark.parametrize("unified", [False, True])
async def test_a_conversation_goes_on_from_what_was_computed(
    name: str, tiny: Callable[[str], Path], reference: Reference, unified: bool
) -> None:
    async with Engine(config(tiny(name), kv_unified=unified)) as engine:
        prompt, n_computed = tokens_of(SYSTEM), 0
        for turn in range(4):
            text, n_cached = await ask(engine, prompt, 12)
            reference.check(prompt, bytes_of(text))
            assert n_cached == n_computed
            n_computed = len(prompt) + len(text) - 1  # the last token is sampled, not computed
            prompt = [*prompt, *bytes_of(text), *bytes_of(f" And {turn}?")]


@pytest.mark.parametrize("unified", [False, True])
async def test_what_was_lost_comes_back_from_ram(
    name: str, tiny: Callable[[str], Path], reference: Reference, unified: bool
) -> None:
    options = {"n_parallel": 1, "kv_unified": unified}
    async with Engine(config(tiny(name), **options)) as engine:
        first = tokens_of(SYSTEM + QUESTIONS[0])
        text, _ = await ask(engine, first, 12)
        await ask(engine, tokens_of("Quite another thing. " * 8), 12)
        again = [*first, *bytes_of(text), *bytes_of(" Go on.")]
        text, n_cached = await ask(engine, again, 24)
        reference.check(again, bytes_of(text))
        assert n_cached == len(first) + 11
        assert engine.metrics().prompt_tokens_reused_ram_total == n_cached


async def test_the_same_prompt_again_and_again_is_reused(
    name: str, tiny: Callable[[str], Path], reference: Reference
) -> None:
    async with Engine(config(tiny(name), n_parallel=2)) as engine:
        prompt = tokens_of(SYSTEM)
        cached = []
        for _ in range(4):
            text, n_cached = await ask(engine, prompt)
            reference.check(prompt, bytes_of(text))
            cached.append(n_cached)
    assert cached[-1] == len(prompt) - 1


@pytest.mark.parametrize("cache_ram", [0, None])
async def test_a_pool_that_runs_out_changes_no_answer(
    name: str, tiny: Callable[[str], Path], reference: Reference, cache_ram: int | None
) -> None:
    if name == "mamba":
        pytest.skip("it has no cells to run out of")
    options: dict[str, Any] = {"kv_unified": True, "cache_ram": cache_ram, "n_parallel": 4}
    async with Engine(config(tiny(name), **options, kv_memory=pool_memory(name))) as engine:
        n_cells = engine.metrics().cells_total
        prompts = [tokens_of(f"{i}: {SYSTEM}{i}") for i in range(6)]
        prompts += [tokens_of(SYSTEM + QUESTIONS[i]) for i in range(4)]
        texts: dict[int, str] = {}

        async def one(i: int) -> None:
            texts[i] = (await ask(engine, prompts[i], 100))[0]

        async with anyio.create_task_group() as group:
            for i in range(len(prompts)):
                group.start_soon(one, i)
        for i, prompt in enumerate(prompts):
            reference.check(prompt, bytes_of(texts[i]))
        metrics = engine.metrics()
    assert n_cells == N_CTX
    assert metrics.requests_failed_total == 0
    assert metrics.evictions_total + metrics.preemptions_total > 0


@pytest.mark.parametrize("short_of_memory", [False, True])
async def test_a_crowd_that_comes_and_goes_leaves_everybody_the_right_answer(
    name: str, tiny: Callable[[str], Path], reference: Reference, short_of_memory: bool
) -> None:
    options: dict[str, Any] = {"cache_ram": 200_000}
    if short_of_memory and name != "mamba":
        options |= {"kv_unified": True, "kv_memory": pool_memory(name)}
    random = Random(name)
    trunks = [tokens_of("".join(random.choices(LETTERS, k=220))) for _ in range(3)]
    done: list[tuple[list[int], str]] = []

    async def one(engine: Engine) -> None:
        await anyio.sleep(random.random() / 4)
        prompt = random.choice(trunks)[: random.randrange(1, 220)]
        if done and random.random() < 0.5:
            before, answer = random.choice(done)
            prompt = [*before, *bytes_of(answer)]
        prompt = [*prompt, *bytes_of("".join(random.choices(LETTERS, k=9)))][: N_CTX - 10]
        n, stays, text = random.randrange(1, 60), random.random() < 0.8, ""
        request = GenerationRequest(prompt, n, GREEDY, cache_salt=random.choice(["", "", "other"]))
        async with engine.submit(request) as generation:
            async for event in generation:
                text += event.text if isinstance(event, TextDelta) else ""
                if not stays and text:
                    break
        done.append((prompt, text))

    async with Engine(config(tiny(name), **options)) as engine:
        async with anyio.create_task_group() as group:
            for _ in range(40):
                group.start_soon(one, engine)
        metrics = engine.metrics()
    for prompt, text in done:
        reference.check(prompt, bytes_of(text))
    assert len(done) == 40 and metrics.requests_failed_total == 0
    assert metrics.prompt_tokens_reused_total > 0


def pool_memory(name: str) -> int:
    """Bytes for N_CTX cells and four sequences."""
    per_token = {"qwen2vl": 524, "gemma3": 128, "jamba": 128, "lfm2": 1}.get(name, 512)
    window = {"gemma3": 384, "lfm2": 512}.get(name, 0) * min(N_CTX, 4 * WINDOW + 32)
    state = {"jamba": 19600, "lfm2": 1200}.get(name, 0) * 4
    return N_CTX * per_token + window + state


async def test_a_prompt_may_be_as_long_as_the_context_but_for_one(
    name: str, tiny: Callable[[str], Path], reference: Reference
) -> None:
    async with Engine(config(tiny(name), n_parallel=2)) as engine:
        prompt = tokens_of(SYSTEM * 4)[: N_CTX - 1]
        text, end = await read(engine, GenerationRequest(prompt, None, GREEDY))
        reference.check(prompt, bytes_of(text))
        assert (len(text), end.reason) == (1, "length")
        with pytest.raises(PromptTooLong):
            engine.submit(GenerationRequest([*prompt, 50], 1, GREEDY))
        text, n_cached = await ask(engine, prompt[:-1], 2)
        reference.check(prompt[:-1], bytes_of(text))


@pytest.mark.parametrize("name", sorted(WINDOWED), indirect=True)
async def test_a_context_shorter_than_the_window(
    name: str, tiny: Callable[[str], Path], reference: Reference
) -> None:
    async with Engine(config(tiny(name), n_ctx=WINDOW - 8)) as engine:
        prompt = tokens_of("The sea, the sea.")
        for _ in range(2):
            text, _ = await ask(engine, prompt, 5)
            reference.check(prompt, bytes_of(text))


async def test_embeddings_do_not_depend_on_what_else_is_embedded(
    name: str, tiny: Callable[[str], Path]
) -> None:
    inputs = [tokens_of(SYSTEM), tokens_of("Short."), tokens_of(SYSTEM * 2)[:200]] * 2
    async with Engine(config(tiny(name))) as engine:
        together = await engine.embed(inputs)
        alone = np.concatenate([await engine.embed([tokens]) for tokens in inputs[:3]])
    assert np.abs(together[:3] - alone).max() < 1e-4
    assert np.abs(together[:3] - together[3:]).max() < 1e-4
    assert together[0] @ together[1] < 0.999


@pytest.mark.parametrize("name", sorted(WINDOWED), indirect=True)
async def test_forks_of_a_window_never_fill_it(
    name: str, tiny: Callable[[str], Path], reference: Reference
) -> None:
    # Cells of a window that two sequences share are not reused by llama.cpp while both hold them.
    options: dict[str, Any] = {"n_ctx": 1024, "kv_unified": True, "n_ubatch": 64, "n_batch": 64}
    prompt, texts = tokens_of(SYSTEM * 6), {}
    async with Engine(config(tiny(name), **options)) as engine:
        await ask(engine, prompt, 1)

        async def one(i: int) -> None:
            texts[i], n_cached = await ask(engine, [*prompt, FIRST_BYTE + 65 + i], 100)
            assert n_cached == len(prompt)

        async with anyio.create_task_group() as group:
            for i in range(4):
                group.start_soon(one, i)
        metrics = engine.metrics()
    for i, text in texts.items():
        reference.check([*prompt, FIRST_BYTE + 65 + i], bytes_of(text))
    assert metrics.evictions_total == metrics.preemptions_total == 0


async def test_the_reference_tells_what_a_missing_token_changes(
    name: str, tiny: Callable[[str], Path], reference: Reference
) -> None:
    async with Engine(config(tiny(name))) as engine:
        prompt = tokens_of(SYSTEM)
        text, _ = await ask(engine, prompt, 12)
    reference.check(prompt, bytes_of(text))
    for wrong in (prompt[:-3] + prompt[-2:], prompt[:-1]):
        with pytest.raises(AssertionError):
            reference.check(wrong, bytes_of(text))


@pytest.mark.parametrize("unified", [False, True])
async def test_a_state_that_does_not_fit_is_refused_and_the_slot_empty(
    name: str, tiny: Callable[[str], Path], unified: bool
) -> None:
    other = LlamaBackend(config(tiny(name), n_parallel=3, kv_unified=not unified, n_ctx=64))
    backend = LlamaBackend(config(tiny(name), n_parallel=2, kv_unified=unified))
    random = np.random.default_rng(0)
    try:
        for one in (backend, other):
            compute(one, 0, 40)
        state = backend.save(0)
        assert state is not None
        bad = [state[: len(state) * i // 7].copy() for i in range(7)]
        bad += [random.integers(0, 256, n, np.uint8) for n in (1, 100, len(state))]
        if name != "mamba":
            foreign = other.save(0)
            assert foreign is not None
            bad.append(foreign)  # of the other layout
        for one in bad:
            assert not backend.load(1, one)
            assert not backend.truncate(1, 40)
            compute(backend, 1, 3)
            backend.truncate(1, 0)
        assert backend.load(1, state) and backend.truncate(1, 40)
        compute(backend, 1, 3, start=40)
    finally:
        backend.close()
        other.close()


async def test_a_state_is_of_use_to_contexts_of_the_same_fingerprint(
    name: str, tiny: Callable[[str], Path]
) -> None:
    variants: list[dict[str, Any]] = [{}, {"n_ctx": 128}, {"n_parallel": 3}, {"kv_unified": True}]
    variants += [{"kv_unified": True, "n_parallel": 3}, {"cache_type_k": "q8_0"}]
    backends = [LlamaBackend(config(tiny(name), **variant)) for variant in variants]
    try:
        for source in backends:
            compute(source, 0, 40)
            state = source.save(0)
            assert state is not None
            for target in backends:
                if target.fingerprint == source.fingerprint:
                    assert target.load(1, state) and target.truncate(1, 40)
        assert len({backend.fingerprint for backend in backends}) < len(backends)
        if name != "mamba":
            assert len({backend.fingerprint for backend in backends}) > 2
    finally:
        for backend in backends:
            backend.close()


@pytest.mark.parametrize("name", sorted(STATEFUL), indirect=True)
async def test_a_memory_that_cannot_be_cut_is_emptied(
    name: str, tiny: Callable[[str], Path]
) -> None:
    backend = LlamaBackend(config(tiny(name)))
    try:
        assert backend.n_drop_max == 0
        compute(backend, 0, 40)
        backend.copy(0, 1)
        assert backend.truncate(0, 40) and not backend.truncate(0, 39)
        compute(backend, 0, 3)
        compute(backend, 1, 3, start=40)
    finally:
        backend.close()


def compute(backend: LlamaBackend, slot: int, n: int, start: int = 0) -> None:
    backend.start(
        Batch(
            tokens=np.arange(n, dtype=np.int32) % 26 + FIRST_BYTE + 97,
            positions=np.arange(start, start + n, dtype=np.int32),
            slots=np.full(n, slot, np.int32),
            outputs=np.zeros(n, np.int8),
        )
    )
    assert len(backend.rows()) == 0


COSTS = {
    "llama": KvCost(512, n_ubatch=32),
    "gemma3": KvCost(128, 384, WINDOW, 32),
    "mamba": KvCost(0, n_ubatch=32, state=2 * 4 * 128 * (16 + 3)),
    "jamba": KvCost(128, n_ubatch=32, state=2 * 4 * 128 * (16 + 3)),
    "lfm2": KvCost(0, 512, WINDOW, 32, state=2 * 4 * 64 * 2),
}


@pytest.mark.parametrize("name", COSTS, indirect=True)
async def test_what_a_token_and_a_sequence_take_is_measured(
    name: str, tiny: Callable[[str], Path]
) -> None:
    prepare_process()
    model = lib.llama_model_load_from_file(
        os.fsencode(tiny(name)), lib.llama_model_default_params()
    )
    try:
        cost, expected = measure_cost(model, config(tiny(name)), (1, 1)), COSTS[name]
    finally:
        lib.llama_model_free(model)
    assert cost is not None
    # The state has a few bytes beside what a sequence takes, for each layer.
    assert expected.state <= cost.state <= expected.state * 1.2
    assert replace(cost, state=0) == replace(expected, state=0)


async def test_windows_and_states_leave_room_for_more_sequences(
    tiny: Callable[[str], Path],
) -> None:
    # 4096 tokens in each of 16 sequences: as many bytes as full attention takes for four.
    options: dict[str, Any] = {"n_ctx": None, "n_parallel": None, "kv_memory": 4 * 4096 * 512}
    n_parallel = {}
    for name in ("llama", "gemma3", "mamba"):
        async with Engine(config(tiny(name), **options)) as engine:
            n_parallel[name] = engine.info.n_parallel
            assert engine.info.n_ctx == 4096
    assert n_parallel == {"llama": 4, "gemma3": 8, "mamba": 16}
