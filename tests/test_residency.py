"""Who may be in memory: never more than the budget, never gone while held, everybody answered."""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from openai_local.models.residency import Need, Phase, Residency, Resident, Ticket

BUDGET = 10
# Any one fits beside the pinned one, but one.
NEEDS = {
    "a": Need(2, idle_unload_s=5),
    "b": Need(4),
    "c": Need(6),
    "d": Need(7, idle_unload_s=0),
    "pinned": Need(3, pinned=True, idle_unload_s=1),
    "huge": Need(8),
    "impossible": Need(11),
}
WAIT_S = 20.0


class World:
    """Carries out what the residency decides, a piece at a time."""

    def __init__(self, budget: float = BUDGET) -> None:
        self.residency = Residency(budget)
        self.now = 0.0
        self.measuring: list[str] = []
        self.held: list[Resident] = []
        self.refused: list[Ticket] = []
        self.answered: list[str] = []
        self.waiting: list[Ticket] = []

    def ask(self, id: str) -> Ticket:
        ticket = Ticket(id, self.now)
        self.residency.ask(ticket)
        self.waiting.append(ticket)
        self.settle()
        return ticket

    def settle(self) -> None:
        decisions = self.residency.settle(self.now)
        for resident in decisions.unloads:
            assert resident.n_leases == 0, "what is held stays"
            assert not resident.pinned
        for ticket, resident in decisions.grants:
            assert resident.id == ticket.id
            assert resident.phase is Phase.READY
            self.waiting.remove(ticket)
            self.held.append(resident)
            self.answered.append(ticket.id)
        for ticket, need in decisions.refusals:
            assert need.n_bytes > self.residency.most(ticket.id)
            self.waiting.remove(ticket)
            self.refused.append(ticket)
        for id in {ticket.id for ticket in self.residency.tickets}:
            if self.residency.lacks_need(id) and id not in self.measuring:
                self.measuring.append(id)

    def measure(self, id: str) -> None:
        self.measuring.remove(id)
        self.residency.measured(id, NEEDS[id])
        self.settle()

    def of(self, phase: Phase) -> list[Resident]:
        return [r for r in self.residency.residents.values() if r.phase is phase]

    def loaded(self, resident: Resident) -> None:
        self.residency.loaded(resident, self.now)
        self.settle()

    def gone(self, resident: Resident) -> None:
        self.residency.gone(resident)
        self.settle()

    def release(self, resident: Resident) -> None:
        self.held.remove(resident)
        self.residency.release(resident, self.now)
        self.settle()

    def fail(self, resident: Resident) -> None:
        """A load failed, or an engine died."""
        self.residency.leave(resident)
        if resident.n_leases == 0:
            for ticket in self.residency.withdraw_all(resident.id):
                self.waiting.remove(ticket)
        self.settle()

    def run(self) -> None:
        """Whatever can happen by itself, happens."""
        for _ in range(1000):
            if self.measuring:
                self.measure(self.measuring[0])
            elif self.of(Phase.LEAVING):
                self.gone(self.of(Phase.LEAVING)[0])
            elif self.of(Phase.LOADING):
                self.loaded(self.of(Phase.LOADING)[0])
            else:
                return
        raise AssertionError("it does not come to rest")

    def load(self, id: str) -> Resident:
        self.ask(id)
        self.run()
        return self.residency.residents[id]


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(id=st.sampled_from(sorted(NEEDS)))
    def ask(self, id: str) -> None:
        self.world.ask(id)

    @precondition(lambda self: self.world.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.world.waiting))
        assert self.world.residency.withdraw(ticket)
        self.world.waiting.remove(ticket)
        self.world.settle()

    @precondition(lambda self: self.world.measuring)
    @rule(data=st.data())
    def measure(self, data: st.DataObject) -> None:
        self.world.measure(data.draw(st.sampled_from(self.world.measuring)))

    @precondition(lambda self: self.world.of(Phase.LOADING))
    @rule(data=st.data(), well=st.booleans())
    def end_load(self, data: st.DataObject, well: bool) -> None:
        resident = data.draw(st.sampled_from(self.world.of(Phase.LOADING)))
        if well:
            self.world.loaded(resident)
        else:
            self.world.fail(resident)

    @precondition(lambda self: self.world.of(Phase.LEAVING))
    @rule(data=st.data())
    def gone(self, data: st.DataObject) -> None:
        self.world.gone(data.draw(st.sampled_from(self.world.of(Phase.LEAVING))))

    @precondition(lambda self: self.world.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.world.release(data.draw(st.sampled_from(self.world.held)))

    @precondition(lambda self: self.world.of(Phase.READY))
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        self.world.fail(data.draw(st.sampled_from(self.world.of(Phase.READY))))

    @rule(seconds=st.sampled_from([0.5, 3.0, 25.0]))
    def wait(self, seconds: float) -> None:
        world = self.world
        world.now += seconds
        for resident in world.residency.expire(world.now):
            assert resident.n_leases == 0
            assert not resident.pinned
        for ticket in world.residency.overdue(world.now, WAIT_S):
            assert ticket.arrived_at + WAIT_S <= world.now
            world.waiting.remove(ticket)
        assert world.residency.next_change_at(WAIT_S) > world.now
        world.settle()

    @invariant()
    def the_budget_holds(self) -> None:
        assert self.world.residency.n_used <= BUDGET

    @invariant()
    def what_is_held_is_there(self) -> None:
        for resident in self.world.held:
            there = self.world.residency.residents.get(resident.id) is resident
            assert there or resident.phase is Phase.LEAVING, "only an engine that died goes"

    @invariant()
    def nobody_waits_for_what_could_be_had(self) -> None:
        residency = self.world.residency
        if residency.tickets:
            first = residency.tickets[0]
            resident = residency.residents.get(first.id)
            assert resident is None or resident.phase is not Phase.READY
        else:
            assert not self.world.waiting

    def teardown(self) -> None:
        """Once all that is held is released, everybody is answered."""
        world = self.world
        n = len(world.waiting) + len(world.answered) + len(world.refused)
        while world.waiting:
            world.run()
            if not world.held:
                break
            world.release(world.held[0])
        assert not world.waiting
        assert len(world.answered) + len(world.refused) == n


TestResidency = Machine.TestCase
TestResidency.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_the_one_not_used_for_longest_makes_room() -> None:
    world = World()
    for id in ("a", "b", "a"):
        world.now += 1
        world.release(world.load(id))
    world.load("c")
    assert sorted(world.residency.residents) == ["a", "c"]


def test_no_more_go_than_must() -> None:
    world = World()
    for id in ("a", "c"):
        world.now += 1
        world.release(world.load(id))
    world.load("b")
    assert sorted(world.residency.residents) == ["b", "c"]
    world.release(world.held[0])
    world.load("huge")
    assert sorted(world.residency.residents) == ["huge"]


def test_a_busy_model_takes_no_more_requests_once_somebody_waits_for_its_memory() -> None:
    world = World()
    c = world.load("c")
    world.load("b") and world.release(world.held[-1])
    world.ask("d")
    world.run()
    world.ask("c")
    assert [ticket.id for ticket in world.waiting] == ["d", "c"]
    world.release(c)
    world.run()
    assert world.answered == ["c", "b", "d"]
    world.release(world.held[0])
    world.run()
    assert world.answered == ["c", "b", "d", "c"]


def test_a_loaded_model_serves_all_who_wait_for_it() -> None:
    world = World()
    for id in "cdcdcd":
        world.ask(id)
    world.run()
    assert world.answered == ["c", "c", "c"]
    world.ask("c")
    for resident in list(world.held):
        world.release(resident)
    world.run()
    assert world.answered == ["c", "c", "c", "d", "d", "d"]


def test_it_takes_requests_again_when_nobody_waits_any_more() -> None:
    world = World()
    world.load("c")
    waiting = world.ask("d")
    world.run()
    world.ask("c")
    assert world.residency.withdraw(waiting)
    world.waiting.remove(waiting)
    world.settle()
    assert world.answered == ["c", "c"]


def test_what_fits_beside_all_that_wait_is_loaded_at_once() -> None:
    world = World()
    c = world.load("c")
    world.ask("huge")
    world.run()
    world.ask("a")
    world.run()
    assert world.answered == ["c", "a"]
    world.ask("b")  # would make the first wait longer
    world.run()
    world.release(c)
    world.run()
    assert world.answered == ["c", "a", "huge"]


def test_nobody_goes_for_who_must_wait_for_a_load_that_is_going() -> None:
    world = World()
    world.release(world.load("a"))
    world.ask("c")
    world.measure("c")
    for id in ("d", "b"):  # b would fit in place of a, and d wait for both
        world.ask(id)
        world.measure(id)
    assert [resident.id for resident in world.of(Phase.READY)] == ["a"]
    world.run()
    world.release(world.held[-1])
    world.run()
    assert world.answered == ["a", "c", "d"]


def test_memory_that_becomes_free_is_counted_with() -> None:
    world = World()
    for id in ("a", "c"):
        world.release(world.load(id))
    world.ask("d")
    world.measure("d")
    assert [resident.id for resident in world.of(Phase.LEAVING)] == ["c"]
    world.settle()
    assert [resident.id for resident in world.of(Phase.READY)] == ["a"]
    world.run()
    assert sorted(world.residency.residents) == ["a", "d"]


def test_more_than_pinned_models_leave_is_refused_with_the_numbers() -> None:
    world = World()
    world.release(world.load("pinned"))
    world.ask("huge")
    world.run()
    assert [ticket.id for ticket in world.refused] == ["huge"]
    assert world.residency.most("huge") == 7
    world.load("d")
    assert world.answered == ["pinned", "d"]


def test_without_a_budget_nothing_makes_room() -> None:
    world = World(math.inf)
    for id in NEEDS:
        world.release(world.load(id))
    assert len(world.residency.residents) == len(NEEDS)


def test_idle_models_go_after_their_time_and_pinned_ones_never() -> None:
    world = World()
    a = world.load("a")
    world.release(world.load("pinned"))
    world.now = 100.0
    assert not world.residency.expire(world.now)
    world.release(a)
    assert world.residency.next_change_at(WAIT_S) == 105.0
    world.now = 104.9
    assert not world.residency.expire(world.now)
    world.now = 105.0
    assert world.residency.expire(world.now) == [a]
