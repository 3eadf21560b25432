"""What a model will take is what llama.cpp says that it took."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
from assets import tiny
from assets.edit import Fields, Tensors, Type, edited
from assets.minilm import minilm_gguf

from openai_local.engine import EngineConfig
from openai_local.models.estimate import MemoryEstimate, estimate, kv_cost, of_embeddings
from openai_local.models.gguf_file import read_header

MIB = 1 << 20
SIZES = re.compile(r"(KV|RS|compute|output|model)\s+buffer size =\s+([\d.]+) MiB")
SETTINGS = (
    {"kv_unified": False},
    {"kv_unified": True},
    {"kv_unified": False, "cache_type_k": "q8_0", "cache_type_v": "q4_0", "n_ubatch": 128},
    {"kv_unified": False, "flash_attn": False},
)


@pytest.mark.model
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings)))
@pytest.mark.parametrize("name", sorted(tiny.TINY_MODELS))
def test_it_is_what_llama_cpp_allocates(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, settings: dict[str, object]
) -> None:
    from openai_local.engine.llama import LlamaBackend

    path = tmp_path / "model.gguf"
    tiny.TINY_MODELS[name](path)
    config = EngineConfig(path, n_ctx=2048, n_parallel=4, n_threads=1, kv_memory=1 << 30)
    config = replace(config, **settings)  # type: ignore[arg-type]
    with caplog.at_level(logging.DEBUG, "openai_local.llama_cpp"):
        LlamaBackend(config).close()
    expected = estimate(read_header(path), config)
    measured = _sizes(caplog)
    kv = measured.get("KV", 0) + measured.get("RS", 0)
    assert kv == pytest.approx(expected.n_kv / MIB, abs=0.02)
    assert measured["model"] == pytest.approx(expected.n_weights / MIB, abs=0.02)
    compute = measured["compute"] + measured["output"]
    assert 0.85 < expected.n_compute / MIB / compute < 1.4


EMBEDDERS = {
    **{name: tiny.TINY_MODELS[name] for name in ("llama", "gemma3", "jamba", "mamba")},
    "bert": tiny.bert_reranker,
    "gemma-embedding": lambda path: tiny.gemma3(path, arch="gemma-embedding"),
}


@pytest.mark.model
@pytest.mark.parametrize("n_ubatch", [128, 512])
@pytest.mark.parametrize("name", sorted(EMBEDDERS))
def test_embeddings_take_what_llama_cpp_allocates_for_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, n_ubatch: int
) -> None:
    path = tmp_path / "model.gguf"
    EMBEDDERS[name](path)
    config = EngineConfig(path, n_ctx=512, n_parallel=2, n_threads=1, n_ubatch=n_ubatch)
    _check_embeddings(caplog, config, most=1.6)


@pytest.mark.model
@pytest.mark.parametrize("n_ctx", [128, None])
def test_minilm_takes_what_llama_cpp_allocates(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, n_ctx: int | None
) -> None:
    config = EngineConfig(minilm_gguf(tmp_path), n_ctx, n_threads=1)
    _check_embeddings(caplog, config, most=1.15)


def _check_embeddings(
    caplog: pytest.LogCaptureFixture, config: EngineConfig, *, most: float
) -> None:
    from openai_local.engine.llama import LlamaBackend

    with caplog.at_level(logging.DEBUG, "openai_local.llama_cpp"):
        backend = LlamaBackend(replace(config, memory=1 << 30))
        embedding = backend.open_embedding()
        info, n_batch = backend.info, embedding.n_batch
        embedding.close()
        backend.close()
    header = read_header(config.model)
    expected = estimate(header, config)
    n_bytes = expected.n_compute
    if info.can_generate:
        n_bytes = of_embeddings(header, config, expected.plan, 1 << 30)
    measured = _sizes(caplog)
    # Those of the rows are allocated when there is a batch, and not told.
    rows = 4 * n_batch * (info.n_vocab + info.n_embd) / MIB
    total = measured.get("KV", 0) + measured.get("RS", 0) + measured["compute"] + rows
    assert 0.85 < n_bytes / MIB / total < most


def test_an_input_that_is_computed_at_once_is_as_long_as_its_rows_may_be(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tiny.bert_reranker(path, n_ctx_train=4096)
    row = 4 * (tiny.N_VOCAB + tiny.N_EMBD)
    assert plan(path, 1 << 30).plan.n_ctx == 4096
    assert plan(path, 2 * 1000 * row).plan.n_ctx == 960
    assert plan(path, 1).plan.n_ctx == 512
    assert plan(path, 1, n_ctx=2000).plan.n_ctx == 2000
    assert plan(path, 1 << 30, n_ctx=9999).plan.n_ctx == 4096


def _sizes(caplog: pytest.LogCaptureFixture) -> dict[str, float]:
    """Those of the last context: the first one is of the engine's own measurement."""
    lines = [record.getMessage() for record in caplog.records]
    contexts = [i for i, line in enumerate(lines) if "constructing llama_context" in line]
    sizes: dict[str, float] = {}
    for i, line in enumerate(lines):
        match = SIZES.search(line)
        if match and (i > contexts[-1] or match[1] == "model"):
            sizes[match[1]] = sizes.get(match[1], 0) + float(match[2])
    return sizes


