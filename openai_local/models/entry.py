"""What is known of one model beside its memory: how its loads went, and what of it is told."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from openai_local.engine import EngineConfig
from openai_local.models.catalog import ModelSpec
from openai_local.models.loads import Load, LoadedModel
from openai_local.models.residency import Phase, Resident
from openai_local.models.state import ModelState

# An engine that dies again sooner after its load is loaded by the next request only.
MIN_LIFE_S = 60.0
# A load that failed after so long is not tried again for so many times as long.
SLOW_FAILURE_S = 1.0
BACK_OFF = 4
MAX_BACK_OFF_S = 60.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Of the last load. Times are in seconds of the monotonic clock."""

    error: Exception
    took_s: float
    at: float

    def retry_in_s(self, now: float) -> float:
        if self.took_s < SLOW_FAILURE_S:
            return 0.0
        return self.at + min(BACK_OFF * self.took_s, MAX_BACK_OFF_S) - now


@dataclass(slots=True)
class Entry:
    """Guarded by the registry's lock."""

    spec: ModelSpec
    preparing: Future[None] | None = None
    config: EngineConfig | None = None
    load: Load | None = None
    loaded: LoadedModel | None = None
    began_s: float = 0.0  # of the load
    loaded_s: float = 0.0
    n_deaths: int = 0
    died: bool = False  # and was not loaded since
    failure: Failure | None = None

    @property
    def usable(self) -> LoadedModel | None:
        """The model, if it is loaded and its engine works."""
        return self.loaded if self.loaded is not None and self.loaded.engine.alive else None

    @property
    def is_dead(self) -> bool:
        """Loaded, and its engine works no more, whose end is not told yet."""
        return self.loaded is not None and not self.loaded.engine.alive

    def succeed(self, loaded: LoadedModel, now: float) -> None:
        self.loaded, self.failure, self.died = loaded, None, False
        self.loaded_s = now

    def end(self, died: bool, now: float) -> bool:
        """All of its memory is free; whether to load it again though nobody asks."""
        self.load = self.loaded = None
        if not died:
            return False
        self.died = True
        self.n_deaths = self.n_deaths + 1 if now - self.loaded_s < MIN_LIFE_S else 1
        return self.n_deaths == 1

    def state(self, resident: Resident | None, waiting: bool) -> ModelState:
        """``waiting``: whether somebody waits for it."""
        if resident is not None and resident.phase is Phase.READY:
            return ModelState("loaded", 1.0)
        if resident is not None and resident.phase is Phase.LOADING:
            return ModelState("loading", self.load.progress if self.load is not None else 0.0)
        if self.preparing is not None:
            share = self.spec.downloaded
            return ModelState("loading") if share is None else ModelState("downloading", share)
        if waiting:
            return ModelState("waiting")
        if self.failure is not None:
            return ModelState("failed", error=str(self.failure.error))
        return ModelState("unloaded" if resident is None else "unloading")
