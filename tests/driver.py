"""An engine's core over the fake backend, driven by hand: no threads, no loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from fakes import FakeBackend, FakeDisk, FakeDraw, continuation

from openai_local.engine import (
    EngineConfig,
    Failed,
    Finished,
    GenerationRequest,
    SamplingParams,
    TextDelta,
)
from openai_local.engine.core import EngineCore
from openai_local.engine.intake import Message, Submit

GREEDY = SamplingParams(temperature=0)


@dataclass(eq=False)
class Sink:
    """Whom a generation's events are for."""

    request: GenerationRequest
    events: list[Any] = field(default_factory=list)
    gone: bool = False
    cancelled: bool = False
    ended_early: type[Exception] | None = None  # with this error

    @property
    def disturbed(self) -> bool:
        return self.cancelled or self.gone or self.ended_early is not None

    @property
    def ended(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], (Finished, Failed))

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))


class Driver:
    """An EngineCore whose inbox and deliveries are lists."""

    def __init__(self, backend: FakeBackend, disks: Sequence[FakeDisk] = (), **config: Any) -> None:
        """The last of ``disks`` is the present one, and answers when nothing else is to do."""
        self.backend = backend
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        self.disks = disks
        self.n_reused = 0  # before a restart
        self._config = EngineConfig(Path("fake"), **config)
        self._open()

    def _open(self) -> None:
        self.core = EngineCore(
            self.backend, self._config, self._take, self._deliver, self.inbox.put
        )

    def _take(self) -> list[Message]:
        return [self.inbox.get() for _ in range(self.inbox.qsize())]

    def restart(self) -> None:
        self.n_reused += self.core.metrics().prompt_tokens_reused_total
        self.core.close(self._take())
        assert self.backend.closed and not self.core._deliveries._by_sink
        self.backend.reopen()
        self._open()

    def step(self, messages: Sequence[Message] = ()) -> bool:
        return self.core.step([*messages, *self._take()])

    def _deliver(self, events: list[tuple[Sink, Any]]) -> list[Sink]:
        for sink, event in events:
            assert not sink.ended, "nothing follows the last event"
            sink.events.append(event)
        return [sink for sink, _ in events if sink.gone]

    def submit(self, prompt: Sequence[int], max_tokens: int | None = 8, **kwargs: Any) -> Sink:
        request = GenerationRequest(prompt, max_tokens, kwargs.pop("sampling", GREEDY), **kwargs)
        sink = Sink(request)
        self.step([Submit(sink, request)])
        return sink

    def run(self, messages: Sequence[Message] = (), n_steps: int = 10_000) -> None:
        busy = self.step(messages)
        while busy or self.core.metrics().sequences_waiting:
            n_steps -= 1
            assert n_steps > 0, "the engine does not come to rest"
            late: list[Message] = []
            if not busy:
                assert self.core.wake_in_s() is not None, "it sleeps for ever"
                if self.disks:
                    self.disks[-1].answer()
                else:
                    late = [self.inbox.get(timeout=10)]
            busy = self.step(late)

    def check_nothing_is_left(self) -> None:
        metrics = self.core.metrics()
        assert metrics.sequences_running == metrics.sequences_waiting == 0
        assert metrics.requests_submitted_total == (
            metrics.requests_finished_total
            + metrics.requests_cancelled_total
            + metrics.requests_failed_total
        )
        assert not self.core._deliveries._by_sink
        assert self.core.wake_in_s() is None
        self.step()  # what was cancelled last tells of itself
        fetches = self.core._memory.fetches
        assert fetches is None or not fetches._by_entry
        assert self.core._memory.cache.n_running == 0
        assert FakeDraw.open_draws == 0
        cells, backend = self.core._memory.cells, self.backend
        assert [cells.n_held(i) for i in range(backend.n_slots)] == [len(x) for x in backend.slots]
        assert cells.n_used == backend.n_used == metrics.cells_used


def expected(request: GenerationRequest, n_ctx: int) -> str:
    room = n_ctx - len(request.prompt_tokens)
    n = room if request.max_tokens is None else min(request.max_tokens, room)
    return bytes(t for t in continuation(request.prompt_tokens, n) if t < 256).decode()


def together(driver: Driver, requests: Sequence[GenerationRequest]) -> list[Sink]:
    """Submit in one step, and run to the end."""
    sinks = [Sink(request) for request in requests]
    driver.run([Submit(sink, sink.request) for sink in sinks])
    return sinks
