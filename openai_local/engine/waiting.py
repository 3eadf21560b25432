"""The sequences that wait for a slot, and in which order they are asked. Pure policy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, takewhile

from openai_local.engine.sequence import Sequence

# So many admissions go by priority, then one by arrival, so that nobody starves.
BY_PRIORITY = 3


class WaitingQueue:
    """Sequences of one model, by priority and arrival. Engine thread only."""

    def __init__(self) -> None:
        self._by_priority: dict[int, OrderedDict[Sequence, None]] = {}  # highest first
        self._n_taken = 0

    def __len__(self) -> int:
        return sum(map(len, self._by_priority.values()))

    def __contains__(self, sequence: object) -> bool:
        return any(sequence in queue for queue in self._by_priority.values())

    def __iter__(self) -> Iterator[Sequence]:
        return chain.from_iterable(self._by_priority.values())

    def push_first(self, sequence: Sequence) -> None:
        """One that was in a slot already comes before its equals."""
        self.push(sequence)
        self._by_priority[sequence.request.priority].move_to_end(sequence, last=False)

    def push(self, sequence: Sequence) -> None:
        priority = sequence.request.priority
        if priority not in self._by_priority:
            queues = {**self._by_priority, priority: OrderedDict[Sequence, None]()}
            self._by_priority = dict(sorted(queues.items(), reverse=True))
        self._by_priority[priority][sequence] = None

    def remove(self, sequence: Sequence) -> None:
        del self._by_priority[sequence.request.priority][sequence]

    def take(self, sequence: Sequence) -> None:
        """``sequence`` leaves the queue for a slot."""
        self.remove(sequence)
        self._n_taken += 1

    def candidates(self) -> Iterator[Sequence]:
        """Those to be asked for the next place, the first that can have it gets it."""
        if self._n_taken % (BY_PRIORITY + 1) < BY_PRIORITY:
            return iter(self)
        heads = [next(iter(queue)) for queue in self._by_priority.values() if queue]
        return chain(sorted(heads, key=lambda s: s.submitted_s), self)

    def submitted_before(self, time_s: float) -> list[Sequence]:
        """Those that were submitted before ``time_s`` of the monotonic clock."""

        def may_follow(sequence: Sequence) -> bool:
            """In order of arrival, but for those at the head that were in a slot already."""
            return sequence.submitted_s < time_s or sequence.admitted_s is not None

        first = chain.from_iterable(takewhile(may_follow, q) for q in self._by_priority.values())
        return [sequence for sequence in first if sequence.submitted_s < time_s]