def plan(path: Path, n_free: int, **settings: object) -> MemoryEstimate:
    config = replace(EngineConfig(path), **settings)  # type: ignore[arg-type]
    return estimate(read_header(path), config, n_free)


def test_what_is_not_set_is_chosen_as_the_engine_chooses(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tiny.llama(path)
    assert kv_cost(read_header(path), EngineConfig(path)).token == 2 * 2 * tiny.N_EMBD * 2
    roomy = plan(path, 1 << 30)
    assert (roomy.plan.n_ctx, roomy.plan.n_parallel, roomy.plan.unified) == (4096, 16, False)
    assert roomy.n_kv == 16 * 4096 * 2 * 2 * tiny.N_EMBD * 2
    tight = plan(path, 8 << 20)
    assert tight.plan.unified and tight.n_kv <= 2 << 20
    assert plan(path, 1 << 30, n_ctx=1024, n_parallel=2).n_kv == roomy.n_kv // 32


def test_windows_and_states_do_not_grow_with_the_context(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tiny.gemma3(path)
    short, long = (plan(path, 1 << 30, n_ctx=n, n_parallel=1).n_kv for n in (2048, 4096))
    token = 2 * (tiny.N_EMBD // tiny.N_HEAD) * 2
    assert long - short == 2048 * token  # one layer of the four keeps all
    tiny.mamba(path)
    short, long = (plan(path, 1 << 30, n_ctx=n, n_parallel=1).n_kv for n in (2048, 4096))
    assert short == long > 0


def test_a_latent_attention_keeps_keys_alone(tmp_path: Path) -> None:
    def edit(fields: Fields, tensors: Tensors) -> None:
        for key in list(fields):
            if key.startswith("llama."):
                fields["deepseek2" + key.removeprefix("llama")] = fields.pop(key)
        fields["general.architecture"] = ("deepseek2", Type.STRING, None)
        for key, value in {"head_count_kv": 1, "key_length": 40, "key_length_mla": 24}.items():
            fields[f"deepseek2.attention.{key}"] = (value, Type.UINT32, None)

    tiny.llama(tmp_path / "source.gguf")
    path = edited(tmp_path / "source.gguf", tmp_path / "model.gguf", edit)
    assert kv_cost(read_header(path), EngineConfig(path)).token == 2 * 40 * 2


def test_what_only_embeds_has_no_keys_to_keep(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tiny.bert_reranker(path)
    memory = plan(path, 1 << 30)
    assert memory.n_kv == 0 and memory.plan.n_cells == 0
    assert memory.n_total == memory.n_weights + memory.n_vocabulary + memory.n_compute
