"""The package's door: its names, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import openai_local

LOADED = """
import sys
before = set(sys.modules)
import openai_local
openai_local.app
heavy = {"llama_cpp", "numpy", "pydantic", "starlette", "anyio", "jinja2"} & set(sys.modules)
assert not heavy - before, heavy
local = openai_local.app("model.gguf")
assert "llama_cpp" not in sys.modules
"""


def test_importing_it_loads_nothing_and_an_application_no_llama_cpp() -> None:
    subprocess.run([sys.executable, "-c", LOADED], check=True, timeout=60)


def test_every_public_name_is_there_and_listed() -> None:
    for name in openai_local.__all__:
        assert getattr(openai_local, name).__name__ == name
    assert set(openai_local.__all__) <= set(dir(openai_local))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = openai_local.no_such_name


def test_app_is_still_a_function_once_everything_was_imported() -> None:
    import openai_local.application

    assert callable(openai_local.app)
    assert isinstance(openai_local.app("m.gguf"), openai_local.Application)


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(openai_local.ConfigError, match="n_contxt.*n_ctx"):
        openai_local.app("m.gguf", n_contxt=3)
