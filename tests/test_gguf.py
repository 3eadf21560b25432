"""Files that are cut off, changed, or made to hurt: a header or a refusal, within bounds."""

from __future__ import annotations

import functools
import struct
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from assets import tiny
from assets.edit import Fields, Tensors, Type, edited
from hypothesis import given
from hypothesis import strategies as st

from openai_local.engine.errors import InvalidGguf
from openai_local.engine.gguf import file as ours
from openai_local.engine.gguf.file import MAX_STRINGS, TENSOR_TYPES, read_gguf
from openai_local.models.gguf_file import read_header


@functools.cache
def model(name: str = "llama") -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.gguf"
        tiny.TINY_MODELS[name](path)
        return path.read_bytes()


@functools.cache
def header_length(name: str) -> int:
    return min(tensor.data_offset for tensor in _reader(name).tensors)


def _reader(name: str) -> gguf.GGUFReader:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.gguf"
        path.write_bytes(model(name))
        return gguf.GGUFReader(path)


def outcome(data: bytes) -> str:
    """The architecture, or the reason of the refusal; nothing else may happen."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.gguf"
        path.write_bytes(data)
        try:
            return read_header(path).architecture
        except InvalidGguf as error:
            assert error.path == path and error.reason and len(error.reason) < 300
            return error.reason


def header(n_tensors: int = 0, n_keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys)


def key(name: bytes, kind: int) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind)


names = st.sampled_from(sorted(tiny.TINY_MODELS))


@given(names, st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_off_anywhere_is_refused(name: str, share: float) -> None:
    data = model(name)
    reason = outcome(data[: int(len(data) * share)])
    assert reason.startswith(("it ends before", "it is cut off", "it is not a GGUF"))


@given(names, st.data())
def test_any_changed_bytes_of_the_header_make_a_header_or_a_refusal(
    name: str, draw: st.DataObject
) -> None:
    data = bytearray(model(name))
    places = st.integers(0, header_length(name) - 1)
    for at, value in draw.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1)):
        data[at] = value
    outcome(bytes(data))


@given(names, st.data())
def test_any_length_that_grows_makes_a_header_or_a_refusal(name: str, draw: st.DataObject) -> None:
    data = bytearray(model(name))
    at = draw.draw(st.integers(8, header_length(name) - 8))
    huge = st.sampled_from([2**63 - 1, 2**64 - 1, 2**32, 2**31, 2**24])
    data[at : at + 8] = draw.draw(huge).to_bytes(8, "little")
    outcome(bytes(data))


@given(st.binary(max_size=200))
def test_anything_may_follow_the_magic(data: bytes) -> None:
    outcome(b"GGUF" + data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is not a GGUF file"),
        (b"\x7fELF" + bytes(100), "it is not a GGUF file"),
        (b"PK\x03\x04" + bytes(9), "but a zip archive"),
        (b"\n<!DOCTYPE html>", "but a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "which is to be pulled"),
        (struct.pack("<Q", 99) + b'{"__metadata__":{}}', "but safetensors"),
        (b"tjgg" + bytes(9), "of the format before GGUF"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "it is big-endian, or no GGUF file"),
        (header(version=1), "it is of GGUF version 1, not 2 or 3"),
        (header(n_tensors=2**40), f"it claims to have {2**40} tensors"),
        (header(n_keys=2**63), f"it claims to have {2**63} keys"),
        (header(n_keys=1) + key(b"", 4), "a key is empty or has a NUL"),
        (header(n_keys=1) + key(b"a\0b", 4), "a key is empty or has a NUL"),
        (header(n_keys=1) + key(b"a", 77), "'a' is of an unknown type 77"),
        (header(n_keys=1) + key(b"a", 8) + b"\xff" * 8, "'a' is a string of"),
        (header(n_keys=1) + key(b"a", 9) + struct.pack("<IQ", 9, 1), "is a list of an unknown"),
        (header(n_keys=1) + key(b"a", 9) + struct.pack("<IQ", 8, 2**40), "have more than"),
        (header(n_keys=1) + key(b"a", 9) + struct.pack("<IQ", 0, 2**60), "it ends before"),
        (header(n_keys=2) + 2 * (key(b"a", 0) + b"\0"), "it has 'a' twice"),
    ],
)
def test_what_is_no_gguf_file_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    assert reason in outcome(data)


def test_a_long_list_of_strings_costs_neither_memory_nor_minutes(tmp_path: Path) -> None:
    n = MAX_STRINGS
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(header(n_keys=1) + key(b"a", 9) + struct.pack("<IQ", 8, n))
        file.truncate(file.tell() + 8 * n)
    tracemalloc.start()
    assert read_gguf(path).metadata["a"] == ours.Array("string", n)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_sparse_file_of_a_terabyte_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(header(n_keys=1) + key(b"a", 9) + struct.pack("<IQ", 0, 2**39))
        file.truncate(1 << 40)
    with pytest.raises(InvalidGguf, match="longer than 64 MiB"):
        read_header(path)


def test_types_have_the_sizes_that_the_gguf_package_knows() -> None:
    theirs = {
        int(kind): (kind.name, *sizes)
        for kind, sizes in gguf.GGML_QUANT_SIZES.items()
        if int(kind) in TENSOR_TYPES and kind.name != "Q8_1"  # never in a file; wrong in 0.19
    }
    newer = set(TENSOR_TYPES) - set(theirs)
    assert newer <= {9, 40, 41, 42}  # the last of a later llama.cpp than the package
    assert all(TENSOR_TYPES[kind] == facts for kind, facts in theirs.items())


@pytest.mark.parametrize("name", sorted(tiny.TINY_MODELS))
def test_the_header_says_what_the_gguf_package_reads(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model(name))
    reader = gguf.GGUFReader(path)
    read = read_header(path)
    assert [(t.name, t.shape, t.offset, t.n_bytes) for t in read.tensors] == [
        (t.name, tuple(map(int, t.shape)), t.data_offset, int(t.n_bytes)) for t in reader.tensors
    ]
    assert read.n_params == sum(int(t.n_elements) for t in reader.tensors)
    assert read.n_bytes == path.stat().st_size
    assert set(read.metadata) == {k for k in reader.fields if not k.startswith("GGUF.")}
    arch = read.architecture
    assert read.n_layers == reader.fields[f"{arch}.block_count"].contents()
    assert read.n_embd == tiny.N_EMBD and read.n_vocab == tiny.N_VOCAB
    assert read.n_ctx_train == reader.fields[f"{arch}.context_length"].contents()
    assert read.quantization == "F32" and read.purpose == "generation"


def test_a_rerankers_purpose_and_templates_are_told(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tiny.bert_reranker(path)
    read = read_header(path)
    assert (read.purpose, read.pooling, read.causal) == ("reranking", "rank", False)
    assert read.chat_template is None


def broken(change: Callable[[Fields, Tensors], object], name: str = "llama") -> str:
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "source.gguf"
        source.write_bytes(model(name))
        return outcome(edited(source, Path(directory) / "edited.gguf", change).read_bytes())


def setting(name: str, value: Any, kind: Type = Type.UINT32) -> Callable[[Fields, Tensors], None]:
    return lambda fields, tensors: fields.update({name: (value, kind, None)})


@pytest.mark.parametrize(
    ("key_", "value", "reason"),
    [
        ("llama.block_count", 0, "0 layers"),
        ("llama.block_count", 513, "513 layers"),
        ("llama.nextn_predict_layers", 2, "predictions ahead"),
        ("llama.embedding_length", 0, "0 dimensions"),
        ("llama.pooling_type", 9, "pooling_type is 9"),
        ("llama.attention.head_count", 3, "cannot share"),
        ("llama.attention.head_count", 0, "no heads"),
        ("llama.attention.head_count_kv", 7, "cannot share 7"),
        ("llama.attention.key_length", 0, "0 dimensions for keys"),
        ("llama.attention.value_length", 8, "32 dimensions for keys, 8 for values"),
        ("llama.rope.dimension_count", 16, "16 of the 32"),
        ("llama.expert_count", 1025, "1025 experts"),
        ("llama.expert_count", 4, "uses none"),
        ("llama.expert_used_count", 2, "uses 2 of 0 experts"),
        ("llama.expert_group_count", 2, "in 2 groups"),
        ("llama.embedding_length_out", 256, "64 dimensions, and 256 come out"),
        ("general.sampling.top_k", 40, "llama"),
        ("tokenizer.ggml.bos_token_id", 2**32 - 1, "llama"),  # llama.cpp takes its default
    ],
)
def test_metadata_that_contradict_each_other_are_refused(
    key_: str, value: int, reason: str
) -> None:
    assert reason in broken(setting(key_, value))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_an_epsilon_that_is_no_small_number_is_refused(value: float) -> None:
    key_ = "llama.attention.layer_norm_rms_epsilon"
    assert f"{key_} is {value}" in broken(setting(key_, value, Type.FLOAT32))


@pytest.mark.parametrize(
    ("value", "kind"), [("warm", Type.STRING), (float("nan"), Type.FLOAT32), (True, Type.BOOL)]
)
def test_a_recommended_sampling_that_is_no_number_is_refused(value: Any, kind: Type) -> None:
    change = setting("general.sampling.temp", value, kind)
    assert "general.sampling.temp is no number" in broken(change)


def test_a_state_must_be_twice_as_wide_in_jamba() -> None:
    assert "is not twice 32" in broken(setting("jamba.embedding_length", 32), "jamba")


@pytest.mark.parametrize(
    ("key_", "kind", "reason"),
    [
        ("general.type", "adapter", "it is an adapter"),
        ("general.type", "imatrix", "it is an importance matrix"),
        ("general.architecture", "clip", "it is a projector"),
    ],
)
def test_what_is_beside_a_model_is_none(key_: str, kind: str, reason: str) -> None:
    assert reason in broken(setting(key_, kind, Type.STRING))


def test_windows_in_all_layers_are_refused_where_there_must_be_others(tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    tiny.gemma3(source, arch="gemma-embedding")
    change = setting("gemma-embedding.attention.sliding_window_pattern", 0)
    edited(source, tmp_path / "edited.gguf", change)
    assert "in all layers" in outcome((tmp_path / "edited.gguf").read_bytes())


def test_a_norm_is_of_plain_numbers() -> None:
    def change(fields: Fields, tensors: Tensors) -> None:
        norm = tensors["output_norm.weight"]
        tensors["output_norm.weight"] = norm.astype(np.float16).reshape(1, -1)

    assert "'output_norm.weight' is of type F16" in broken(change)


def test_a_bias_is_of_plain_numbers() -> None:
    def change(fields: Fields, tensors: Tensors) -> None:
        tensors["blk.0.attn_q.bias"] = np.zeros((2, 32), np.float16)

    assert "'blk.0.attn_q.bias' is of type F16" in broken(change)


def test_a_layer_that_has_experts_uses_some() -> None:
    def change(fields: Fields, tensors: Tensors) -> None:
        fields["llama.expert_used_count"] = ([2, 0], Type.ARRAY, Type.UINT32)

    assert "it uses none of the experts of 'blk.1." in broken(change, "moe")


def test_an_unknown_scaling_is_refused() -> None:
    change = setting("llama.rope.scaling.type", "odd", Type.STRING)
    assert "rope.scaling.type is 'odd'" in broken(change)


def test_a_vocabulary_must_have_every_token_once_and_every_byte() -> None:
    def same(fields: Fields, tensors: Tensors) -> None:
        tokens, *kinds = fields["tokenizer.ggml.tokens"]
        fields["tokenizer.ggml.tokens"] = ([*tokens[:-1], tokens[0]], *kinds)

    def same_until_nul(fields: Fields, tensors: Tensors) -> None:
        tokens, *kinds = fields["tokenizer.ggml.tokens"]
        fields["tokenizer.ggml.tokens"] = ([*tokens[:-1], tokens[0] + "\0x"], *kinds)

    def no_bytes(fields: Fields, tensors: Tensors) -> None:
        tokens, *kinds = fields["tokenizer.ggml.tokens"]
        fields["tokenizer.ggml.tokens"] = ([f"t{i}" for i in range(len(tokens))], *kinds)

    def shorter(fields: Fields, tensors: Tensors) -> None:
        tokens, *kinds = fields["tokenizer.ggml.tokens"]
        fields["tokenizer.ggml.tokens"] = (tokens[:-1], *kinds)

    assert "a token twice" in broken(same)
    assert "a token twice" in broken(same_until_nul)
    assert "no token for 243 bytes" in broken(no_bytes)
    assert "258 tokens, and embeddings for 259" in broken(shorter)


@pytest.mark.parametrize(
    "edited", [("<s>", Type.STRING, None), ([1] * tiny.N_VOCAB, Type.ARRAY, Type.UINT32)]
)
def test_a_vocabulary_is_a_list_of_strings(edited: tuple[Any, Type, Type | None]) -> None:
    def change(fields: Fields, tensors: Tensors) -> None:
        fields["tokenizer.ggml.tokens"] = edited

    assert "its vocabulary is no list of strings" in broken(change)


def test_words_that_are_cut_at_spaces_need_a_vocabulary_that_does() -> None:
    def change(fields: Fields, tensors: Tensors) -> None:
        fields["tokenizer.ggml.model"] = ("gpt2", Type.STRING, None)
        fields["tokenizer.ggml.pre"] = ("whitespace", Type.STRING, None)

    assert "of kind 'gpt2' is cut at whitespace" in broken(change)


def test_a_unigram_vocabulary_has_a_sound_table() -> None:
    def change(fields: Fields, tensors: Tensors) -> None:
        fields["tokenizer.ggml.model"] = ("t5", Type.STRING, None)
        table = [4, 0, 0, 0, *(0, 255, 255, 127), 0]
        fields["tokenizer.ggml.precompiled_charsmap"] = (table, Type.ARRAY, Type.UINT8)

    assert "precompiled_charsmap leads out of itself" in broken(change)


def test_words_of_rwkv_begin_with_tokens() -> None:
    def vocabulary(last: str) -> Callable[[Fields, Tensors], None]:
        def change(fields: Fields, tensors: Tensors) -> None:
            fields["tokenizer.ggml.model"] = ("rwkv", Type.STRING, None)
            words = ["<s>", *(f"\\x{byte:02x}" for byte in range(255)), "\\n\\t", "a\\'", last]
            fields["tokenizer.ggml.tokens"] = (words, Type.ARRAY, Type.STRING)

        return change

    assert broken(vocabulary("abc")) == "llama"
    assert "whose first byte is no token" in broken(vocabulary("\\xff\\x01"))
    assert broken(vocabulary("\\xff")) == "llama"
