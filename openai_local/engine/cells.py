"""How many cells of the KV memory are in use, those that slots share counted once. Pure."""

from __future__ import annotations

from itertools import count, islice


class CellLedger:
    """Follows what is done to the slots; a cell holds the key and value of one token."""

    def __init__(self, n_cells: int, n_slots: int, *, shared: bool) -> None:
        """``shared``: slots take their cells from one pool, and a copy shares them."""
        self.n_cells = n_cells
        self._shared = shared
        self._names = count()
        self._held: list[list[int]] = [[] for _ in range(n_slots)]
        self._n_holders: dict[int, int] = {}

    @property
    def n_used(self) -> int:
        return len(self._n_holders)

    @property
    def n_free(self) -> int:
        return self.n_cells - self.n_used

    def n_held(self, slot: int) -> int:
        return len(self._held[slot])

    def resize(self, slot: int, n_tokens: int) -> None:
        """The slot now holds ``n_tokens``: it got new cells, or its last ones are given up."""
        held = self._held[slot]
        if n_tokens > len(held):
            names = list(islice(self._names, n_tokens - len(held)))
            self._n_holders.update(dict.fromkeys(names, 1))
            held += names
        elif n_tokens < len(held):
            for name in held[n_tokens:]:
                if self._n_holders[name] == 1:
                    del self._n_holders[name]
                else:
                    self._n_holders[name] -= 1
            del held[n_tokens:]

    def grow(self, slot: int, n_tokens: int) -> None:
        self.resize(slot, len(self._held[slot]) + n_tokens)

    def copy(self, source: int, target: int) -> None:
        """The target now holds what the source holds, and nothing else."""
        self.resize(target, 0)
        if not self._shared:
            self.resize(target, len(self._held[source]))
            return
        self._held[target] = list(self._held[source])
        for name in self._held[target]:
            self._n_holders[name] += 1
