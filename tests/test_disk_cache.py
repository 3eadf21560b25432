"""The disk's thread: nobody waits for it, what is wanted comes first, and it ends when told to."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openai_local.engine.backend import State
from openai_local.engine.cache import disk_cache, state_directory
from openai_local.engine.cache.disk_cache import DiskCache
from openai_local.engine.cache.disk_index import DiskEntry
from openai_local.engine.cache.state_file import DamagedEntry, file_size

TIMEOUT_S = 30


@pytest.fixture
def opened() -> Iterator[list[DiskCache]]:
    caches: list[DiskCache] = []
    yield caches
    for cache in caches:
        cache.close(TIMEOUT_S)


@pytest.fixture
def open_cache(tmp_path: Path, opened: list[DiskCache]) -> Callable[..., DiskCache]:
    def open_cache(path: Path = tmp_path, max_bytes: int = 1 << 20, **options: Any) -> DiskCache:
        opened.append(DiskCache(path, max_bytes, "model", **{"n_tokens_max": 1000, **options}))
        return opened[-1]

    return open_cache


class Gate:
    """Blocks what is called through it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        self.calls: list[str] = []

    def around(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def gated(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            self.entered.set()
            assert self.open.wait(TIMEOUT_S)
            return call(*args, **kwargs)

        return gated

    def after(self, call: Callable[[], Any]) -> Any:
        """Open for the time of a call."""
        self.open.set()
        result = call()
        self.open.clear()
        self.entered.clear()
        return result

    def wait(self) -> None:
        assert self.entered.wait(TIMEOUT_S)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Before each file that is read or written."""
    gate = Gate()
    for name in ("read_state", "write_state"):
        call = gate.around(getattr(state_directory, name), name)
        monkeypatch.setattr(state_directory, name, call)
    yield gate
    gate.open.set()


def state(i: int, n: int = 100) -> State:
    return np.full(n, i, np.uint8)


def until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.001)


def first_entry(cache: DiskCache) -> DiskEntry:
    """Of the prompt [1], once it is written."""
    cache.put([1], "", state(1))
    until(lambda: cache.metrics().n_entries)
    entry, n = cache.match([1, 2], "")
    assert entry is not None and n == 1
    return entry


def test_states_outlive_the_cache(open_cache: Callable[..., DiskCache]) -> None:
    before = open_cache()
    before.put([1, 2, 3], "salt", state(1))
    before.close(TIMEOUT_S)
    cache = open_cache()
    until(lambda: cache.metrics().n_entries)
    assert cache.match([1, 2, 3, 4], "other") == (None, 0)
    entry, n = cache.match([1, 2, 9, 4], "salt")
    assert entry is not None and n == 2
    assert cache.match([1, 2, 3], "salt")[1] == 2, "the last token is computed"
    assert (cache.fetch(entry).result(TIMEOUT_S) == 1).all()
    assert cache.metrics().n_bytes == file_size(3, 100)


def test_states_that_cannot_be_cut_match_as_a_whole(open_cache: Callable[..., DiskCache]) -> None:
    cache = open_cache(can_drop=False)
    for n in (2, 3):
        cache.put([1, 2, 3][:n], "", state(n))
    until(lambda: cache.metrics().n_entries == 2)
    assert cache.match([1, 2, 9, 9], "")[1] == 2
    assert cache.match([1, 2, 3, 9], "")[1] == 3
    assert cache.match([1, 2, 3], "")[1] == 2
    assert cache.match([1, 9, 9], "") == (None, 0)


def test_what_is_to_be_read_goes_before_what_is_to_be_written(
    open_cache: Callable[..., DiskCache], gate: Gate
) -> None:
    cache = open_cache()
    entry = gate.after(lambda: first_entry(cache))
    for i in range(2, 6):
        cache.put([i], "", state(i))
    gate.wait()
    fetched = cache.fetch(entry)
    assert not fetched.done(), "and nothing here waits for the disk"
    assert cache.match([1, 2], "")[0] == entry
    gate.open.set()
    assert (fetched.result(TIMEOUT_S) == 1).all()
    cache.close(TIMEOUT_S)
    assert gate.calls == ["write_state"] * 2 + ["read_state"] + ["write_state"] * 3


def test_a_fetch_that_nobody_wants_any_more_is_not_read(
    open_cache: Callable[..., DiskCache], gate: Gate
) -> None:
    cache = open_cache()
    entry = gate.after(lambda: first_entry(cache))
    cache.put([2], "", state(2))
    gate.wait()
    assert cache.fetch(entry).cancel()
    gate.open.set()
    cache.close(TIMEOUT_S)
    assert "read_state" not in gate.calls


def test_what_is_put_twice_is_written_once(
    open_cache: Callable[..., DiskCache], gate: Gate
) -> None:
    cache = open_cache()
    for _ in range(3):
        cache.put([1, 2], "", state(1))
    gate.open.set()
    until(lambda: cache.metrics().n_entries)
    cache.put([1, 2], "", state(1))
    cache.put([1], "", state(1))  # a longer one gives it too
    cache.close(TIMEOUT_S)
    assert gate.calls == ["write_state"]
    assert cache.metrics().n_dropped_total == 0


def test_what_waits_to_be_written_is_bounded_and_the_rest_dropped(
    open_cache: Callable[..., DiskCache], gate: Gate
) -> None:
    cache = open_cache(max_waiting_bytes=250, max_bytes=1000)
    cache.put([1] * 9, "", state(1, 5000))  # never fits
    assert cache.metrics().n_dropped_total == 1
    cache.put([1], "", state(1, 300))  # one may always wait
    cache.put([2], "", state(2))
    assert cache.metrics().n_dropped_total == 2
    gate.open.set()
    until(lambda: cache.metrics().n_entries == 1)
    until(lambda: not cache._writes)
    cache.put([2], "", state(2))
    cache.put([3], "", state(3))
    cache.close(TIMEOUT_S)
    assert cache.metrics().n_entries == 3 and cache.metrics().n_dropped_total == 2
    cache.put([4], "", state(4))
    assert cache.metrics().n_dropped_total == 3


def test_two_that_share_a_directory_find_each_others_states_and_keep_one_cap(
    tmp_path: Path, open_cache: Callable[..., DiskCache]
) -> None:
    cap = 4 * file_size(1, 100)
    caches = [open_cache(max_bytes=cap) for _ in range(2)]
    for i in range(20):
        caches[i % 2].put([i], "", state(i))
    until(lambda: not any(cache._writes for cache in caches))
    caches[0].put([90], "", state(90))
    until(lambda: caches[0].match([90, 1], "")[0])
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= cap
    caches[1].put([91], "", state(91))
    until(lambda: caches[1].match([91, 1], "")[0])
    entry, _ = caches[1].match([90, 1], "")
    assert entry is not None
    assert (caches[1].fetch(entry).result(TIMEOUT_S) == 90).all()


def test_a_damaged_file_fails_its_fetch_and_matches_no_more(
    tmp_path: Path, open_cache: Callable[..., DiskCache], caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_cache()
    cache.put([1], "", state(1))
    until(lambda: cache.metrics().n_entries)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    entry, _ = cache.match([1, 2], "")
    assert entry is not None
    with pytest.raises(DamagedEntry):
        cache.fetch(entry).result(TIMEOUT_S)
    assert cache.match([1, 2], "") == (None, 0)
    assert caplog.text.count("it is removed") == 1


def test_what_was_rejected_matches_no_more_until_it_is_written_again(
    open_cache: Callable[..., DiskCache],
) -> None:
    cache = open_cache()
    cache.put([1], "a", state(1))
    until(lambda: cache.metrics().n_entries)
    cache.reject([1], "b")
    cache.reject([2], "a")
    assert cache.match([1, 2], "a")[1] == 1
    cache.reject([1], "a")
    assert cache.match([1, 2], "a") == (None, 0)
    cache.put([2], "a", state(2))  # after which the directory has been looked at
    until(lambda: cache.metrics().n_entries)
    assert cache.match([1, 2], "a") == (None, 0)
    cache.put([1], "a", state(3))
    until(lambda: cache.metrics().n_entries == 2)
    entry, _ = cache.match([1, 2], "a")
    assert entry is not None
    assert (cache.fetch(entry).result(TIMEOUT_S) == 3).all()


def test_where_there_can_be_no_directory_it_warns_once_and_tries_again(
    tmp_path: Path, open_cache: Callable[..., DiskCache], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "states"
    path.write_text("in the way")
    cache = open_cache(path)
    for i in range(3):
        cache.put([i], "", state(i))
        until(lambda: cache.metrics().n_dropped_total == i + 1)  # noqa: B023
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and f"cannot keep states in {path}" in caplog.text
    assert cache.match([1, 2], "") == (None, 0)
    path.unlink()
    cache.put([1], "", state(1))
    until(lambda: cache.metrics().n_entries)


def test_a_full_disk_loses_the_state_and_nothing_else(
    tmp_path: Path,
    open_cache: Callable[..., DiskCache],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = open_cache()
    cache.put([1], "", state(1))
    until(lambda: cache.metrics().n_entries)

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        for i in (2, 3):
            cache.put([i], "", state(i))
        until(lambda: cache.metrics().n_dropped_total == 2)
    assert caplog.text.count("No space left") == 1
    entry, _ = cache.match([1, 2], "")
    assert entry is not None
    assert (cache.fetch(entry).result(TIMEOUT_S) == 1).all()
    assert len(list(tmp_path.iterdir())) == 1
    cache.put([2], "", state(2))
    until(lambda: cache.metrics().n_entries == 2)


def test_closing_writes_what_waits_and_refuses_what_comes_later(
    open_cache: Callable[..., DiskCache], gate: Gate
) -> None:
    cache = open_cache()
    for i in range(1, 5):
        cache.put([i], "", state(i))
    gate.open.set()
    cache.close(TIMEOUT_S)
    assert cache.metrics().n_entries == 4 and cache.metrics().n_dropped_total == 0
    entry, _ = cache.match([1, 2], "")
    assert entry is not None
    with pytest.raises(OSError, match="closed"):
        cache.fetch(entry).result(TIMEOUT_S)
    cache.close(TIMEOUT_S)


def test_closing_does_not_wait_for_a_disk_that_hangs_and_fails_those_who_do(
    tmp_path: Path, open_cache: Callable[..., DiskCache], gate: Gate
) -> None:
    cache = open_cache()
    entry = gate.after(lambda: first_entry(cache))
    for i in range(2, 5):
        cache.put([i], "", state(i))
    gate.wait()
    fetched = cache.fetch(entry)
    cache.close(0.01)
    gate.open.set()
    with pytest.raises(OSError, match="closed"):
        fetched.result(TIMEOUT_S)
    until(lambda: not cache._thread.is_alive())
    assert cache.metrics().n_dropped_total == 3
    assert len(list(tmp_path.iterdir())) == 1, "what was begun was given up"


def test_a_thread_that_breaks_down_fails_its_fetches_and_takes_nothing_more(
    open_cache: Callable[..., DiskCache],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = open_cache()
    entry = first_entry(cache)

    def break_down(self: Any, name: str) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(disk_cache.StateDirectory, "touch", break_down)
    cache.put([1], "", state(1))
    until(lambda: not cache._thread.is_alive())
    with pytest.raises(OSError, match="closed"):
        cache.fetch(entry).result(TIMEOUT_S)
    cache.put([2], "", state(2))
    assert cache.metrics().n_dropped_total == 1
    assert "out of order" in caplog.text
