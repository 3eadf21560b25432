"""Model files that are damaged, incomplete, or of a kind that does not generate."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from assets import tiny
from assets.tiny import FIRST_BYTE, N_EMBD, Writer

from openai_local.engine import (
    Engine,
    EngineConfig,
    GenerationRequest,
    ModelLoadFailed,
    Unsupported,
)

pytestmark = [pytest.mark.model, pytest.mark.anyio]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


async def refused(path: Path, reason: str) -> None:
    engine = Engine(EngineConfig(path, n_threads=1))
    with pytest.raises(ModelLoadFailed, match=re.escape(reason)):
        await engine.ready()
    await engine.aclose()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
async def test_a_file_that_is_cut_off_is_refused_with_the_reason(
    tmp_path: Path, share: float
) -> None:
    path = tmp_path / "model.gguf"
    tiny.llama(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    await refused(path, "it ends before its header does" if share < 0.1 else "it is cut off")


async def test_a_file_of_no_more_than_its_magic_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    await refused(path, "it ends before its header does")


@pytest.mark.parametrize(
    ("part", "reason"), [(0, "its name does not say so"), (1, "not the first part")]
)
async def test_a_part_of_a_split_file_is_refused_by_itself(
    tmp_path: Path, part: int, reason: str
) -> None:
    def split(writer: gguf.GGUFWriter) -> None:
        writer.add_uint16(gguf.Keys.Split.LLM_KV_SPLIT_NO, part)
        writer.add_uint16(gguf.Keys.Split.LLM_KV_SPLIT_COUNT, 2)
        writer.add_int32(gguf.Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, 20)

    path = tmp_path / "model.gguf"
    tiny.llama(path, edit=split)
    await refused(path, reason)


async def test_a_vocabulary_alone_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = Writer(path, "llama", 2)
    writer.sizes(2)
    writer.vocabulary()
    writer.close()
    await refused(path, "tensor 'token_embd.weight' not found")


async def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = Writer(path, "nobody", 2)
    writer.ends()
    writer.close()
    await refused(path, "unknown model architecture: 'nobody'")


@pytest.mark.parametrize("n_ctx_train", [0, 2**32 - 1])
async def test_an_absurd_context_is_refused_unless_one_is_set(
    tmp_path: Path, n_ctx_train: int
) -> None:
    path = tmp_path / "model.gguf"
    tiny.llama(path, n_ctx_train=n_ctx_train)
    await refused(path, "it claims a context of")
    async with Engine(EngineConfig(path, n_ctx=64, n_threads=1)) as engine:
        assert engine.info.n_ctx == 64


async def test_more_cells_than_can_be_counted_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tiny.mamba(path)
    engine = Engine(EngineConfig(path, n_ctx=2**30, n_parallel=4, n_threads=1))
    with pytest.raises(ModelLoadFailed, match="more than llama.cpp can count"):
        await engine.ready()
    await engine.aclose()


def not_causal(path: Path) -> None:
    tiny.llama(path, n_ctx_train=256, edit=lambda writer: writer.add_causal_attention(False))


# llama.cpp asserts that a batch can be shared by all sequences.
SHARED_AND_NOT = [(256, 512), (100, 16), (200, 150)]


@pytest.mark.parametrize(("n_ctx", "n_ubatch"), SHARED_AND_NOT)
@pytest.mark.parametrize(
    "write", [not_causal, lambda path: tiny.gemma3(path, arch="gemma-embedding")]
)
async def test_what_only_embeds_embeds_and_refuses_the_rest(
    tmp_path: Path, write: Callable[[Path], None], n_ctx: int, n_ubatch: int
) -> None:
    path = tmp_path / "model.gguf"
    write(path)
    inputs = [[FIRST_BYTE + 97 + i % 26 for i in range(n)] for n in (40, 3, 25)]
    async with Engine(EngineConfig(path, n_ctx, n_ubatch=n_ubatch, n_threads=1)) as engine:
        with pytest.raises(Unsupported):
            engine.submit(GenerationRequest([1]))
        together = await engine.embed(inputs)
        alone = np.concatenate([await engine.embed([tokens]) for tokens in inputs])
    assert together.shape == (3, N_EMBD)
    assert np.abs(together - alone).max() < 1e-4


@pytest.mark.parametrize(("n_ctx", "n_ubatch"), SHARED_AND_NOT)
@pytest.mark.parametrize("write", [tiny.bert_reranker, tiny.qwen3_reranker])
async def test_what_ranks_does_so_with_any_batch(
    tmp_path: Path, write: Callable[[Path], None], n_ctx: int, n_ubatch: int
) -> None:
    path = tmp_path / "model.gguf"
    write(path)
    inputs = [[FIRST_BYTE + 97 + i % 26 for i in range(n)] for n in (90, 3, 25)]
    async with Engine(EngineConfig(path, n_ctx, n_ubatch=n_ubatch, n_threads=1)) as engine:
        together = await engine.rank(inputs)
        alone = np.concatenate([await engine.rank([tokens]) for tokens in inputs])
    assert np.abs(together - alone).max() < 1e-4


async def test_inputs_are_as_long_as_the_memory_for_their_rows_allows(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tiny.bert_reranker(path, n_ctx_train=4096)
    memory = 2 * 1000 * 4 * (tiny.N_VOCAB + N_EMBD)
    for n_ctx, expected in ((None, 960), (2000, 2000)):
        async with Engine(EngineConfig(path, n_ctx, n_threads=1, memory=memory)) as engine:
            assert engine.info.n_ctx == expected
