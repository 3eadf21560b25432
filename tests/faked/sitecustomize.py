"""On a process's PYTHONPATH it puts the fake backend in llama.cpp's place, in its children, too."""

import sys
from types import ModuleType
from typing import Any


def _open(config: Any, stopping: Any) -> Any:
    from fakes import FakeBackend

    return FakeBackend(n_ctx=4096, n_slots=4, step_s=0.002)


_llama: Any = ModuleType("openai_local.engine.llama")
_llama.LlamaBackend = _open
sys.modules[_llama.__name__] = _llama
