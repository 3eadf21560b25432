"""The disk below the engine: what comes back from it, and who waits for it how long."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from driver import GREEDY, Driver, expected, together
from fakes import FakeBackend, FakeDisk

from openai_local.engine import (
    DeadlineExceeded,
    Engine,
    EngineConfig,
    GenerationRequest,
    kv_memory,
)
from openai_local.engine.cache import disk_waits
from openai_local.engine.intake import Cancel


def test_what_was_computed_before_a_restart_comes_back_from_the_disk(tmp_path: Path) -> None:
    for n_drop_max in (None, 0):
        folder = tmp_path / str(n_drop_max)
        before = Driver(FakeBackend(n_drop_max=n_drop_max), cache_dir=folder)
        first = before.submit([97, 98] * 50, 5, cache_salt="mine")
        before.run()
        before.core.close([])
        assert before.backend.closed

        after = Driver(FakeBackend(n_drop_max=n_drop_max), cache_dir=folder)
        wait_for_scan(after)
        prompt = [*[97, 98] * 50, *first.text.encode(), 99]
        mine = [GenerationRequest([*prompt, 97 + i], 5, GREEDY, (), "mine") for i in range(3)]
        sinks = together(after, mine)
        for sink in sinks:
            assert sink.text == expected(sink.request, 256)
            assert sink.events[-1].usage.n_cached >= 104
        assert after.core.metrics().prompt_tokens_reused_disk_total >= 104
        other = after.submit([*prompt, 99], 5, cache_salt="")
        after.run()
        assert other.events[-1].usage.n_cached == 0
        after.check_nothing_is_left()
        after.core.close([])


def test_what_is_for_the_memory_alone_is_shared_there_and_never_written(tmp_path: Path) -> None:
    driver = Driver(FakeBackend(n_slots=2), cache_dir=tmp_path)
    for i in range(4):  # the slots are too few, so that some goes to the RAM
        driver.submit([97 + i, 98] * 50, 5, in_memory=True)
        driver.run()
    again = driver.submit([97, 98] * 50 + [99], 5, in_memory=True)
    other = driver.submit([97, 98] * 50 + [98], 5)
    driver.run()
    assert again.events[-1].usage.n_cached >= 99
    assert other.events[-1].usage.n_cached == 0
    driver.core.close([])
    (file,) = tmp_path.iterdir()  # the other's
    assert bytes(np.asarray([97, 98] * 50 + [98], "<i4")) in file.read_bytes()


def kept(folder: Path) -> Path:
    """The one file that an engine leaves behind which knows a prompt of 100 tokens."""
    before = Driver(FakeBackend(), cache_dir=folder)
    before.submit([97, 98] * 50, 5)
    before.run()
    before.core.close([])
    (file,) = folder.iterdir()
    return file


def test_what_several_had_in_common_is_kept_and_kept_once(tmp_path: Path) -> None:
    shared = [97, 98] * 60
    before = Driver(FakeBackend(n_slots=8), cache_dir=tmp_path)
    together(before, [GenerationRequest([*shared, 100 + i], 5, GREEDY) for i in range(8)])
    before.core.close([])
    assert len(list(tmp_path.iterdir())) == 1
    after = Driver(FakeBackend(), cache_dir=tmp_path)
    wait_for_scan(after)
    sink = after.submit([*shared, 97], 5)
    after.run()
    assert sink.events[-1].usage.n_cached == 120
    after.core.close([])


def test_a_damaged_state_on_disk_is_computed_again(tmp_path: Path) -> None:
    file = kept(tmp_path)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    after = Driver(FakeBackend(), cache_dir=tmp_path)
    wait_for_scan(after)
    again = after.submit([97, 98] * 50, 5)
    after.run()
    assert again.text == expected(again.request, 256)
    assert again.events[-1].usage.n_cached == 0
    after.core.close([])


def test_reuse_counts_for_the_tier_that_it_came_from(tmp_path: Path) -> None:
    kept(tmp_path)
    driver = Driver(FakeBackend(n_slots=1), cache_dir=tmp_path)
    wait_for_scan(driver)
    tiers = []
    for prompt in ([97, 98] * 50, [97, 98] * 50, [99] * 100, [97, 98] * 50):
        driver.submit(prompt, 5)
        driver.run()
        metrics = driver.core.metrics()
        tiers.append(
            (
                metrics.prompt_tokens_reused_slot_total,
                metrics.prompt_tokens_reused_ram_total,
                metrics.prompt_tokens_reused_disk_total,
            )
        )
    assert tiers == [(0, 0, 99), (99, 0, 99), (99, 0, 99), (99, 99, 99)]
    assert metrics.ram_bytes == (104 + 104) * 4
    assert metrics.disk_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    driver.core.close([])


def test_what_does_not_fit_into_ram_is_not_read_from_the_disk(tmp_path: Path) -> None:
    kept(tmp_path)
    for cache_ram, n_cached in ((104 * 4 - 1, 0), (104 * 4, 99)):
        driver = Driver(FakeBackend(), cache_dir=tmp_path, cache_ram=cache_ram)
        wait_for_scan(driver)
        sink = driver.submit([97, 98] * 50, 5)
        driver.run()
        assert sink.events[-1].usage.n_cached == n_cached
        driver.core.close([])


def test_a_state_that_cannot_be_loaded_is_not_tried_again(tmp_path: Path) -> None:
    kept(tmp_path)
    driver = Driver(FakeBackend(state_faults=lambda: True), cache_dir=tmp_path)
    wait_for_scan(driver)
    sink = driver.submit([97, 98] * 50, 5)
    driver.run()
    assert sink.text == expected(sink.request, 256)
    assert sink.events[-1].usage.n_cached == 0
    assert driver.core.metrics().ram_bytes == 0
    disk = driver.core._memory._disk
    assert disk is not None and disk.match([97, 98] * 50, "") == (None, 0)
    driver.core.close([])


def test_an_engine_that_died_keeps_nothing_of_what_it_no_longer_knows(tmp_path: Path) -> None:
    driver = Driver(FakeBackend(), cache_dir=tmp_path)
    driver.submit([97, 98] * 50, 5)
    driver.run()

    def break_down(events: Any) -> None:
        raise RuntimeError("a mistake")

    driver.core._deliveries._deliver = break_down
    with pytest.raises(RuntimeError):
        driver.submit([97], 0)
    driver.core._deliveries._deliver = driver._deliver
    driver.core.close([])
    assert driver.backend.closed and not list(tmp_path.iterdir())


class DiskOfOne(FakeDisk):
    """Has the state of a prompt of 100 tokens."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__({}, n_files=9, can_drop=True)
        self.put([97, 98] * 50, "", np.array([97, 98] * 50, np.int32).view(np.uint8))


