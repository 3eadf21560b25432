"""What is in the directory and what goes: caps, crashes, other processes and strange files."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import tempfile
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openai_local.engine.cache import state_directory
from openai_local.engine.cache.disk_index import DiskIndex
from openai_local.engine.cache.state_directory import StateDirectory
from openai_local.engine.cache.state_file import (
    DamagedEntry,
    ForeignFile,
    Key,
    digest,
    file_size,
    pack,
)

N_STATE = 1000
ONE_FILE = file_size(10, N_STATE)


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


class Disk:
    """A directory as one process knows it."""

    def __init__(
        self,
        path: Path,
        max_bytes: int = 1 << 20,
        *,
        model: str = "model",
        can_drop: bool = True,
        n_tokens_max: int = 1000,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self.index = DiskIndex()
        self.model = digest(model)
        self.directory = StateDirectory(
            path, max_bytes, self.model, self.index,
            n_tokens_max=n_tokens_max, can_drop=can_drop, between=between,
        )  # fmt: skip
        self.tidy = self.directory.tidy

    def key(self, tokens: list[int], salt: str = "") -> Key:
        return Key(self.model, digest(salt), pack(tokens))

    def write(self, tokens: list[int], salt: str = "") -> Path:
        key = self.key(tokens, salt)
        self.directory.write(key, content(key))
        return self.directory.path / key.file_name

    def reads(self, tokens: list[int], salt: str = "") -> bool:
        """Whether exactly this is there, and right."""
        key = self.key(tokens, salt)
        entry = self.index.find(key.tokens, key.salt)
        return entry is not None and bool((self.directory.read(entry) == content(key)).all())


def content(key: Key) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A state that tells whose it is."""
    seed = int.from_bytes(digest(key.file_name), "little")
    return np.random.default_rng(seed).integers(0, 256, N_STATE, np.uint8)


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def tens(first: int) -> list[int]:
    """Ten tokens that begin as no others do."""
    return [first, *range(9)]


def test_what_one_wrote_the_next_one_reads(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    Disk(path).write(tens(1), "salt")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    later = Disk(path)
    later.tidy()
    assert later.reads(tens(1), "salt") and not later.reads(tens(1))
    assert later.directory.n_bytes == size(path) == ONE_FILE


def test_another_model_and_longer_states_are_left_alone_until_there_is_no_room(
    tmp_path: Path,
) -> None:
    disk = Disk(tmp_path)
    disk.write(tens(1))
    for other in (Disk(tmp_path, model="other"), Disk(tmp_path, n_tokens_max=9)):
        other.tidy()
        assert len(other.index) == 0 and other.directory.n_bytes == ONE_FILE
    small = Disk(tmp_path, ONE_FILE, model="other")
    small.write(tens(2))
    assert small.directory.n_evicted == 1
    disk.tidy()
    assert len(disk.index) == 0


def test_what_is_shorter_and_longer_unused_goes_first(tmp_path: Path) -> None:
    disk = Disk(tmp_path, 3 * ONE_FILE + 300)
    old, long, new = disk.write(tens(1)), disk.write([2, *range(60)]), disk.write(tens(3))
    os.utime(old, (time.time() - 100,) * 2)
    os.utime(long, (time.time() - 300,) * 2)
    disk.write(tens(4))
    assert not old.exists() and long.exists() and new.exists()
    os.utime(new, (time.time() - 10_000,) * 2)
    disk.directory.touch(new.name)
    os.utime(long, (time.time() - 10_000,) * 2)
    disk.write(tens(5))
    assert new.exists() and not long.exists()


def test_a_smaller_cap_is_kept_from_the_start(tmp_path: Path) -> None:
    for i in range(5):
        Disk(tmp_path).write(tens(i))
    Disk(tmp_path, 2 * ONE_FILE).tidy()
    assert size(tmp_path) == 2 * ONE_FILE


def test_a_longer_state_replaces_those_that_it_begins_with_where_it_can_be_cut(
    tmp_path: Path,
) -> None:
    for can_drop in (True, False):
        disk = Disk(tmp_path / str(can_drop), can_drop=can_drop)
        disk.write(tens(1)[:5])
        disk.write(tens(1))
        disk.write(tens(1)[:7])  # which the last one gives too
        disk.write(tens(1)[:5], "salt")
        assert [disk.reads(tens(1)[:n]) for n in (5, 7, 10)] == [not can_drop, not can_drop, True]
        assert disk.reads(tens(1)[:5], "salt")


def test_damaged_files_are_removed_and_foreign_ones_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    disk = Disk(tmp_path)
    cut, other, foreign, name = (disk.write(tens(i)) for i in range(4))
    cut.write_bytes(cut.read_bytes()[:50])
    whole = bytearray(other.read_bytes())
    whole[8] += 1
    other.write_bytes(whole)
    foreign.write_bytes(b"somebody's thesis")
    os.replace(name, tmp_path / ("0" * 32 + ".seqstate"))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ("1" * 32 + ".seqstate")).mkdir()
    (tmp_path / ("2" * 32 + ".seqstate")).symlink_to(foreign)
    later = Disk(tmp_path)
    for _ in range(3):
        later.tidy()
    assert len(later.index) == 0
    assert not cut.exists() and other.exists() and foreign.exists()
    assert len(list(tmp_path.iterdir())) == 6
    assert later.directory.n_bytes == other.stat().st_size
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 6, told  # once each, and notes.txt is not looked at
    # Of these only the file in another version may be evicted.
    Disk(tmp_path, 1).tidy()
    assert not other.exists() and foreign.exists() and len(list(tmp_path.iterdir())) == 5


