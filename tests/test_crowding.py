"""Fewer threads compute while others want the cores, and all of them when they are free again."""

from __future__ import annotations

from pathlib import Path

import pytest

from openai_local.engine.crowding import MAX_HOLD_S, Sample, Threads, sample


class Machine:
    """``n_cores`` on which so many other threads never rest; time goes by in steps of 0.1 s."""

    def __init__(self, n_cores: int, n_others: int = 0, n_engines: int = 1) -> None:
        self.n_cores, self.n_others, self.n_engines = n_cores, n_others, n_engines
        self.now = self.idle_s = 0.0
        self.times = {f"t{i}": (0.0, 0.0) for i in range(n_cores * n_engines)}
        self.n_looks = 0

    def clock(self) -> float:
        return self.now

    def look(self) -> Sample:
        self.n_looks += 1
        return Sample({**self.times, "the event loop": (self.now / 9, self.now / 2)}, self.idle_s)

    def step(self, threads: Threads) -> None:
        threads.begin()
        n = threads.n * self.n_engines
        wanted = n + self.n_others
        # Each that is too many shares a core with one, of the others first.
        n_too_many = max(0, wanted - self.n_cores)
        n_sharing = min(n, 2 * n_too_many - min(self.n_others, n_too_many))
        for i in range(n):
            ran, waited = self.times[f"t{i}"]
            part = 0.5 if i < n_sharing else 1.0
            self.times[f"t{i}"] = (ran + 0.1 * part, waited + 0.1 * (1 - part))
        self.idle_s += 0.1 * max(0, self.n_cores - wanted)
        self.now += 0.1
        threads.end()

    def run(self, threads: Threads, n_steps: int = 60) -> int:
        for _ in range(n_steps):
            self.step(threads)
        return threads.n


def of(machine: Machine, n: int) -> Threads:
    return Threads(n, n, machine.look, machine.clock)


def test_alone_all_threads_compute_and_little_is_looked_at() -> None:
    machine = Machine(4)
    assert machine.run(of(machine, 4)) == 4
    assert machine.n_looks < 15


def test_one_that_never_rests_gets_a_core() -> None:
    machine = Machine(4, n_others=1)
    threads = of(machine, 4)
    assert machine.run(threads) == 3
    assert threads.n_batch == 3


def test_two_engines_share_the_cores_and_the_one_that_is_left_gets_them_back() -> None:
    machine = Machine(2, n_others=2)
    threads = of(machine, 2)
    assert machine.run(threads) == 1
    machine.n_others = 1  # the other has given way, too
    assert machine.run(threads) == 1
    machine.n_others = 0
    assert machine.run(threads) == 2


def test_of_two_in_one_process_each_gives_way_by_its_own_share() -> None:
    machine = Machine(8, n_engines=2)
    assert machine.run(of(machine, 8), 6) == 4


def test_there_is_always_one() -> None:
    machine = Machine(2, n_others=40)
    threads = of(machine, 2)
    assert (machine.run(threads), threads.n_batch) == (1, 1)


def test_where_more_threads_turn_out_to_be_too_many_it_waits_longer_each_time() -> None:
    machine = Machine(2)
    threads = of(machine, 2)
    changes = []
    for _ in range(3000):
        before = threads.n
        # Whoever else is there rests as long as it has a core to itself.
        machine.n_others = 2 if threads.n == 2 else 0
        machine.step(threads)
        if threads.n > before:
            changes.append(machine.now)
    waits = [after - before for before, after in zip(changes, changes[1:], strict=False)]
    assert len(waits) > 4 and waits[0] < 8
    assert waits[-1] >= MAX_HOLD_S and sorted(waits)[: len(waits) - 2] == waits[: len(waits) - 2]


def test_a_neighbour_that_comes_much_later_is_given_way_no_longer_than_the_first() -> None:
    machine = Machine(2, n_others=1)
    threads = of(machine, 2)
    for _ in range(4):
        machine.n_others = 1
        assert machine.run(threads, 200) == 1
        machine.n_others = 0
        assert machine.run(threads, 30) == 2
        assert machine.run(threads, 300) == 2


def test_pauses_are_no_waiting() -> None:
    machine = Machine(2)
    threads = of(machine, 2)
    for _ in range(40):
        machine.step(threads)
        machine.now += 1.0
        # Between steps others had the cores.
        machine.times = {t: (ran, waited + 1.0) for t, (ran, waited) in machine.times.items()}
    assert threads.n == 2


def test_where_the_system_does_not_tell_nothing_changes() -> None:
    machine = Machine(2, n_others=8)
    threads = Threads(2, 2, lambda: None, machine.clock)
    assert machine.run(threads) == 2


def test_the_scheduler_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai_local.engine.crowding.allowed_cpus", lambda: {0, 11})
    monkeypatch.setattr("openai_local.engine.crowding._JIFFY_S", 0.01)
    for task, text in (("7", "1500000000 250000000 12\n"), ("8", "0 0 0\n")):
        (tmp_path / "proc/self/task" / task).mkdir(parents=True)
        (tmp_path / "proc/self/task" / task / "schedstat").write_text(text)
    (tmp_path / "proc/stat").write_text(
        "cpu  9 9 9 900 9 0 0 0 0 0\ncpu0 1 1 1 200 50 0 0 0 0 0\ncpu1 0 0 0 999 0 0 0 0 0 0\n"
        "cpu11 1 1 1 100 0 0 0 0 0 0\nintr 5\n"
    )
    (tmp_path / "proc/self/task/9").mkdir()  # a thread that has just ended
    assert sample(tmp_path) == Sample({"7": (1.5, 0.25), "8": (0.0, 0.0)}, 3.5)
    assert sample(tmp_path / "nothing") is None
