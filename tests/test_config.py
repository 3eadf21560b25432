from __future__ import annotations

from pathlib import Path

import pytest

from openai_local.config import ConfigError, load_settings


def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_LOCAL_N_CTX", "512")
    monkeypatch.setenv("OPENAI_LOCAL_N_PARALLEL", "3")
    settings = load_settings(n_ctx=1024)
    assert (settings.n_ctx, settings.n_parallel) == (1024, 3)
    assert settings.engine(Path("m.gguf")).n_parallel == 3


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="'n_contxt'.*'n_ctx'|'n_contxt'"):
        load_settings(n_contxt=1)


def test_an_unknown_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_LOCAL_N_PARALEL", "3")
    with pytest.raises(ConfigError, match="OPENAI_LOCAL_N_PARALEL.*n_parallel"):
        load_settings()


def test_an_ill_typed_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="n_ctx.*'many'"):
        load_settings(n_ctx="many")
    monkeypatch.setenv("OPENAI_LOCAL_N_CTX", "few")
    with pytest.raises(ConfigError, match="OPENAI_LOCAL_N_CTX.*'few'"):
        load_settings()


def test_the_disk_tier_needs_the_one_in_ram() -> None:
    with pytest.raises(ConfigError, match="^cache_dir needs cache_ram"):
        load_settings(cache_dir="states", cache_ram=0)
