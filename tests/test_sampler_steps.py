"""The steps of sampling: their order, what switches them off, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from openai_local.engine import InvalidSampling, SamplingParams
from openai_local.engine.sampler_steps import (
    ORDER,
    active_steps,
    check,
    effective,
    is_greedy,
    needs_chain,
    penalties_first,
    recommended,
)

# With these, every step does something.
ALL: dict[str, Any] = {
    "repeat_penalty": 1.1, "dry_multiplier": 0.8, "top_n_sigma": 2.0, "top_k": 9,
    "typical_p": 0.9, "top_p": 0.9, "min_p": 0.1, "xtc_probability": 0.5, "temperature": 0.5,
}  # fmt: skip


def test_nothing_is_active_by_default_and_everything_can_be() -> None:
    assert active_steps(SamplingParams()) == ()
    assert active_steps(SamplingParams(**ALL)) == ORDER
    for name, step in zip(ALL, ORDER, strict=True):
        assert active_steps(SamplingParams(**{name: ALL[name]})) == (step,)


@pytest.mark.parametrize(
    "switched_off",
    [
        {"repeat_penalty": 1.1, "repeat_last_n": 0},
        {"dry_multiplier": 1.0, "dry_penalty_last_n": 0},
        {"xtc_probability": 1.0, "xtc_threshold": 0.6},
        {"top_n_sigma": 0.0},
        {"dynatemp_exponent": 2.0},
        {"mirostat_tau": 1.0},
    ],
)
def test_a_step_without_reach_is_off(switched_off: dict[str, Any]) -> None:
    assert active_steps(SamplingParams(**switched_off)) == ()
    assert not needs_chain(SamplingParams(**switched_off))


def test_what_an_order_leaves_out_is_off() -> None:
    params = effective(SamplingParams(**ALL, samplers=("top_p", "top_k")))
    assert active_steps(params) == ("top_p", "top_k")
    assert (params.temperature, params.repeat_penalty, params.top_k) == (1.0, 1.0, 9)
    assert effective(SamplingParams(**ALL)) == SamplingParams(**ALL)
    with_mirostat = effective(SamplingParams(**ALL, mirostat=2))
    assert active_steps(with_mirostat) == ("penalties", "temperature")


@pytest.mark.parametrize(
    ("params", "chain"),
    [
        ({}, False),
        ({"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8}, False),
        ({"repeat_penalty": 1.1, "presence_penalty": 1, "top_k": 5}, False),
        ({"samplers": ("temperature", "top_k"), "temperature": 0.5}, False),
        ({"samplers": ("temperature", "top_k"), "temperature": 0.5, "top_k": 5}, True),
        ({"samplers": ("top_k", "penalties"), "top_k": 5, "repeat_penalty": 1.1}, True),
        ({"min_keep": 3}, False),
        ({"min_keep": 3, "top_p": 0.5}, True),
        ({"dynatemp_range": 0.5}, True),
        ({"mirostat": 1}, True),
        ({"typical_p": 0.5}, True),
        ({"top_n_sigma": 1.0}, True),
        ({"xtc_probability": 0.5}, True),
        ({"dry_multiplier": 0.5}, True),
    ],
)
def test_the_chain_is_for_what_the_plain_draws_do_not_do(
    params: dict[str, Any], chain: bool
) -> None:
    assert needs_chain(effective(SamplingParams(**params))) is chain


@pytest.mark.parametrize(
    ("params", "greedy"),
    [
        ({}, True),
        ({"top_k": 5, "top_p": 0.5, "top_n_sigma": 1.0, "repeat_penalty": 1.1}, True),
        ({"mirostat": 2}, True),
        ({"dry_multiplier": 0.5}, False),
        ({"xtc_probability": 0.5}, False),
        ({"typical_p": 0.5}, False),
        ({"dynatemp_range": 0.5}, False),
        ({"samplers": ("top_k",), "top_k": 5}, False),
        ({"samplers": ("temperature", "penalties"), "repeat_penalty": 1.1}, False),
    ],
)
def test_without_temperature_the_likeliest_is_taken_unless_a_step_moves_it(
    params: dict[str, Any], greedy: bool
) -> None:
    assert is_greedy(effective(SamplingParams(temperature=0, **params))) is greedy
    assert not is_greedy(effective(SamplingParams(temperature=0.5, **params)))


def test_penalties_come_first_unless_an_active_step_is_before_them() -> None:
    order = ("top_k", "penalties")
    assert penalties_first(SamplingParams(samplers=order, repeat_penalty=1.1))
    assert not penalties_first(SamplingParams(samplers=order, repeat_penalty=1.1, top_k=3))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 1.1),
        ("top_k", 2**31),
        ("repeat_penalty", 0),
        ("repeat_last_n", -2),
        ("dry_base", 0.5),
        ("dry_sequence_breakers", ("",)),
        ("dry_sequence_breakers", ("a\0b",)),
        ("dry_sequence_breakers", ("é" * 21,)),
        ("dry_sequence_breakers", ("a",) * 17),
        ("mirostat", 3),
        ("samplers", ("top_k", "top_k")),
        ("samplers", ("guess",)),
        ("samplers", ("infill",)),
        ("samplers", ("infill", "top_k")),
        ("logit_bias", {1: float("nan")}),
        ("logit_bias", {1: float("inf")}),
    ],
)
def test_what_would_fail_below_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidSampling) as refused:
        check(SamplingParams(**{name: value}))
    assert refused.value.name == name


def test_what_is_neutral_and_what_is_active_passes() -> None:
    check(SamplingParams())
    check(SamplingParams(top_k=256, samplers=("top_k", "top_p", "infill")))
    with pytest.raises(InvalidSampling, match="top_k"):
        check(SamplingParams(top_k=257, samplers=("top_k", "infill")))
    assert not is_greedy(SamplingParams(temperature=0, top_k=9, samplers=("top_k", "infill")))
    check(SamplingParams(**ALL, samplers=ORDER, repeat_last_n=-1, dry_penalty_last_n=-1))


def test_what_a_file_recommends_is_taken_where_it_can_be() -> None:
    values = {"temp": 0.6, "top_k": 20.0, "penalty_last_n": -1.0, "penalty_repeat": 1.05}
    expected = {"temperature": 0.6, "top_k": 20, "repeat_last_n": -1, "repeat_penalty": 1.05}
    assert recommended(values) == expected
    assert isinstance(recommended(values)["top_k"], int)
    assert recommended({"top_k": -1.0, "top_p": 1.5, "temp": float("nan"), "unknown": 1.0}) == {}
    check(SamplingParams(**recommended(values)))
