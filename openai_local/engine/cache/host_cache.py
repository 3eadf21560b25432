"""States of sequences that lost their slot, in RAM under a byte budget. Touches no backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openai_local.engine.backend import State
from openai_local.engine.cache.prefix import common_prefix


@dataclass(slots=True, eq=False)
class HostEntry:
    """``state`` is a slot's memory when it held exactly ``tokens``.

    ``from_disk`` holds until it is used for the first time.
    """

    tokens: tuple[int, ...]
    salt: str
    state: State
    used_at: int = 0
    from_disk: bool = False


class HostCache:
    """Engine thread only. What does not fit any more goes to ``spill``, worth least first."""

    def __init__(
        self,
        max_bytes: int,
        *,
        can_drop: bool = True,
        spill: Callable[[HostEntry], None] = lambda entry: None,
    ) -> None:
        """``can_drop``: whether a part of a state can be used by itself."""
        self.max_bytes = max_bytes
        self.n_evicted = 0
        self._can_drop = can_drop
        self._spill = spill
        self._entries: list[HostEntry] = []
        self._n_bytes = 0
        self._clock = 0

    @property
    def n_bytes(self) -> int:
        return self._n_bytes

    @property
    def n_entries(self) -> int:
        return len(self._entries)

    def by_value(self) -> list[HostEntry]:
        """All entries, those worth most first."""
        return sorted(self._entries, key=self._value, reverse=True)

    def match(self, prompt: Sequence[int], salt: str) -> tuple[HostEntry | None, int]:
        """The entry that holds the longest usable prefix of ``prompt``, and how much of it.

        The last prompt token is left out: its logits start the answer.
        """
        best, n_best = None, 0
        for entry in self._entries:
            if entry.salt != salt:
                continue
            n = common_prefix(entry.tokens, prompt, len(prompt) - 1)
            if n > n_best and (self._can_drop or n == len(entry.tokens)):
                best, n_best = entry, n
        return best, n_best

    def holds(self, tokens: Sequence[int], salt: str) -> bool:
        """Whether there is a state of exactly these tokens."""
        key = tuple(tokens)
        return any(e.salt == salt and e.tokens == key for e in self._entries)

    def common(self, tokens: Sequence[int], salt: str) -> int:
        """The longest prefix of ``tokens`` that any entry begins with, usable or not."""
        here = (entry for entry in self._entries if entry.salt == salt)
        return max((common_prefix(e.tokens, tokens, len(tokens)) for e in here), default=0)

    def put(
        self, tokens: Sequence[int], salt: str, state: State, *, from_disk: bool = False
    ) -> HostEntry | None:
        """Keep a state; None if it is larger than the whole budget, by way of which it would also
        have to come back."""
        entry = HostEntry(tuple(tokens), salt, state, from_disk=from_disk)
        if state.nbytes > self.max_bytes:
            return None
        for other in [e for e in self._entries if e.salt == salt and self._replaces(entry, e)]:
            self.remove(other)
        self.touch(entry)
        self._entries.append(entry)
        self._n_bytes += state.nbytes
        while self._n_bytes > self.max_bytes:
            least = min((e for e in self._entries if e is not entry), key=self._value)
            self.remove(least)
            self.n_evicted += 1
            self._spill(least)
        return entry

    def touch(self, entry: HostEntry) -> None:
        """It was of use just now."""
        self._clock += 1
        entry.used_at = self._clock

    def remove(self, entry: HostEntry) -> None:
        """Nothing, if it is not there any more."""
        if entry in self._entries:
            self._entries.remove(entry)
            self._n_bytes -= entry.state.nbytes

    def clear(self) -> None:
        self._entries.clear()
        self._n_bytes = 0

    def _replaces(self, new: HostEntry, old: HostEntry) -> bool:
        n = len(old.tokens)
        return new.tokens[:n] == old.tokens and (self._can_drop or n == len(new.tokens))

    def _value(self, entry: HostEntry) -> float:
        """As of a slot: length over age, in tokens per use of the cache."""
        return len(entry.tokens) / (1 + self._clock - entry.used_at)
