"""Name to loaded model: found in the catalog, let in by the residency, loaded once on first use,
held by leases. Knows no HTTP."""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from openai_local.config import Settings, Use
from openai_local.engine import Engine, EngineStopped, ModelLoadFailed
from openai_local.engine.bridge import in_thread, wait
from openai_local.engine.machine import free_memory
from openai_local.models.alarm import Alarm
from openai_local.models.catalog import Catalog, ModelSpec
from openai_local.models.entry import Entry, Failure
from openai_local.models.errors import (
    FailedLately,
    ModelsBusy,
    ModelTooLarge,
    UnknownModel,
    WrongUse,
)
from openai_local.models.footprint import Measure, within
from openai_local.models.lease import Lease, release_at_once
from openai_local.models.loads import Load, LoadedModel, OpenEngine
from openai_local.models.outbox import Outbox, Waiter
from openai_local.models.preparing import prepare
from openai_local.models.residency import Need, Phase, Residency, Resident
from openai_local.models.state import ModelState, Trouble

logger = logging.getLogger(__name__)

# Of what is free when the first model loads, where there are several and no models_memory.
MEMORY_SHARE = 0.75
MIB = 1 << 20


class Registry:
    """The models of one application. Safe from several threads and event loops."""

    def __init__(
        self,
        settings: Settings,
        open_engine: OpenEngine = Engine,
        measure: Measure = within,
    ) -> None:
        """Raises ConfigError."""
        self._settings = settings
        self._open_engine = open_engine
        self._measure = measure
        self._lock = threading.Lock()
        self._released: deque[Resident] = deque()
        self._closed = False
        self._catalog = Catalog(settings)
        self._residency = Residency(settings.models_memory or math.inf)
        self._shares = settings.models_memory is None and self._catalog.several
        self._entries: dict[str, Entry] = {}
        # It must not keep an abandoned registry alive.
        registry = weakref.ref(self)
        self._alarm = Alarm("models of openai_local", lambda: _tick(registry))

    @property
    def default_id(self) -> str:
        """The model of requests that name none. Raises NoModel, UnknownModel."""
        return self._catalog.default_id

    @property
    def embedding_id(self) -> str:
        """The same of requests for embeddings or ranks."""
        return self._catalog.embedding_id

    async def models(self) -> list[ModelSpec]:
        """All that there are now, those in the directory included."""
        await self._scan()
        return self._catalog.list()

    async def look(self) -> None:
        """Look into the directory, if that was not done: nobody's event loop has to wait then."""
        if self._catalog.is_unseen:
            await self._scan()

    async def find(self, name: str) -> ModelSpec:
        """By id or alias. Raises UnknownModel."""
        if self._catalog.is_stale(name):
            await self._scan()
        return self._catalog.find(name)

    def knows(self, name: str) -> bool:
        """By id or alias, in the directory as it was last seen."""
        return self._catalog.knows(name)

    def state(self, id: str) -> ModelState:
        """What is of a model now."""
        with self._locked():
            entry = self._entries.get(id)
            if entry is None:
                return ModelState("unloaded")
            waiting = any(ticket.id == id for ticket in self._residency.tickets)
            return entry.state(self._residency.residents.get(id), waiting)

    def trouble(self) -> Trouble | None:
        """What keeps a model from serving without which the application is not ready; None if all
        is well. What is loaded on demand only, is the matter of those who ask for it."""
        for spec in self._catalog.essential():
            state = self.state(spec.id)
            if state.value in ("downloading", "loading", "waiting"):
                return Trouble("model_loading", f"the model {spec.id!r} is being loaded")
            if state.error is not None:
                return Trouble("model_load_failed", state.error)
            with self._locked():
                entry = self._entries.get(spec.id)
                dead = entry is not None and (entry.died or entry.is_dead)
            if dead:
                return Trouble("engine_stopped", f"the engine of {spec.id!r} is stopped")
        return None

    def open(self) -> None:
        """Let models be loaded (again, after :meth:`aclose`)."""
        with self._locked():
            self._closed = False

    async def warm(self) -> None:
        """Load what is pinned, else the model that the settings name as the default.

        Raises what :meth:`acquire` raises.
        """
        await self._scan()
        ids = [spec.id for spec in self._catalog.pinned()]
        if not ids and self._catalog.names_default:
            ids = [self.default_id]
        for id in ids:
            await self.get(id)

    def loaded(self, name: str) -> LoadedModel | None:
        """The model if it is loaded and works; it is not held. Raises UnknownModel."""
        spec = self._catalog.find(name)
        with self._locked():
            entry = self._entries.get(spec.id)
            return entry.usable if entry is not None else None

    async def get(self, name: str) -> LoadedModel:
        """The model, loaded if need be, as :meth:`acquire` does; it is not held."""
        with await self.acquire(name) as model:
            return model

    def acquire_now(self, name: str, use: Use | None = None) -> Lease | None:
        """As :meth:`acquire`, where nothing is to be waited for; else None."""
        if self._catalog.is_stale(name):
            return None
        spec = self._spec(name, use)
        with self._locked():
            resident = self._residency.ready(spec.id)
            entry = self._entries.get(spec.id)
            loaded = entry.usable if entry is not None else None
            if self._closed or resident is None or loaded is None:
                return None
            self._residency.lease(resident, time.monotonic())
            return self._lease(resident, loaded)

    async def acquire(self, name: str, use: Use | None = None) -> Lease:
        """A lease of the model, which the first who asks has loaded while others wait for it.

        Where its memory is held by busy models, waits for one of them to become idle, and at most
        ``models_wait_s``. After a failed load, or when the engine has died, the next request loads
        again; after one that took long, not at once.

        Raises UnknownModel, WrongUse, NoModel, ModelLoadFailed, FailedLately, ModelTooLarge,
        ModelsBusy, EngineStopped.
        """
        if self._catalog.is_stale(name):
            await self._scan()
        spec = self._spec(name, use)
        now = time.monotonic()
        waiter = Waiter(spec.id, now)
        with self._change():
            if self._closed:
                raise EngineStopped
            failure = self._entry(spec).failure
            if failure is not None and failure.retry_in_s(now) > 0:
                raise FailedLately(str(failure.error), failure.retry_in_s(now))
            self._residency.ask(waiter)
        try:
            return await wait(waiter.lease)
        except BaseException:
            self._leave(waiter)
            raise

    async def aclose(self) -> None:
        """Stop all engines and free all models; those who wait get EngineStopped."""
        outbox = Outbox()
        with self._locked():
            self._closed = True
            self._alarm.cancel()
            outbox.refuse(self._residency.withdraw_all(), EngineStopped())
            entries = self._entries.values()
            loads = [entry.load for entry in entries if entry.load is not None]
            preparing = [entry.preparing for entry in entries if entry.preparing is not None]
            for load in loads:
                load.stop()
        outbox.send()
        for load in loads:
            await load.aclose()
        for prepared in preparing:
            await wait(prepared)

    def _spec(self, name: str, use: Use | None) -> ModelSpec:
        try:
            spec = self._catalog.find(name)
        except UnknownModel:
            if not self._settings.serve_unknown_models:
                raise
            id = self.embedding_id if use == "embedding" else self.default_id
            spec = self._catalog.find(id)
        if use is not None and spec.use not in (use, "both"):
            raise WrongUse(spec.id, spec.use)
        return spec

    def _entry(self, spec: ModelSpec) -> Entry:
        entry = self._entries.setdefault(spec.id, Entry(spec))
        entry.spec = spec  # its file may be another by now
        return entry

    async def _scan(self) -> None:
        await in_thread(self._catalog.scan)
        with self._change():
            for resident in list(self._residency.residents.values()):
                if resident.idle and not self._catalog.knows(resident.id):
                    self._residency.leave(resident)
                    self._unload(resident, "since its file has gone")

    def _lease(self, resident: Resident, loaded: LoadedModel) -> Lease:
        return Lease(loaded, lambda: self._release(resident))

    @contextmanager
    def _change(self) -> Iterator[Outbox]:
        """With the lock, change something; then do what follows from it."""
        outbox = Outbox()
        with self._locked():
            yield outbox
            self._settle(outbox)
        outbox.send()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        finally:
            self._take_back()

    def _take_back(self) -> None:
        """Leases that were released. Does not wait for the lock: a lease may be released wherever
        the garbage collector runs, and whoever has the lock comes here when it is free."""
        while self._released and self._lock.acquire(blocking=False):
            outbox = Outbox()
            try:
                while self._released:
                    self._residency.release(self._released.popleft(), time.monotonic())
                self._settle(outbox)
            finally:
                self._lock.release()
            outbox.send()

    def _settle(self, outbox: Outbox) -> None:
        if self._closed:
            return
        residency, now = self._residency, time.monotonic()
        for resident in list(residency.residents.values()):
            # It has died, and its end will be told; until then nobody gets it.
            if resident.phase is Phase.READY and self._entries[resident.id].is_dead:
                residency.leave(resident)
        decisions = residency.settle(now)
        for ticket, resident in decisions.grants:
            loaded = self._entries[resident.id].loaded
            assert loaded is not None and isinstance(ticket, Waiter)
            outbox.leases.append((ticket, self._lease(resident, loaded)))
        for ticket, need in decisions.refusals:
            most = int(residency.most(ticket.id))
            outbox.refuse([ticket], ModelTooLarge(ticket.id, need.n_bytes, most))
        for resident in decisions.unloads:
            self._unload(resident, "to make room")
        for resident in decisions.loads:
            outbox.loads.append(self._load(resident))
        for id in {ticket.id for ticket in residency.tickets}:
            if residency.lacks_need(id):
                self._prepare(self._entries[id], outbox)
        self._alarm.set(residency.next_change_at(self._settings.models_wait_s))

    def _prepare(self, entry: Entry, outbox: Outbox) -> None:
        """Find the file and what it takes: on a thread, since that may take long. Not a daemon:
        the interpreter waits for it rather than crash in C code."""
        if entry.preparing is not None:
            return
        prepared: Future[None] = Future()
        entry.preparing = prepared
        name = f"prepare {entry.spec.id}"
        thread = threading.Thread(target=self._find_need, args=(entry, prepared), name=name)
        try:
            thread.start()
        except RuntimeError as error:  # no thread can be started any more
            entry.preparing = None
            waiters = self._residency.withdraw_all(entry.spec.id)
            outbox.refuse(waiters, ModelLoadFailed(Path(entry.spec.id), str(error)))

    def _find_need(self, entry: Entry, prepared: Future[None]) -> None:
        began, spec = time.monotonic(), entry.spec
        outcome: Need | Exception
        try:
            entry.config, outcome = prepare(
                spec, self._settings, self._measure, self._budget(), lambda: self._closed
            )
        except Exception as error:
            outcome = error
        with self._change() as outbox:
            entry.preparing = None
            took_s = time.monotonic() - began
            if isinstance(outcome, Need):
                self._residency.measured(spec.id, outcome, took_s)
            else:
                self._fail(entry, outcome, took_s, outbox)
        prepared.set_result(None)

    def _budget(self) -> float:
        """Of all models together; where it is a share, of what is free before the first."""
        with self._locked():
            if self._shares:
                self._shares = False
                self._residency.budget = int(free_memory() * MEMORY_SHARE)
                text = "models may take %.0f MiB together; the setting models_memory changes that"
                logger.info(text, self._residency.budget / MIB)
            return self._residency.budget

    def _load(self, resident: Resident) -> Load:
        entry = self._entries[resident.id]
        spec = entry.spec
        assert entry.config is not None, "what is loaded was prepared"
        # The engine's thread must not keep an abandoned registry alive.
        registry = weakref.ref(self)

        def done(outcome: LoadedModel | Exception) -> None:
            if (alive := registry()) is not None:
                alive._loaded(resident, outcome)

        def ended(died: bool) -> None:
            if (alive := registry()) is not None:
                alive._ended(resident, died)

        entry.load = Load(
            spec.id,
            entry.config,
            self._open_engine,
            use=spec.use,
            chat_template=self._settings.option("chat_template", spec.table),
            done=done,
            ended=ended,
        )
        entry.began_s = time.monotonic()
        size = f", {resident.n_bytes / MIB:.0f} MiB" if resident.n_bytes else ""
        logger.info("loading %s: %s%s", spec.id, entry.config.model.name, size)
        return entry.load

    def _loaded(self, resident: Resident, outcome: LoadedModel | Exception) -> None:
        with self._change() as outbox:
            entry, now = self._entries[resident.id], time.monotonic()
            if self._closed and isinstance(outcome, LoadedModel):
                outcome = EngineStopped()
            if isinstance(outcome, LoadedModel):
                entry.succeed(outcome, now)
                self._residency.loaded(resident, now)
                logger.info("%s is loaded, in %.1f s", resident.id, now - entry.began_s)
            else:
                self._residency.leave(resident)
                self._fail(entry, outcome, now - entry.began_s, outbox)

    def _fail(self, entry: Entry, error: Exception, took_s: float, outbox: Outbox) -> None:
        if not isinstance(error, EngineStopped):
            entry.failure = Failure(error, took_s, time.monotonic())
            logger.warning("%s is not loaded: %s", entry.spec.id, error)
        outbox.refuse(self._residency.withdraw_all(entry.spec.id), error)

    def _ended(self, resident: Resident, died: bool) -> None:
        """All memory is free. Who died is loaded again, so that readiness comes back without a
        request."""
        with self._change():
            self._residency.gone(resident)
            if self._entries[resident.id].end(died and not self._closed, time.monotonic()):
                logger.warning("the engine of %s died: loading it again", resident.id)
                nobody = Waiter(resident.id, time.monotonic())
                nobody.lease.add_done_callback(release_at_once)
                self._residency.ask(nobody)

    def _unload(self, resident: Resident, why: str) -> None:
        entry = self._entries[resident.id]
        logger.info("unloading %s %s", resident.id, why)
        assert entry.load is not None, "what is loaded had a load"
        entry.loaded = None
        entry.load.stop()

    def _release(self, resident: Resident) -> None:
        self._released.append(resident)
        self._take_back()

    def _leave(self, waiter: Waiter) -> None:
        """Nobody waits any more; what was given just now is given back."""
        with self._change():
            if self._residency.withdraw(waiter):
                return
        waiter.lease.add_done_callback(release_at_once)

    def _time_has_come(self) -> None:
        with self._change() as outbox:
            self._alarm.rang()
            now, wait_s = time.monotonic(), self._settings.models_wait_s
            for resident in self._residency.expire(now):
                self._unload(resident, f"after {resident.idle_unload_s:g} s without use")
            for ticket in self._residency.overdue(now, wait_s):
                busy = self._residency.holders(ticket.id)
                outbox.refuse([ticket], ModelsBusy(ticket.id, busy, wait_s))


def _tick(registry: weakref.ref[Registry]) -> None:
    if (alive := registry()) is not None:
        alive._time_has_come()
