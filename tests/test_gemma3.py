"""The engine on gemma-3-270m, three of whose eighteen layers look back beyond 512 tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from assets.gemma3 import gemma3_gguf
from reference import Reference

from openai_local.engine import (
    Engine,
    EngineConfig,
    Finished,
    GenerationRequest,
    SamplingParams,
    TextDelta,
)

pytestmark = [pytest.mark.model, pytest.mark.anyio]

WINDOW = 512
FOX = "The quick brown fox jumps over the lazy dog. "
GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    try:
        path = gemma3_gguf(tmp_path_factory.mktemp("gemma3"))
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    yield path
    path.unlink()  # pytest keeps its directories, and it is large


async def ask(engine: Engine, prompt: list[int], n: int) -> tuple[str, Finished]:
    text = ""
    async for event in engine.submit(GenerationRequest(prompt, n, GREEDY)):
        if isinstance(event, TextDelta):
            text += event.text
        else:
            return text, event
    raise AssertionError("a generation ends with Finished")


async def test_it_goes_on_in_sense(gemma3: Path) -> None:
    async with Engine(EngineConfig(gemma3, n_ctx=512, n_parallel=2)) as engine:
        text, _ = await ask(engine, engine.tokenize("Monday, Tuesday, Wednesday, Thursday,"), 6)
    assert text.startswith(" Friday, Saturday")


@pytest.mark.parametrize("unified", [False, True])
async def test_a_conversation_longer_than_the_window_is_reused_and_right(
    gemma3: Path, unified: bool
) -> None:
    config = EngineConfig(gemma3, n_ctx=2048, n_parallel=2, kv_unified=unified)
    reference = Reference(gemma3, n_threads=2)
    async with Engine(config) as engine:
        prompt = engine.tokenize(FOX.strip() + f" {FOX}".rstrip() * 60)
        assert len(prompt) > WINDOW + 64
        text, end = await ask(engine, prompt, 20)
        assert text.startswith(f" {FOX}".rstrip())
        assert end.usage.n_cached == 0
        ends = ["Once upon a time there was", "On the moon,"]
        answers: dict[str, tuple[list[int], str, Finished]] = {}

        async def go_on(tail: str) -> None:
            whole = [*prompt, *engine.tokenize(text + tail, add_special=False)]
            answers[tail] = (whole, *await ask(engine, whole, 12))

        async with anyio.create_task_group() as group:
            for tail in ends:
                group.start_soon(go_on, tail)
        cached = [end.usage.n_cached for _, _, end in answers.values()]
        # In a pool, the second starts from the first only as long as that has not gone further.
        assert max(cached) >= len(prompt) and (unified or min(cached) >= len(prompt))
        for whole, text, _ in answers.values():
            reference.check(whole, engine.tokenize(text, add_special=False))
    reference.close()
