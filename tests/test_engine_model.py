"""The engine on the real model."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import numpy as np
import pytest
from assets.minilm import minilm_gguf

from openai_local.engine import (
    Engine,
    EngineConfig,
    EngineStopped,
    Finished,
    GenerationRequest,
    InvalidToken,
    ModelLoadFailed,
    PromptTooLong,
    SamplingParams,
    TextDelta,
)
from openai_local.engine.config import CacheType
from openai_local.engine.loading import Loading

pytestmark = [pytest.mark.model, pytest.mark.anyio]
# What has nothing to do with the loop, and takes a while.
on_one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"])

FRANCE = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
async def engine(smollm2: Path, anyio_backend: str) -> AsyncIterator[Engine]:
    async with Engine(EngineConfig(smollm2, n_ctx=512, n_parallel=4)) as engine:
        yield engine


async def read(engine: Engine, request: GenerationRequest) -> tuple[str, Finished]:
    text = ""
    async for event in engine.submit(request):
        if isinstance(event, TextDelta):
            text += event.text
        else:
            return text, event
    raise AssertionError("a generation ends with Finished")


async def test_the_capital_of_france_is_paris(engine: Engine) -> None:
    prompt = engine.tokenize(FRANCE, parse_special=True)
    text, end = await read(engine, GenerationRequest(prompt, 30, SamplingParams(temperature=0)))
    assert "Paris" in text
    assert end.reason == "stop"
    assert end.usage.n_prompt == len(prompt)


async def test_delivery_while_a_decode_runs_changes_no_text(engine: Engine, smollm2: Path) -> None:
    from openai_local.engine.llama import LlamaBackend

    def open_backend(config: EngineConfig, loading: Loading) -> LlamaBackend:
        backend = LlamaBackend(config, loading)
        backend.asynchronous = True  # as on a GPU
        return backend

    prompt = engine.tokenize(FRANCE, parse_special=True)
    request = GenerationRequest(prompt, 30, SamplingParams(temperature=0))
    expected = await read(engine, request)
    async with Engine(engine.config, open_backend=open_backend) as other:
        assert await read(other, request) == expected
        generation = other.submit(GenerationRequest(prompt, None))
        async for _ in generation:
            break
        generation.cancel()
        assert (await read(other, request))[0] == expected[0]


async def test_more_generations_than_slots_all_finish_with_their_own_seeds(
    engine: Engine,
) -> None:
    prompt = engine.tokenize("Once upon a time")
    texts: dict[int, str] = {}

    async def one(i: int) -> None:
        sampling = SamplingParams(seed=i % 5, ignore_eos=True)
        texts[i], end = await read(engine, GenerationRequest(prompt, 12, sampling))
        assert end.reason == "length"
        assert end.usage.n_completion == 12

    async with anyio.create_task_group() as group:
        for i in range(10):
            group.start_soon(one, i)
    assert len(set(texts.values())) > 1
    metrics = engine.metrics()
    assert metrics.requests_finished_total == 10
    assert metrics.sequences_running == metrics.sequences_waiting == 0


async def test_a_cancelled_generation_frees_its_slot(engine: Engine) -> None:
    prompt = engine.tokenize("Once upon a time")
    async with engine.submit(GenerationRequest(prompt, 400)) as generation:
        async for _ in generation:
            break
    with anyio.fail_after(10):
        while engine.metrics().sequences_running:
            await anyio.sleep(0.01)
    assert engine.metrics().requests_cancelled_total == 1


async def test_a_repeated_prompt_is_reused_and_gives_the_same_text(engine: Engine) -> None:
    prompt = engine.tokenize("The quick brown fox jumps over the lazy dog. " * 8)
    request = GenerationRequest(prompt, 10, SamplingParams(temperature=0, ignore_eos=True))
    first, first_end = await read(engine, request)
    second, second_end = await read(engine, request)
    assert first == second
    assert first_end.usage.n_cached == 0
    assert second_end.usage.n_cached == len(prompt) - 1


async def test_input_that_can_never_be_served_is_refused(engine: Engine) -> None:
    with pytest.raises(PromptTooLong) as refused:
        engine.submit(GenerationRequest([1] * 600))
    assert (refused.value.n_prompt, refused.value.n_max) == (600, 511)
    with pytest.raises(InvalidToken):
        engine.submit(GenerationRequest([10**6]))


async def test_closing_answers_those_who_wait(smollm2: Path, anyio_backend: str) -> None:
    engine = Engine(EngineConfig(smollm2, n_ctx=512, n_parallel=1))
    await engine.ready()
    generation = engine.submit(GenerationRequest(engine.tokenize("Once"), 400))
    await engine.aclose()
    with pytest.raises(EngineStopped):
        async for _ in generation:
            pass


async def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, anyio_backend: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not a model")
    engine = Engine(EngineConfig(path))
    with pytest.raises(ModelLoadFailed, match="not a GGUF"):
        await engine.ready()
    await engine.aclose()


@on_one_loop
async def test_minilm_agrees_with_sentence_transformers(tmp_path: Path, anyio_backend: str) -> None:
    data = Path(__file__).parent / "data" / "minilm_reference.json"
    sentences = json.loads(data.read_text())["sentences"]
    expected = np.array([sentence["embedding"] for sentence in sentences])
    async with Engine(EngineConfig(minilm_gguf(tmp_path))) as engine:
        vectors = await engine.embed([engine.tokenize(s["text"]) for s in sentences])
    cosines = (vectors * expected).sum(axis=1)
    assert cosines.min() > 0.999
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[3] + 0.3


async def test_long_runs_are_tokenised_in_pieces_and_lose_nothing(engine: Engine) -> None:
    for text in ("x" * 300_000, " " * 9000, "one two " * 5000 + "y" * 5000 + " end"):
        tokens = engine.tokenize(text)
        pieces = b"".join(engine.vocabulary.piece(token) for token in tokens)
        assert pieces.decode() == text
    runs = engine.tokenize("x" * 4096) + engine.tokenize("x" * 904 + " end")
    assert engine.tokenize("x" * 5000 + " end") == runs


async def test_control_tokens_within_long_runs_stay_whole(engine: Engine) -> None:
    end = engine.tokenize("<|im_end|>", parse_special=True)
    assert len(end) == 1
    for n in (4090, 4096, 8190):
        tokens = engine.tokenize("x" * n + "<|im_end|>" * 3, parse_special=True)
        assert tokens == engine.tokenize("x" * n) + end * 3
    many = engine.tokenize("<|im_end|> " * 20_000, parse_special=True)
    assert many.count(end[0]) == 20_000


async def test_requests_with_one_prefix_compute_it_once_and_each_has_its_own_answer(
    engine: Engine,
) -> None:
    system = "<|im_start|>system\nYou are a helpful assistant." + " Be brief." * 60 + "<|im_end|>\n"
    prompts = [
        engine.tokenize(
            f"{system}<|im_start|>user\nWhat is the capital of {country}?<|im_end|>\n"
            "<|im_start|>assistant\n",
            parse_special=True,
        )
        for country in ("France", "Italy", "Japan", "Egypt", "Greece")
    ]
    capitals = ["Paris", "Rome", "Tokyo", "Cairo", "Athens"]
    greedy = SamplingParams(temperature=0)
    together: dict[int, tuple[str, Finished]] = {}

    async def ask(i: int) -> None:
        together[i] = await read(engine, GenerationRequest(prompts[i], 12, greedy))

    async with anyio.create_task_group() as group:
        for i in range(len(prompts)):
            group.start_soon(ask, i)
    for i, capital in enumerate(capitals):
        assert capital in together[i][0]
    computed = engine.metrics().prompt_tokens_computed_total
    cached = [end.usage.n_cached for _, end in together.values()]
    assert sum(map(len, prompts)) == computed + sum(cached)
    assert sorted(n > 120 for n in cached) == [False] + [True] * 4


@on_one_loop
@pytest.mark.parametrize(("keys", "values"), [("q8_0", "f16"), ("q8_0", "q8_0"), ("q8_0", "q4_0")])
async def test_keys_and_values_can_be_stored_in_less(
    smollm2: Path, keys: CacheType, values: CacheType, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "openai_local.llama_cpp")
    config = EngineConfig(
        smollm2, n_ctx=512, n_parallel=2, cache_type_k=keys, cache_type_v=values, flash_attn=True
    )
    async with Engine(config) as engine:
        prompt = engine.tokenize(FRANCE, parse_special=True)
        text, _ = await read(engine, GenerationRequest(prompt, 30, SamplingParams(temperature=0)))
    assert "Paris" in text
    assert f"K ({keys})" in caplog.text and f"V ({values})" in caplog.text


async def test_stored_values_without_flash_attention_are_refused(smollm2: Path) -> None:
    config = EngineConfig(smollm2, n_ctx=512, cache_type_v="q8_0", flash_attn=False)
    with pytest.raises(ModelLoadFailed, match="cache_type_v 'q8_0' needs flash_attn"):
        await Engine(config).ready()


@on_one_loop
async def test_the_memory_for_keys_and_values_bounds_the_sequences(smollm2: Path) -> None:
    async with Engine(EngineConfig(smollm2, n_ctx=2048, kv_memory=600 << 20)) as engine:
        assert engine.info.n_parallel == 8
    config = EngineConfig(smollm2, n_ctx=2048, kv_memory=600 << 20, cache_type_k="q8_0")
    async with Engine(config) as engine:
        assert engine.info.n_parallel == 16
    config = EngineConfig(smollm2, n_ctx=2048, n_parallel=16, kv_memory=600 << 20, kv_unified=False)
    with pytest.raises(ModelLoadFailed, match="720 MiB of keys and values, more than kv_memory"):
        await Engine(config).ready()
    config = EngineConfig(smollm2, n_ctx=2048, kv_memory=20 << 20)
    with pytest.raises(ModelLoadFailed, match="45 MiB of keys and values, more than kv_memory"):
        await Engine(config).ready()


@on_one_loop
async def test_sixteen_share_a_pool_where_memory_is_short(
    smollm2: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "openai_local")
    async with Engine(EngineConfig(smollm2, n_ctx=2048, kv_memory=60 << 20)) as engine:
        assert (engine.info.n_parallel, engine.info.n_ctx) == (16, 2048)
        assert engine.metrics().cells_total == 2560
    assert "16 sequences of up to 2048 tokens share one pool (unified); 2560 cells" in caplog.text


@on_one_loop
async def test_a_pool_that_runs_out_preempts_and_everybody_ends(smollm2: Path) -> None:
    config = EngineConfig(smollm2, n_ctx=512, n_parallel=4, kv_memory=12 << 20, kv_unified=True)
    greedy = SamplingParams(temperature=0, ignore_eos=True)
    ends: dict[int, tuple[str, Finished]] = {}
    async with Engine(config) as engine:

        async def ask(i: int) -> None:
            prompt = engine.tokenize(f"{i}. The history of the city of Paris begins")
            ends[i] = await read(engine, GenerationRequest(prompt, 170, greedy))

        async with anyio.create_task_group() as group:
            for i in range(4):
                group.start_soon(ask, i)
        metrics = engine.metrics()
    assert {end.usage.n_completion for _, end in ends.values()} == {170}
    assert metrics.cells_total == 512
    assert metrics.preemptions_total >= 1
    assert metrics.states_saved_total >= 1


@on_one_loop
@pytest.mark.parametrize("unified", [False, True])
async def test_a_state_that_was_saved_to_ram_goes_on_as_if_it_had_stayed(
    smollm2: Path, unified: bool
) -> None:
    greedy = SamplingParams(temperature=0, ignore_eos=True)
    texts = []
    for others in ([], ["A quite different text about the sea. " * 45]):
        config = EngineConfig(
            smollm2, n_ctx=512, n_parallel=1, kv_unified=unified, kv_memory=512 * 23040
        )
        async with Engine(config) as engine:
            prompt = engine.tokenize("The history of the city of Paris begins " * 20)
            for text in others:
                await read(engine, GenerationRequest(prompt, 1, greedy))
                await read(engine, GenerationRequest(engine.tokenize(text), 1, greedy))
            if not others:
                await read(engine, GenerationRequest(prompt, 1, greedy))
            text, end = await read(engine, GenerationRequest([*prompt, 28, 216], 40, greedy))
            assert end.usage.n_cached == len(prompt)
            restored = engine.metrics().prompt_tokens_reused_ram_total
            assert restored == (len(prompt) if others else 0)
            texts.append(text)
    assert texts[0] == texts[1]


@on_one_loop
@pytest.mark.parametrize("unified", [False, True])
async def test_a_prompt_is_not_computed_again_after_a_restart(
    smollm2: Path, tmp_path: Path, unified: bool
) -> None:
    config = EngineConfig(
        smollm2,
        n_ctx=1024,
        n_parallel=2,
        kv_unified=unified,
        kv_memory=2048 * 23040,
        cache_dir=tmp_path,
    )
    greedy = SamplingParams(temperature=0, ignore_eos=True)
    async with Engine(config) as engine:
        prompt = engine.tokenize("The history of the city of Paris begins " * 80)
        await read(engine, GenerationRequest(prompt, 40, greedy))
        # As after the restart, only the last token is left to compute: the arithmetic is the same.
        before, _ = await read(engine, GenerationRequest(prompt, 40, greedy))
    assert len(list(tmp_path.iterdir())) == 1
    async with Engine(config) as engine:
        with anyio.fail_after(10):
            while not engine.metrics().disk_bytes:
                await anyio.sleep(0.01)
        text, end = await read(engine, GenerationRequest(prompt, 40, greedy))
        metrics = engine.metrics()
    assert text == before
    assert end.usage.n_cached == len(prompt) - 1
    assert metrics.prompt_tokens_reused_disk_total == len(prompt) - 1
    assert metrics.prompt_tokens_computed_total == 1
