"""Why a model cannot be had. The errors carry data; the routes turn them into HTTP."""

from __future__ import annotations

from collections.abc import Sequence

N_NAMES = 20
MIB = 1 << 20


class UnknownModel(Exception):
    """``name`` is none of the models in ``known``."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        names = ", ".join(known[:N_NAMES]) + (", …" if len(known) > N_NAMES else "")
        super().__init__(f"no model {name!r}; there are: {names or 'none'}")
        self.name = name
        self.known = tuple(known)


class WrongUse(Exception):
    """The model ``id`` is there for ``use`` only."""

    def __init__(self, id: str, use: str) -> None:
        super().__init__(f"the model {id!r} is set up for {use} only")
        self.id = id
        self.use = use


class ModelTooLarge(Exception):
    """The model ``id`` takes ``n_bytes`` where it can never have more than ``n_max``."""

    def __init__(self, id: str, n_bytes: int, n_max: int) -> None:
        super().__init__(
            f"the model {id!r} takes {n_bytes / MIB:.0f} MiB, more than the {n_max / MIB:.0f} MiB"
            " of models_memory that pinned models leave; raise it, or lower n_ctx, n_parallel,"
            " kv_memory or cache_ram"
        )
        self.id = id
        self.n_bytes = n_bytes
        self.n_max = n_max


class ModelsBusy(Exception):
    """For ``waited_s``, the memory for the model ``id`` was held by ``busy`` models."""

    def __init__(self, id: str, busy: Sequence[str], waited_s: float) -> None:
        super().__init__(
            f"there is no memory for the model {id!r}: for {waited_s:g} s it was held by models"
            f" that are busy ({', '.join(busy) or 'or being loaded'}); try later"
        )
        self.id = id
        self.busy = tuple(busy)
        self.waited_s = waited_s


class FailedLately(Exception):
    """The last load took long and failed with ``reason``; the next is in ``retry_in_s``."""

    def __init__(self, reason: str, retry_in_s: float) -> None:
        super().__init__(f"{reason}; it is tried again in {retry_in_s:.0f} s at the earliest")
        self.reason = reason
        self.retry_in_s = retry_in_s
