from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_local.models.hub_files import NoSuchModel, choose, model_files
from openai_local.models.sources import (
    HubSource,
    InvalidSource,
    WebSource,
    default_id,
    parse_source,
)

SUM = "a" * 64


@pytest.mark.parametrize(
    ("text", "source", "name"),
    [
        ("dir/Model.gguf", Path("dir/Model.gguf"), "model"),
        ("big-00001-of-00003.gguf", Path("big-00001-of-00003.gguf"), "big"),
        ("hf:Owner/Name-GGUF", HubSource("Owner/Name-GGUF"), "name"),
        ("hf:o/n@v1.0", HubSource("o/n", "v1.0"), "n"),
        ("hf:o/n@refs/pr/1:Q8_0", HubSource("o/n", "refs/pr/1", "Q8_0"), "n"),
        ("hf:o/n:UD-Q4_K_XL", HubSource("o/n", None, "UD-Q4_K_XL"), "n"),
        ("hf:o/n:sub/M-Q8.gguf", HubSource("o/n", file="sub/M-Q8.gguf"), "m-q8"),
        ("https://h/x/M%20a.gguf", WebSource("https://h/x/M%20a.gguf"), "m a"),
        (f"https://h/m.gguf#sha256={SUM}", WebSource("https://h/m.gguf", (SUM,)), "m"),
        ("http://127.0.0.1:1/m.gguf", WebSource("http://127.0.0.1:1/m.gguf"), "m"),
        (
            f"https://h/m-00001-of-00002.gguf#sha256={SUM},{SUM}",
            WebSource("https://h/m-00001-of-00002.gguf", (SUM, SUM)),
            "m",
        ),
    ],
)
def test_a_setting_names_a_source(text: str, source: object, name: str) -> None:
    parsed = parse_source(text)
    assert parsed == source
    assert default_id(parsed) == name


@pytest.mark.parametrize(
    "text",
    [
        "", "a\0b", "hf:", "hf:name", "hf:o/n/x", "hf:../n", "hf:o/n:", "hf:o/n@:Q8_0",
        "hf:o/n:../x.gguf", "hf:o/n:/etc/x.gguf", "hf:o/n:a\\b.gguf", "hf:o/n:Q8 0",
        "https://h/m.bin", "https:///m.gguf", "https://h:99999/m.gguf", "http://h/m.gguf",
        "https://h/m.gguf#sha256=12", "https://h/m.gguf#md5=" + SUM, "https://[::1/m.gguf",
        f"https://h/m-00002-of-00002.gguf#sha256={SUM},{SUM}",
        f"https://h/m-00001-of-00002.gguf#sha256={SUM}",
    ],
)  # fmt: skip
def test_what_names_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidSource):
        parse_source(text)


@given(st.text())
def test_any_text_is_a_source_or_is_refused(text: str) -> None:
    for prefix in ("", "hf:", "https://"):
        try:
            source = parse_source(prefix + text)
        except InvalidSource:
            continue
        assert default_id(source) is not None and str(source) is not None


def test_a_source_is_shown_without_secrets() -> None:
    source = parse_source("https://user:word@h:8443/a/m.gguf?token=1")
    assert str(source) == "https://h:8443/a/m.gguf"
    assert str(parse_source("hf:o/n@v1:q8_0")) == "hf:o/n@v1:q8_0"


REPOSITORY = [
    "README.md",
    "mmproj-model-F16.gguf",
    "imatrix.gguf",
    "mtp-model-Q4_K_M.gguf",
    "model-Q2_K.gguf",
    "model-Q4_K_M.gguf",
    "model-UD-Q4_K_XL.gguf",
    "model-Q8_0.gguf",
    "BF16/model-BF16-00001-of-00002.gguf",
    "BF16/model-BF16-00002-of-00002.gguf",
]


def chosen(text: str, names: list[str] = REPOSITORY) -> list[str]:
    source = parse_source(text)
    assert isinstance(source, HubSource)
    return choose(source, names)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("hf:o/n", ["model-Q4_K_M.gguf"]),
        ("hf:o/n:q8_0", ["model-Q8_0.gguf"]),
        ("hf:o/n:Q2_K", ["model-Q2_K.gguf"]),
        ("hf:o/n:UD-Q4_K_XL", ["model-UD-Q4_K_XL.gguf"]),
        ("hf:o/n:bf16", REPOSITORY[-2:]),
        ("hf:o/n:model-bf16-00001-of-00002.gguf", REPOSITORY[-2:]),
        ("hf:o/n:mmproj-model-F16.gguf", ["mmproj-model-F16.gguf"]),  # as named
    ],
)
def test_one_model_of_a_repository_is_chosen_with_all_its_parts(
    text: str, names: list[str]
) -> None:
    assert chosen(text) == names


def test_without_a_name_it_is_q4_k_m_or_q8_0_or_the_only_one() -> None:
    assert chosen("hf:o/n", ["m-Q8_0.gguf", "m-Q2_K.gguf"]) == ["m-Q8_0.gguf"]
    assert chosen("hf:o/n", ["m.gguf", "mmproj.gguf"]) == ["m.gguf"]
    assert chosen("hf:o/n", ["q4_k_m/m.gguf", "q8_0/m.gguf"]) == ["q4_k_m/m.gguf"]
    assert chosen("hf:o/n:Q4_K_M", ["m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf"]) == ["m-Q4_K_M.gguf"]


@pytest.mark.parametrize(
    ("text", "names", "reason"),
    [
        ("hf:o/n", ["README.md", "mmproj.gguf"], "no GGUF model"),
        ("hf:o/n", ["a-Q2_K.gguf", "a-Q3_K.gguf"], "a-Q2_K.gguf, a-Q3_K.gguf"),
        ("hf:o/n:Q5_0", REPOSITORY, "it has no Q5_0; there are"),
        ("hf:o/n:Q4_K", REPOSITORY, "it has no Q4_K; there are"),
        ("hf:o/n:x.gguf", REPOSITORY, "it has no file x.gguf"),
        ("hf:o/n:Q8_0", ["a-Q8_0.gguf", "b-Q8_0.gguf"], "any of a-Q8_0.gguf, b-Q8_0.gguf"),
        ("hf:o/n:BF16", REPOSITORY[:-1], "BF16-00002-of-00002.gguf is not there"),
    ],
)
def test_what_is_not_there_or_not_clear_is_refused_with_what_there_is(
    text: str, names: list[str], reason: str
) -> None:
    with pytest.raises(NoSuchModel, match=reason):
        chosen(text, names)


def test_projectors_and_drafts_are_no_models() -> None:
    assert model_files(REPOSITORY) == [
        "BF16/model-BF16-00001-of-00002.gguf",
        "model-Q2_K.gguf",
        "model-Q4_K_M.gguf",
        "model-Q8_0.gguf",
        "model-UD-Q4_K_XL.gguf",
    ]
