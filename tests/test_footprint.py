"""What a model takes of a budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from assets import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openai_local.engine import EngineConfig, ModelLoadFailed
from openai_local.models.footprint import OVERHEAD_BYTES, within
from openai_local.models.gguf_file import read_header

MIB = 1 << 20


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    tiny.llama(path)
    return EngineConfig(path)


@settings(suppress_health_check=list(HealthCheck))
@given(st.integers(64, 100_000))
def test_what_is_left_to_itself_fits_and_grows_with_the_budget(
    config: EngineConfig, budget: int
) -> None:
    weights = read_header(config.model).n_weight_bytes
    sized, n_bytes = within(config, budget * MIB)
    assert weights + OVERHEAD_BYTES < n_bytes <= budget * MIB
    assert sized == replace(config, memory=budget * MIB - weights)
    assert n_bytes <= within(config, (budget + 100) * MIB)[1]


def test_what_was_set_is_counted_whatever_the_budget(config: EngineConfig) -> None:
    fixed = replace(config, n_ctx=512, n_parallel=2, n_ubatch=64, cache_ram=0, kv_unified=False)
    _, small = within(fixed, 4 * MIB)
    assert small == within(fixed, 4000 * MIB)[1] > 4 * MIB
    assert within(replace(fixed, cache_ram=7 * MIB), 4 * MIB)[1] == small + 7 * MIB
    assert within(replace(fixed, n_parallel=4), 4 * MIB)[1] > small


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    for name in ("a.gguf", "none.gguf"):
        with pytest.raises(ModelLoadFailed):
            within(EngineConfig(tmp_path / name), MIB)
