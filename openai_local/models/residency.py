"""Which models may be in memory: who is let in, who must go, who waits. Pure policy over bytes and
leases: no threads, no clocks, no files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto


class Phase(Enum):
    LOADING = auto()
    READY = auto()
    LEAVING = auto()  # nobody gets it any more, and its memory is not yet free


@dataclass(slots=True, eq=False)
class Resident:
    """A model that takes memory, from the decision to load it until all of it is free again."""

    id: str
    n_bytes: int
    pinned: bool
    phase: Phase = Phase.LOADING
    fresh: bool = False  # loaded, and nothing was decided since
    n_leases: int = 0
    used_at: float = 0.0
    idle_unload_s: float | None = None

    @property
    def idle(self) -> bool:
        return self.phase is Phase.READY and self.n_leases == 0


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that waits for the model ``id``. Their order is that of the list."""

    id: str
    arrived_at: float


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes that was looked at, and is to be loaded."""

    n_bytes: int
    pinned: bool = False
    idle_unload_s: float | None = None


@dataclass(slots=True)
class Decisions:
    """To be carried out; the residency counts with them already."""

    grants: list[tuple[Ticket, Resident]] = field(default_factory=list)
    refusals: list[tuple[Ticket, Need]] = field(default_factory=list)
    loads: list[Resident] = field(default_factory=list)
    unloads: list[Resident] = field(default_factory=list)


class Residency:
    """A budget of bytes, the models that take of it, and who waits.

    First come, first served: where the memory that a request needs is held by models that are
    busy, these take no further requests, so that they become idle, until that one was served or
    has gone. What fits beside all that earlier ones need is loaded at once. A model that was
    loaded serves all who wait for it then, so that models that take turns are not loaded for each.
    """

    def __init__(self, budget: float = math.inf) -> None:
        self.budget = budget
        self.residents: dict[str, Resident] = {}
        self.tickets: list[Ticket] = []
        self._needs: dict[str, Need] = {}

    @property
    def n_used(self) -> int:
        return sum(resident.n_bytes for resident in self.residents.values())

    def ready(self, id: str) -> Resident | None:
        """A model that a request may have at once, without passing by anybody who waits."""
        resident = self.residents.get(id)
        if resident is None or resident.phase is not Phase.READY or self.tickets:
            return None
        return resident

    def lacks_need(self, id: str) -> bool:
        """Whether the model's size is to be found before it can be loaded."""
        resident = self.residents.get(id)
        absent = resident is None or resident.phase is Phase.LEAVING
        return absent and id not in self._needs

    def measured(self, id: str, need: Need, took_s: float = 0.0) -> None:
        """``took_s``, for which a file was fetched, is not what somebody waited for memory. It is
        forgotten at once where nobody waits: the file may be another the next time."""
        if not any(ticket.id == id for ticket in self.tickets):
            return
        self._needs[id] = need
        for ticket in self.tickets:
            if ticket.id == id:
                ticket.arrived_at += took_s

    def ask(self, ticket: Ticket) -> None:
        self.tickets.append(ticket)

    def withdraw(self, ticket: Ticket) -> bool:
        """False if it does not wait any more."""
        if ticket not in self.tickets:
            return False
        self.tickets.remove(ticket)
        if not any(other.id == ticket.id for other in self.tickets):
            self._needs.pop(ticket.id, None)
        return True

    def withdraw_all(self, id: str | None = None) -> list[Ticket]:
        """All that wait for a model, or for any."""
        leaving = [ticket for ticket in self.tickets if id is None or ticket.id == id]
        for ticket in leaving:
            self.withdraw(ticket)
        return leaving

    def lease(self, resident: Resident, now: float) -> None:
        resident.n_leases += 1
        resident.used_at = now

    def release(self, resident: Resident, now: float) -> None:
        assert resident.n_leases > 0, "what is released was leased"
        resident.n_leases -= 1
        resident.used_at = now

    def loaded(self, resident: Resident, now: float) -> None:
        resident.phase, resident.fresh = Phase.READY, True
        resident.used_at = now

    def leave(self, resident: Resident) -> None:
        """It is being unloaded, or has failed or died."""
        resident.phase = Phase.LEAVING

    def gone(self, resident: Resident) -> None:
        """All of its memory is free."""
        if self.residents.get(resident.id) is resident:
            del self.residents[resident.id]

    def expire(self, now: float) -> list[Resident]:
        """Idle models whose time is over; they leave."""
        expired = [r for r in self.residents.values() if self._idle_until(r) <= now]
        for resident in expired:
            self.leave(resident)
        return expired

    def overdue(self, now: float, wait_s: float) -> list[Ticket]:
        """Tickets that have waited too long for memory; they are withdrawn. Those that wait for a
        load that is going, or for a file to be found, wait on."""
        late = [t for t in self.tickets if t.arrived_at + wait_s <= now and self._waits(t)]
        for ticket in late:
            self.withdraw(ticket)
        return late

    def next_change_at(self, wait_s: float) -> float:
        """When :meth:`expire` or :meth:`overdue` will have something; infinity: never."""
        ends = [self._idle_until(resident) for resident in self.residents.values()]
        ends += [ticket.arrived_at + wait_s for ticket in self.tickets if self._waits(ticket)]
        return min(ends, default=math.inf)

    def settle(self, now: float) -> Decisions:
        """What can be done for those who wait, in the order in which they came."""
        decisions = Decisions()
        claimed: set[str] = set()  # must make room for somebody who came earlier
        asked: set[str] = set()
        blocked = False  # by a load that is going, whose end says more
        # Once all who leave or are claimed have gone, and all whose turn it was are loaded.
        room = self.budget - sum(
            r.n_bytes for r in self.residents.values() if r.phase is not Phase.LEAVING
        )
        for fresh in [r for r in self.residents.values() if r.fresh]:
            fresh.fresh = False
            for ticket in [t for t in self.tickets if t.id == fresh.id]:
                self._grant(ticket, fresh, decisions, now)
        for ticket in list(self.tickets):
            resident = self.residents.get(ticket.id)
            if resident is not None and resident.phase is Phase.READY:
                if resident.id not in claimed:
                    self._grant(ticket, resident, decisions, now)
                continue
            need = self._needs.get(ticket.id)
            if need is None or resident is not None and resident.phase is Phase.LOADING:
                continue
            if need.n_bytes > self.most(ticket.id):
                self.withdraw(ticket)
                decisions.refusals.append((ticket, need))
                continue
            if blocked or ticket.id in asked:
                continue
            asked.add(ticket.id)
            if room < need.n_bytes:
                victims = self._victims(need.n_bytes - room, claimed)
                if not victims:
                    blocked = True
                    continue
                claimed.update(victim.id for victim in victims)
                room += sum(victim.n_bytes for victim in victims)
                if all(victim.idle for victim in victims):
                    for victim in victims:
                        self.leave(victim)
                        decisions.unloads.append(victim)
            elif resident is None and need.n_bytes <= self.budget - self.n_used:
                self._load(ticket.id, need, decisions)
            room -= need.n_bytes
        return decisions

    def holders(self, id: str) -> list[str]:
        """The busy models that somebody who waits for ``id`` waits for."""
        return [r.id for r in self.residents.values() if r.n_leases > 0 and r.id != id]

    def _grant(self, ticket: Ticket, resident: Resident, decisions: Decisions, now: float) -> None:
        self.tickets.remove(ticket)
        self.lease(resident, now)
        decisions.grants.append((ticket, resident))

    def _load(self, id: str, need: Need, decisions: Decisions) -> None:
        resident = Resident(id, need.n_bytes, need.pinned, idle_unload_s=need.idle_unload_s)
        self.residents[id] = resident
        del self._needs[id]
        decisions.loads.append(resident)

    def most(self, id: str) -> float:
        """What a model can have at best: all that pinned ones do not hold for ever."""
        return self.budget - sum(
            r.n_bytes
            for r in self.residents.values()
            if r.pinned and r.phase is not Phase.LEAVING and r.id != id
        )

    def _victims(self, n_bytes: float, claimed: Iterable[str]) -> list[Resident]:
        """Models that give ``n_bytes`` together: idle ones first, then those not used for long.

        Empty if all that might go do not give it.
        """
        candidates = [
            r
            for r in self.residents.values()
            if r.phase is Phase.READY and not r.pinned and r.id not in claimed
        ]
        candidates.sort(key=lambda r: (not r.idle, r.used_at))
        victims: list[Resident] = []
        total = 0.0
        for candidate in candidates:
            if total >= n_bytes:
                break
            victims.append(candidate)
            total += candidate.n_bytes
        if total < n_bytes:
            return []
        for victim in list(reversed(victims)):  # the last of them may be enough without others
            if total - victim.n_bytes >= n_bytes:
                victims.remove(victim)
                total -= victim.n_bytes
        return victims

    def _idle_until(self, resident: Resident) -> float:
        if not resident.idle or resident.pinned or resident.idle_unload_s is None:
            return math.inf
        return resident.used_at + resident.idle_unload_s

    def _waits(self, ticket: Ticket) -> bool:
        resident = self.residents.get(ticket.id)
        if resident is not None and resident.phase is not Phase.LEAVING:
            return resident.phase is Phase.READY
        return ticket.id in self._needs
