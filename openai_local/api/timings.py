"""llama-server's extras on chunks: how far a prompt is, and how fast things go."""

from __future__ import annotations

from typing import Any

from openai_local.engine import PromptProgress, Timings


def with_timings(chunk: dict[str, Any], timings: Timings | None) -> dict[str, Any]:
    """``chunk``, with ``timings`` where they were asked for, named as in server-common.cpp."""
    if timings is None:
        return chunk
    prompt_ms, generation_ms = timings.prompt_s * 1000, timings.generation_s * 1000
    # The first token comes with the prompt's last step.
    n_steps = max(timings.n_generated - 1, 0)
    chunk["timings"] = {
        "cache_n": timings.n_cached,
        "prompt_n": timings.n_prompt,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": _ratio(prompt_ms, timings.n_prompt),
        "prompt_per_second": _ratio(timings.n_prompt, timings.prompt_s),
        "predicted_n": timings.n_generated,
        "predicted_ms": generation_ms,
        "predicted_per_token_ms": _ratio(generation_ms, n_steps),
        "predicted_per_second": _ratio(n_steps, timings.generation_s),
    }
    return chunk


def with_progress(chunk: dict[str, Any], progress: PromptProgress) -> dict[str, Any]:
    """``chunk`` with how much of the prompt is computed, as its README has it."""
    chunk["prompt_progress"] = {
        "total": progress.n_total,
        "cache": progress.n_cached,
        "processed": progress.n_done,
        "time_ms": round(progress.seconds * 1000),
    }
    return chunk


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0
