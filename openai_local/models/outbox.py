"""What a change of the registry's has others do, kept until its lock is free: it calls theirs."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

from openai_local.models.lease import Lease
from openai_local.models.loads import Load
from openai_local.models.residency import Ticket


@dataclass(slots=True, eq=False)
class Waiter(Ticket):
    """A request that waits, and where it gets its lease."""

    lease: Future[Lease] = field(default_factory=Future)


@dataclass(slots=True)
class Outbox:
    leases: list[tuple[Waiter, Lease]] = field(default_factory=list)
    errors: list[tuple[Waiter, Exception]] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)

    def refuse(self, waiters: Iterable[Ticket], error: Exception) -> None:
        self.errors += [(waiter, error) for waiter in waiters if isinstance(waiter, Waiter)]

    def send(self) -> None:
        for load in self.loads:
            load.start()
        for waiter, lease in self.leases:
            waiter.lease.set_result(lease)
        for waiter, error in self.errors:
            waiter.lease.set_exception(error)