def test_damage_after_the_first_look_is_found_by_reading(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    path = disk.write(tens(1))
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DamagedEntry):
        disk.reads(tens(1))
    assert len(disk.index) == 0 and not path.exists()
    path = disk.write(tens(2))
    path.write_bytes(b"somebody's")
    with pytest.raises(ForeignFile):
        disk.reads(tens(2))
    assert len(disk.index) == 0 and path.exists()
    path = disk.write(tens(3))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        disk.reads(tens(3))
    assert len(disk.index) == 0 and disk.directory.n_bytes == 0


def test_a_file_that_cannot_be_read_is_not_tried_again_unless_that_has_passing_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path)
    disk.write(tens(1))
    failures = [OSError(errno.EMFILE, "too many open files"), MemoryError(), OSError(errno.EIO, "")]

    def fail(path: Path) -> None:
        raise failures.pop(0)

    with monkeypatch.context() as patch:
        patch.setattr(state_directory, "read_state", fail)
        for n_left in (1, 1, 0):
            with pytest.raises(OSError):
                disk.reads(tens(1))
            assert len(disk.index) == n_left
    disk.tidy()
    assert len(disk.index) == 0 and disk.directory.n_bytes == ONE_FILE
    disk.write(tens(1))
    assert disk.reads(tens(1))


