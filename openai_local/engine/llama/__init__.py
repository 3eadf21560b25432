"""The only package that imports llama_cpp: our side of the seam is ``engine/backend.py``.

Wire facts are from ``llama.h``; a GGML assertion aborts the whole process, so nothing unchecked
may reach it.
"""

from openai_local.engine.llama.library import quantize_q8_0
from openai_local.engine.llama.model import LlamaBackend

__all__ = ["LlamaBackend", "quantize_q8_0"]