class HangingDisk(DiskOfOne):
    """Never answers."""

    def answer(self, *, broken: bool = False) -> None:
        pass


@pytest.mark.parametrize("who", [0, 1])
def test_what_two_wait_for_is_read_once_also_when_one_of_them_leaves(
    who: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = DiskOfOne()
    monkeypatch.setattr(kv_memory, "DiskCache", lambda *args, **options: disk)
    driver = Driver(FakeBackend(), [disk], cache_dir=Path("nowhere"))
    sinks = [driver.submit([97, 98] * 50, 5) for _ in range(2)]
    assert len(disk.fetches) == 1
    driver.step([Cancel(sinks[who])])
    driver.run()
    assert sinks[1 - who].events[-1].usage.n_cached == 99
    driver.check_nothing_is_left()


def test_a_prompt_waits_for_the_disk_no_longer_than_computing_it_takes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kv_memory, "DiskCache", HangingDisk)
    driver = Driver(FakeBackend(), cache_dir=Path("nowhere"))
    waiting, other = driver.submit([97, 98] * 50, 5), driver.submit([99] * 30, 5)
    while driver.step():
        pass
    assert other.ended and not waiting.events
    wait_s = driver.core.wake_in_s()
    assert (
        wait_s is not None and disk_waits.MIN_FETCH_TIMEOUT_S < wait_s <= disk_waits.FETCH_TIMEOUT_S
    )
    # Now that it is known how fast prompts are computed, another waits for less.
    driver.submit([97, 98] * 50, 5)
    wait_s = driver.core.wake_in_s()
    assert wait_s is not None and 0 < wait_s <= disk_waits.MIN_FETCH_TIMEOUT_S
    over = time.monotonic() + disk_waits.FETCH_TIMEOUT_S
    monkeypatch.setattr(time, "monotonic", lambda: over)
    assert driver.core.wake_in_s() == 0
    driver.run()
    assert waiting.text == expected(waiting.request, 256)
    assert "the disk takes too long" in caplog.text
    driver.check_nothing_is_left()


@pytest.mark.anyio
async def test_an_engine_that_sleeps_until_the_disk_answers_wakes_up_for_a_deadline(
    monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    monkeypatch.setattr(kv_memory, "DiskCache", HangingDisk)
    monkeypatch.setattr(disk_waits, "FETCH_TIMEOUT_S", 1000.0)
    config = EngineConfig(Path("fake"), cache_dir=Path("nowhere"), request_timeout_s=0.05)
    async with Engine(config, open_backend=lambda config, stopping: FakeBackend()) as engine:
        with anyio.fail_after(30), pytest.raises(DeadlineExceeded):
            async for _ in engine.submit(GenerationRequest([97, 98] * 50, 5)):
                pass


def wait_for_scan(driver: Driver) -> None:
    give_up = time.monotonic() + 10
    while not driver.core.metrics().disk_bytes:
        assert time.monotonic() < give_up
        time.sleep(0.001)
