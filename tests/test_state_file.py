"""One state's file: what is written is read, and nothing else is taken for it."""

from __future__ import annotations

import os
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from openai_local.engine.backend import State
from openai_local.engine.cache import state_file
from openai_local.engine.cache.state_file import (
    DamagedEntry,
    ForeignFile,
    Key,
    OtherVersion,
    digest,
    file_size,
    is_name,
    open_file,
    pack,
    read_header,
    read_key,
    read_state,
    write_state,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> None:
    """What power cuts do is not tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(state_file, "_CHUNK_BYTES", 7)
        yield  # type: ignore[misc]


def key(*tokens: int, salt: str = "") -> Key:
    return Key(digest("model"), digest(salt), pack(tokens))


def state(content: bytes = b"0123456789") -> State:
    return np.frombuffer(content, np.uint8)


def write(folder: Path, key: Key, state: State) -> Path:
    return write_state(folder, key, state, between=lambda: None)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40), st.text(), st.binary(min_size=1)
)
def test_what_is_written_is_read(
    folder: Path, tokens: list[int], salt: str, content: bytes
) -> None:
    path = write(folder, key(*tokens, salt=salt), state(content))
    assert is_name(path.name)
    assert path.stat().st_size == file_size(len(tokens), len(content))
    assert read_state(path).tobytes() == content
    with open_file(path) as file:
        header = read_header(file, path)
        assert (header.n_tokens, header.n_bytes) == (len(tokens), len(content))
        assert read_key(file, path, header) == key(*tokens, salt=salt)


def test_different_models_salts_and_tokens_have_different_files() -> None:
    keys = [key(1, 2), key(1), key(1, 2, salt="a"), Key(digest("b"), digest(""), pack([1, 2]))]
    assert len({key.file_name for key in keys}) == 4


def test_only_the_owner_can_read_it_and_a_salt_is_not_in_it(tmp_path: Path) -> None:
    path = write(tmp_path, key(1, salt="a secret"), state())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"a secret" not in path.read_bytes()


ORIGINAL = b"the state of a sequence"


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 110), st.integers(1, 255)), max_size=5),
    st.integers(0, 110),
    st.binary(max_size=3),
)
@example([(8, 3)], 110, b"")
@example([(12, 1)], 110, b"")
@example([(16 + 5, 1)], 110, b"")
def test_no_damage_is_ever_taken_for_a_state(
    folder: Path, flips: list[tuple[int, int]], n_left: int, more: bytes
) -> None:
    path = write(folder, key(1, 2, 3), state(ORIGINAL))
    whole = path.read_bytes()
    content = bytearray(whole)
    for at, change in flips:
        content[at % len(content)] ^= change
    content = content[:n_left] + more
    path.write_bytes(content)
    if content == whole:
        assert read_state(path).tobytes() == ORIGINAL
    else:
        with pytest.raises(DamagedEntry):
            read_state(path)


def test_every_byte_and_every_length_matters(folder: Path) -> None:
    path = write(folder, key(1, 2, 3), state(ORIGINAL))
    whole = path.read_bytes()
    for i in range(len(whole)):
        for content in (whole[:i], whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :]):
            path.write_bytes(content)
            with pytest.raises(DamagedEntry):
                read_state(path)


def test_another_version_and_foreign_files_are_told_apart_from_damage(folder: Path) -> None:
    path = write(folder, key(1, 2), state())
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + b"\x02" + whole[9:])
    with pytest.raises(OtherVersion):
        read_state(path)
    path.write_bytes(b"GGUF" + whole[4:])
    with pytest.raises(ForeignFile):
        read_state(path)
    path.write_bytes(write(folder, key(1, 3), state()).read_bytes())
    with pytest.raises(ForeignFile, match="another state"):
        read_state(path)
    path.write_bytes(b"")
    with pytest.raises(DamagedEntry) as cut:
        read_state(path)
    assert not isinstance(cut.value, ForeignFile)


def test_a_forged_size_asks_for_no_memory(folder: Path) -> None:
    path = write(folder, key(1, 2), state())
    head = bytearray(path.read_bytes()[:64])
    struct.pack_into("<Q", head, 16, 1 << 60)
    path.write_bytes(head + struct.pack("<I", zlib.crc32(head)))
    with pytest.raises(DamagedEntry, match="bytes instead of"):
        read_state(path)


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = write(tmp_path / "elsewhere", key(1), state())
    link = tmp_path / path.name
    link.symlink_to(path)
    with pytest.raises(OSError):
        read_state(link)


@pytest.mark.parametrize("at", [0, 1])
def test_what_ends_the_writing_leaves_what_was_there(tmp_path: Path, at: int) -> None:
    path = write(tmp_path, key(1, 2), state())
    n_calls = 0

    def between() -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls > at:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        write_state(tmp_path, key(1, 2), state(b"other than before"), between)
    assert list(tmp_path.iterdir()) == [path]
    assert read_state(path).tobytes() == b"0123456789"


def test_a_disk_that_fails_leaves_no_part_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError):
        write(tmp_path, key(1, 2), state())
    assert list(tmp_path.iterdir()) == []
