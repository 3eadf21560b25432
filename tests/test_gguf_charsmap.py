from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_local.engine.gguf.charsmap import is_sound

N_NODES = 512
LEAF = 1 << 8


def node(byte: int, base: int, *, leaf: bool = False) -> int:
    return byte | base << 10 | LEAF * leaf


def charsmap(nodes: dict[int, int], texts: bytes = b"b\0") -> bytes:
    array = [nodes.get(i, 0x80000000) for i in range(N_NODES)]
    return struct.pack(f"<I{N_NODES}I", 4 * N_NODES, *array) + texts


# The root is at 0, and "a" leads to its text, at 256.
A = {0: node(0, 0), ord("a"): node(ord("a"), 256 ^ ord("a"), leaf=True), 256: 0}


def test_what_leads_to_a_text_is_sound() -> None:
    assert is_sound(charsmap(A))
    assert is_sound(charsmap({0: node(0, 0)}))


def test_what_leads_to_itself_comes_to_an_end() -> None:
    assert is_sound(charsmap({0: node(0, 0), ord("a"): node(ord("a"), ord("a"))}))


@pytest.mark.parametrize(
    ("nodes", "texts"),
    [
        ({0: node(0, N_NODES)}, b"b\0"),
        (A | {256: 2}, b"b\0"),  # behind the last text
        (A, b"b"),  # which has no end
        (A | {ord("a"): node(ord("a"), 5000)}, b"b\0"),
        (A | {ord("a"): node(ord("a"), N_NODES ^ ord("a"), leaf=True)}, b"b\0"),
        (A, b""),
    ],
)
def test_what_leads_out_is_not(nodes: dict[int, int], texts: bytes) -> None:
    assert not is_sound(charsmap(nodes, texts))


@given(st.binary(max_size=100))
def test_anything_is_one_or_the_other(data: bytes) -> None:
    assert is_sound(data) in (True, False)
    is_sound(struct.pack("<I", len(data) // 2) + data)
