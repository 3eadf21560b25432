"""The steps of llama.cpp's sampling, their order and their neutral values. Pure, no logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from openai_local.engine.errors import InvalidSampling
from openai_local.engine.messages import SamplingParams

# llama-server's, in common/common.h.
ORDER = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typ_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)
# What is a step only by name: it weighs the end against the text that goes between two others.
INFILL = "infill"
STEPS = (*ORDER, INFILL)
# It compares each candidate with each: 256 of them take 2 ms, a vocabulary minutes.
MAX_INFILL = 256
# The values with which a step does nothing.
NEUTRAL: dict[str, dict[str, Any]] = {
    "penalties": {"repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    "dry": {"dry_multiplier": 0.0},
    "top_n_sigma": {"top_n_sigma": -1.0},
    "top_k": {"top_k": 0},
    "typ_p": {"typical_p": 1.0},
    "top_p": {"top_p": 1.0},
    "min_p": {"min_p": 0.0},
    "xtc": {"xtc_probability": 0.0},
    "temperature": {"temperature": 1.0, "dynatemp_range": 0.0},
}
# What engine/draw.py and the Sampler do, in this order.
PLAIN = ("penalties", "top_k", "top_p", "min_p", "temperature")
# These may leave the likeliest token out.
MOVE_THE_TOP = {"dry", "typ_p", "xtc", INFILL}
# With mirostat, the rest has no place.
WITH_MIROSTAT = {"penalties", "temperature"}

# Dividing logits by less overflows.
GREEDY_BELOW = 1e-6

# What a model file may recommend for itself, by its names there (``general.sampling.*``).
RECOMMENDED = {
    "temp": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "penalty_repeat": "repeat_penalty",
    "penalty_last_n": "repeat_last_n",
}
_WHOLE = {"top_k", "repeat_last_n"}

# llama.cpp cuts longer ones, within a character.
MAX_BREAKER_BYTES = 40
MAX_BREAKERS = 16

_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 1e6),
    "top_p": (0, 1),
    "top_k": (0, 2**31 - 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "top_n_sigma": (-1e6, 1e6),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "dynatemp_range": (0, 100),
    "dynatemp_exponent": (0, 100),
    "mirostat": (0, 2),
    "mirostat_tau": (0, 100),
    "mirostat_eta": (0, 1),
    "presence_penalty": (-100, 100),
    "frequency_penalty": (-100, 100),
    "repeat_penalty": (0.01, 100),
    "repeat_last_n": (-1, 2**31 - 1),
    "dry_multiplier": (0, 100),
    "dry_base": (1, 100),
    "dry_allowed_length": (0, 2**31 - 1),
    "dry_penalty_last_n": (-1, 2**31 - 1),
    "min_keep": (0, 2**31 - 1),
    "min_tokens": (0, 2**31 - 1),
}


def check(params: SamplingParams) -> None:
    """Raises InvalidSampling for what llama.cpp's samplers, or ours, would fail or abort on."""
    for name, (low, high) in _RANGES.items():
        value = getattr(params, name)
        if not low <= value <= high:
            raise InvalidSampling(name, f"is {value}, not between {low:g} and {high:g}")
    if any(math.isnan(bias) or bias == math.inf for bias in params.logit_bias.values()):
        raise InvalidSampling("logit_bias", "has a bias that is no number")
    breakers = params.dry_sequence_breakers
    if len(breakers) > MAX_BREAKERS:
        raise InvalidSampling("dry_sequence_breakers", f"are more than {MAX_BREAKERS}")
    for breaker in breakers:
        n_bytes = len(breaker.encode("utf-8", "replace"))
        if not 0 < n_bytes <= MAX_BREAKER_BYTES or "\0" in breaker:
            reason = f"must be texts of 1 to {MAX_BREAKER_BYTES} bytes"
            raise InvalidSampling("dry_sequence_breakers", reason)
    order = params.samplers or ()
    if len(set(order)) < len(order) or not set(order) <= set(STEPS):
        raise InvalidSampling("samplers", f"must name each of {', '.join(STEPS)} at most once")
    if INFILL in order and not (
        "top_k" in order[: order.index(INFILL)] and 0 < params.top_k <= MAX_INFILL
    ):
        reason = f"must have top_k, of at most {MAX_INFILL}, before {INFILL}"
        raise InvalidSampling("samplers", reason)


def recommended(values: Mapping[str, float]) -> dict[str, Any]:
    """Fields of SamplingParams from what a file recommends; what is out of range is left out."""
    fields: dict[str, Any] = {}
    for key, name in RECOMMENDED.items():
        if key in values:
            low, high = _RANGES[name]
            if low <= values[key] <= high:
                fields[name] = int(values[key]) if name in _WHOLE else values[key]
    return fields


def effective(params: SamplingParams) -> SamplingParams:
    """``params`` with the steps switched off that their order leaves out."""
    if params.mirostat:
        left_out = [step for step in ORDER if step not in WITH_MIROSTAT]
    elif params.samplers is not None:
        left_out = [step for step in ORDER if step not in params.samplers]
    else:
        return params
    off = {name: value for step in left_out for name, value in NEUTRAL[step].items()}
    return replace(params, **off)


def active_steps(params: SamplingParams) -> tuple[str, ...]:
    """The steps that do something, in their order."""
    order = ORDER if params.samplers is None or params.mirostat else params.samplers
    return tuple(step for step in order if _is_active(params, step))


def penalties_first(params: SamplingParams) -> bool:
    """Whether the penalties see all logits as the model gave them, bias aside."""
    steps = active_steps(params)
    return "penalties" not in steps or steps[0] == "penalties"


def is_greedy(params: SamplingParams) -> bool:
    """Whether the likeliest token is taken, after bias and penalties."""
    if params.temperature > GREEDY_BELOW or params.dynatemp_range > 0:
        return False
    return MOVE_THE_TOP.isdisjoint(active_steps(params)) and penalties_first(params)


def needs_chain(params: SamplingParams) -> bool:
    """Whether it takes llama.cpp's own samplers."""
    steps = active_steps(params)
    in_order = [step for step in PLAIN if step in steps]
    return bool(
        params.mirostat
        or params.dynatemp_range > 0
        or list(steps) != in_order
        or (params.min_keep > 1 and {"top_p", "min_p"} & set(steps))
    )


def _is_active(params: SamplingParams, step: str) -> bool:
    if step == INFILL:
        return True
    if step == "penalties" and params.repeat_last_n == 0:
        return params.presence_penalty != 0 or params.frequency_penalty != 0
    if step == "dry" and params.dry_penalty_last_n == 0:
        return False
    if step == "xtc" and params.xtc_threshold > 0.5:
        return False
    if step == "top_n_sigma":
        return params.top_n_sigma > 0
    return any(getattr(params, name) != value for name, value in NEUTRAL[step].items())