def test_a_damaged_file_that_cannot_be_removed_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = Disk(tmp_path).write(tens(1))
    path.write_bytes(path.read_bytes()[:-1])

    def refuse(self: Path, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    disk = Disk(tmp_path)
    for _ in range(3):
        disk.tidy()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "it is ignored" in caplog.text


def test_files_of_other_users_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Disk(tmp_path).write(tens(1))
    real = os.stat_result(path.stat())
    monkeypatch.setattr(
        state_directory.os, "scandir", lambda _: Scan([(path.name, real, real.st_uid + 1)])
    )
    disk = Disk(tmp_path, 10)
    disk.tidy()
    assert len(disk.index) == 0 and disk.directory.n_bytes == 0 and path.exists()


class Scan:
    """A directory's files, of other owners than they have."""

    def __init__(self, files: list[tuple[str, os.stat_result, int]]) -> None:
        self._files = files

    def __enter__(self) -> Iterator[Any]:
        for name, status, uid in self._files:
            changed = os.stat_result((*status[:4], uid, *status[5:10]))
            yield namedtuple("Entry", "name stat")(name, lambda follow_symlinks: changed)  # noqa: B023

    def __exit__(self, *exc_info: object) -> None:
        pass


def test_what_a_crash_left_counts_while_it_may_be_written_and_then_goes(tmp_path: Path) -> None:
    partial = tmp_path / "seqstate-abc.partial"
    partial.write_bytes(bytes(ONE_FILE))
    disk = Disk(tmp_path, 2 * ONE_FILE)
    disk.write(tens(1))
    disk.write(tens(2))
    assert size(tmp_path) == 2 * ONE_FILE and partial.exists()
    os.utime(partial, (time.time() - 3600,) * 2)
    disk.write(tens(3))
    assert not partial.exists() and disk.reads(tens(2)) and disk.reads(tens(3))
    assert disk.directory.n_bytes == size(tmp_path) == 2 * ONE_FILE


def test_what_exceeds_the_cap_or_the_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError):
        Disk(tmp_path, ONE_FILE - 1).write(tens(1))
    assert size(tmp_path) == 0
    disk = Disk(tmp_path)
    free = state_directory.MIN_FREE_BYTES + ONE_FILE
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free - 1))
    with pytest.raises(OSError):
        disk.write(tens(1))
    assert size(tmp_path) == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free))
    disk.write(tens(1))
    assert disk.reads(tens(1))


def test_a_directory_that_is_removed_is_made_again(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "states")
    disk.write(tens(1))
    shutil.rmtree(tmp_path / "states")
    disk.write(tens(2))
    assert not disk.reads(tens(1)) and disk.reads(tens(2))


def test_reading_between_the_pieces_of_a_survey_and_a_write_is_fine(tmp_path: Path) -> None:
    for i in range(4):
        Disk(tmp_path).write(tens(i))
    n_read = 0

    def between() -> None:
        nonlocal n_read
        for i in range(4):
            n_read += disk.reads(tens(i))

    disk = Disk(tmp_path, between=between)
    disk.tidy()
    disk.write(tens(9))
    assert n_read > 4 and disk.reads(tens(9))


operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 1), st.integers(0, 3), st.integers(1, 12)),
        st.tuples(st.just("read"), st.integers(0, 1), st.integers(0, 3), st.integers(1, 12)),
        st.tuples(st.just("damage"), st.integers(0, 99), st.integers(0, 2000), st.just(0)),
        st.tuples(st.just("remove"), st.integers(0, 99), st.just(0), st.just(0)),
        st.tuples(st.just("restart"), st.integers(0, 1), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(operations, st.sampled_from([2, 5, 100]), st.booleans())
def test_two_processes_and_a_vandal_never_see_wrong_states_or_more_than_the_cap(
    steps: list[Any], n_files: int, can_drop: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, cap = Path(folder), n_files * ONE_FILE
        disks = [Disk(path, cap, can_drop=can_drop) for _ in range(2)]
        for what, i, family, n in steps:
            files = sorted(path.iterdir())
            tokens = [family] * n
            if what == "write":
                disks[i].write(tokens)
                assert size(path) <= cap
                assert disks[i].directory.n_bytes == size(path)
                assert disks[i].directory.find(disks[i].key(tokens)) is not None
            elif what == "read":
                try:
                    there = disks[i].reads(tokens)
                except (DamagedEntry, FileNotFoundError):
                    there = False
                key = disks[i].key(tokens)
                assert there == (disks[i].index.find(key.tokens, key.salt) is not None)
            elif what == "damage" and files:
                damaged = bytearray(files[i % len(files)].read_bytes())
                damaged[8 + family % (len(damaged) - 8)] ^= 1
                files[i % len(files)].write_bytes(damaged)
            elif what == "remove" and files:
                files[i % len(files)].unlink()
            elif what == "restart":
                disks[i] = Disk(path, cap, can_drop=can_drop)
                disks[i].tidy()
