"""The engine's steps, driven by hand over the fake backend: no threads, no loops."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import anyio
import numpy as np
import pytest
from fakes import EOG, FakeBackend, FakeDisk, FakeDraw, continuation, letters, spelling
from hypothesis import example, given, settings
from hypothesis import strategies as st

from openai_local.engine import (
    DeadlineExceeded,
    Engine,
    EngineConfig,
    EngineStopped,
    Failed,
    Finished,
    GenerationRequest,
    SamplingParams,
    StepFailed,
    TextDelta,
    core,
    fetches,
    kv_memory,
    prefix_cache,
)
from openai_local.engine.backend import ABORTED, NO_PLACE
from openai_local.engine.core import Cancel, EngineCore, Message, Submit
from openai_local.engine.embedder import EmbeddingJob
from openai_local.engine.sequence import Status

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
        assert self.backend.closed and not self.core._by_sink
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
        assert not self.core._by_sink
        assert not self.core._fetching and self.core.wake_in_s() is None
        self.step()  # what was cancelled last tells of itself
        fetches = self.core._memory.fetches
        assert fetches is None or not fetches._by_entry
        assert self.core._cache.n_running == 0
        assert FakeDraw.open_draws == 0
        cells, backend = self.core._memory.cells, self.backend
        assert [cells.n_held(i) for i in range(backend.n_slots)] == [len(x) for x in backend.slots]
        assert cells.n_used == backend.n_used == metrics.cells_used


def expected(request: GenerationRequest, n_ctx: int) -> str:
    room = n_ctx - len(request.prompt_tokens)
    n = room if request.max_tokens is None else min(request.max_tokens, room)
    return bytes(t for t in continuation(request.prompt_tokens, n) if t < 256).decode()


# Two families, so that prompts share long prefixes, and copies between slots are planned.
prompts = st.builds(
    lambda family, n_shared, rest: ([family, 99] * 40)[:n_shared] + rest,
    st.sampled_from([97, 98]),
    st.integers(0, 80),
    st.lists(st.integers(97, 100), min_size=1, max_size=10),
)
lengths = st.one_of(st.integers(0, 12), st.integers(30, 60))
operation = st.one_of(
    st.tuples(st.just("submit"), prompts, lengths),
    st.tuples(st.just("submit"), prompts, lengths),
    st.tuples(st.just("extend"), st.integers(0, 50), lengths),
    st.tuples(st.just("cancel"), st.integers(0, 50), st.just(0)),
    st.tuples(st.just("leave"), st.integers(0, 50), st.just(0)),
    st.tuples(st.just("late"), st.integers(0, 50), st.just(0)),
    st.tuples(st.just("embed"), prompts, st.just(0)),
    st.tuples(st.just("step"), st.integers(1, 6), st.just(0)),
    st.tuples(st.just("answer"), st.booleans(), st.just(0)),
    st.tuples(st.just("restart"), st.just(0), st.just(0)),
)
# Hypothesis' lists are short, and only long ones fill all that there is.
operations = st.one_of(
    st.lists(operation, max_size=40), st.lists(operation, min_size=25, max_size=60)
)


def play(driver: Driver, steps: list[Any]) -> tuple[list[Sink], list[EmbeddingJob]]:
    """Do the operations, then run to rest."""
    sinks: list[Sink] = []
    jobs: list[EmbeddingJob] = []
    for what, value, n in steps:
        if what == "submit":
            sampling = GREEDY if n % 2 else SamplingParams(seed=0)  # which the fake takes for it
            sinks.append(driver.submit(value, n, priority=len(value) % 3, sampling=sampling))
        elif what == "extend" and sinks:
            # A conversation goes on from what was said.
            before = sinks[value % len(sinks)]
            prompt = [*before.request.prompt_tokens, *before.text.encode(), 97][:100]
            sinks.append(driver.submit(prompt, n))
        elif what == "cancel" and sinks:
            sink = sinks[value % len(sinks)]
            sink.cancelled = True
            driver.step([Cancel(sink)])
        elif what == "leave" and sinks:
            sinks[value % len(sinks)].gone = True
        elif what == "late" and sinks:
            be_late(driver, sinks[: value % len(sinks) + 1])
        elif what == "embed":
            jobs.append(EmbeddingJob([value[:64], value[:3]]))
            driver.step([jobs[-1]])
        elif what == "step":
            for _ in range(value):
                driver.step()
        elif what == "answer" and driver.disks:
            driver.disks[-1].answer(broken=value)
        elif what == "restart":
            end_early(driver, sinks, EngineStopped)
            driver.restart()
            assert all(job.future.done() for job in jobs)
    driver.run()
    return sinks, jobs


def be_late(driver: Driver, sinks: list[Sink]) -> None:
    """The time of these, the oldest ones, is over."""
    late = [driver.core._by_sink[id(s)] for s in sinks if id(s) in driver.core._by_sink]
    for sequence in late:
        sequence.submitted_s -= 10 * TIMEOUT_S
    end_early(driver, sinks, DeadlineExceeded)
    driver.step()
    assert all(sequence.status is Status.ENDED for sequence in late)


def end_early(driver: Driver, sinks: list[Sink], error: type[Exception]) -> None:
    """Those that have not ended will do so with ``error``."""
    for sink in sinks:
        if id(sink) in driver.core._by_sink:
            sink.ended_early = error


TIMEOUT_S = 1e6


@dataclass(frozen=True)
class Machine:
    """What an engine runs on; small numbers, so that everything runs out."""

    n_slots: int
    n_batch: int
    n_drop_max: int | None  # None: a cell a token; 0: one state, as recurrent models have
    n_cells: int | None  # None: the streams layout
    cache_ram: int  # a token takes 4 bytes
    n_files: int | None  # None: no disk
    bad_states: frozenset[int]  # of saves and loads, by their number
    gap_steps: int

    @contextmanager
    def driver(self, faults: Callable[[Any], int] = lambda batch: 0) -> Iterator[Driver]:
        numbers = count()
        backend = FakeBackend(
            n_ctx=128,
            n_slots=self.n_slots,
            n_parallel=max(1, self.n_slots - 1) if self.n_cells else None,
            n_batch=self.n_batch,
            n_drop_max=self.n_drop_max,
            n_cells=self.n_cells,
            faults=faults,
            state_faults=lambda: next(numbers) in self.bad_states,
        )
        files: dict[Any, Any] = {}

        def open_disk(*args: Any, can_drop: bool, **options: Any) -> FakeDisk:
            disks.append(FakeDisk(files, n_files=self.n_files or 0, can_drop=can_drop))
            return disks[-1]

        disks: list[FakeDisk] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kv_memory, "DiskCache", open_disk)
            patch.setattr(core, "GAP_STEPS", self.gap_steps)
            patch.setattr(core, "HEADROOM_TOKENS", 1)
            # Short prompts are as good as long ones.
            patch.setattr(prefix_cache, "MIN_COPY_TOKENS", 8)
            for module in (prefix_cache, fetches):
                patch.setattr(module, "MIN_SAVE_TOKENS", 8)
            yield Driver(
                backend,
                disks,
                cache_ram=self.cache_ram,
                cache_dir=None if self.n_files is None else Path("nowhere"),
                request_timeout_s=TIMEOUT_S,
            )


machines = st.builds(
    Machine,
    n_slots=st.integers(1, 5),
    n_batch=st.sampled_from([16, 64]),
    n_drop_max=st.sampled_from([None, None, 0, 16]),
    n_cells=st.sampled_from([None, 128, 160, 300]),
    cache_ram=st.sampled_from([0, 1000, 100_000]),
    n_files=st.sampled_from([None, 2, 100]),
    bad_states=st.frozensets(st.integers(0, 30), max_size=8),
    gap_steps=st.sampled_from([1, 3, core.GAP_STEPS]),
)


@settings(max_examples=500, deadline=None)
@given(operations, machines)
# A state is to be loaded into a slot from which another placement of the step still copies.
@example(
    [
        ("submit", [97], 0),
        ("submit", [97], 0),
        ("submit", [98, 99] * 18 + [97], 30),
        ("submit", [97], 0),
        ("submit", [97, 99] * 5 + [97, 98], 4),
        ("submit", [97, 99] * 4 + [97], 1),
        ("submit", [97], 3),
        ("submit", [98, 99] * 4 + [97], 1),
        ("leave", 2, 0),
        ("submit", [97], 0),
        ("restart", 0, 0),
    ],
    Machine(3, 16, None, None, cache_ram=1000, n_files=2, bad_states=frozenset(), gap_steps=1),
)
def test_arbitrary_arrivals_and_cancellations_change_nobodys_text(
    steps: list[Any], machine: Machine
) -> None:
    with machine.driver() as driver:
        sinks, jobs = play(driver, steps)
        driver.check_nothing_is_left()
        metrics = driver.core.metrics()
    for sink in sinks:
        whole = expected(sink.request, 128)
        if sink.disturbed:
            assert whole.startswith(sink.text)
            assert sink.ended or sink.cancelled or sink.gone
            if sink.ended_early:
                assert isinstance(sink.events[-1].error, sink.ended_early)
        else:
            assert sink.text == whole
            assert isinstance(sink.events[-1], Finished)
            usage = sink.events[-1].usage
            assert usage.n_prompt == len(sink.request.prompt_tokens)
            assert usage.n_completion == len(whole)
            assert 0 <= usage.n_cached < usage.n_prompt
    if not any(sink.disturbed for sink in sinks):
        n_cached = sum(sink.events[-1].usage.n_cached for sink in sinks)
        assert metrics.prompt_tokens_reused_total + driver.n_reused == n_cached
    assert metrics.prompt_tokens_reused_slot_total >= 0
    restarted = any(what == "restart" for what, _, _ in steps)
    for job in jobs:
        if not (restarted and isinstance(job.future.exception(0), EngineStopped)):
            assert np.allclose(np.linalg.norm(job.future.result(0), axis=1), 1)


@settings(max_examples=300, deadline=None)
@given(
    operations,
    machines,
    st.dictionaries(st.integers(0, 60), st.sampled_from([1, 2, -1, -2, -3]), max_size=8),
)
def test_a_failing_step_fails_what_was_in_it_or_nothing_and_the_rest_goes_on(
    steps: list[Any], machine: Machine, failing: dict[int, int]
) -> None:
    calls = 0
    lost: set[int] = set()

    def faults(batch: Any) -> int:
        nonlocal calls
        calls += 1
        code = failing.get(calls, 0)
        if code < 0:
            lost.update(
                id(s.sink) for s in driver.core._scheduler.sequences() if s.slot in batch.slots
            )
        return code

    with machine.driver(faults) as driver:
        sinks, _ = play(driver, steps)
        driver.check_nothing_is_left()
    for sink in sinks:
        whole = expected(sink.request, 128)
        assert whole.startswith(sink.text)
        assert sink.ended or sink.cancelled or sink.gone
        if sink.disturbed:
            continue
        if isinstance(sink.events[-1], Failed):
            assert isinstance(sink.events[-1].error, StepFailed)
            assert id(sink) in lost or set(failing.values()) & {1, 2}
        else:
            assert sink.text == whole


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 20))
def test_closing_answers_everybody_and_frees_the_backend(n: int) -> None:
    driver = Driver(FakeBackend(n_ctx=128, n_slots=2))
    sinks = [driver.submit([97] * (i % 60 + 1), 10) for i in range(n)]
    late = Sink(GenerationRequest([97]))
    job = EmbeddingJob([[97]])
    driver.core.close([Submit(late, late.request), job])
    for sink in [*sinks, late]:
        assert sink.ended
    assert isinstance(late.events[-1].error, EngineStopped)
    with pytest.raises(EngineStopped):
        job.future.result(0)
    assert driver.backend.closed
    assert not driver.core._by_sink


def test_every_step_gives_each_running_sequence_one_token_while_prompts_are_computed() -> None:
    driver = Driver(FakeBackend(n_ctx=4096, n_slots=4, n_batch=64), target_itl_ms=0.0)
    streaming = driver.submit([97], 100)
    while not streaming.text:
        driver.core.step([])
    long = driver.submit([98] * 1000, 4)
    before = len(streaming.text)
    for n in range(1, 11):
        driver.core.step([])
        assert len(streaming.text) == before + n
    assert not long.text
    driver.run()
    assert long.text == expected(long.request, 4096)


@pytest.mark.parametrize("n_batch", [4, 15])
def test_no_batch_is_larger_than_the_backend_takes_however_small_that_is(n_batch: int) -> None:
    driver = Driver(FakeBackend(n_slots=2, n_batch=n_batch))
    sinks = [driver.submit(list(range(i, i + 16))) for i in range(3)]
    driver.run()
    assert [sink.text for sink in sinks] == [expected(sink.request, 256) for sink in sinks]


def test_more_requests_than_slots_are_served_in_arrival_order() -> None:
    driver = Driver(FakeBackend(n_slots=2))
    ends: list[int] = []
    sinks = [driver.submit([97 + i], 3) for i in range(8)]
    for _ in range(200):
        driver.core.step([])
        ends += [i for i, sink in enumerate(sinks) if sink.ended and i not in ends]
    assert ends == sorted(ends)
    assert len(ends) == 8


def test_the_running_slots_become_contiguous_again_after_ends() -> None:
    driver = Driver(FakeBackend(n_ctx=512, n_slots=8))
    sinks = [driver.submit([97 + i], 5 if i % 2 else 100) for i in range(8)]
    while not all(sink.ended for sink in sinks[1::2]):
        driver.core.step([])
    for _ in range(50):
        driver.core.step([])
    assert list(driver.backend.batches[-1].slots) == [0, 1, 2, 3]
    driver.run()
    assert [sink.text for sink in sinks] == [expected(sink.request, 512) for sink in sinks]


def test_a_cancelled_sequence_is_in_no_later_batch() -> None:
    driver = Driver(FakeBackend())
    staying, leaving = driver.submit([97], 50), driver.submit([98], 50)
    for _ in range(3):
        driver.core.step([])
    driver.core.step([Cancel(leaving)])
    assert all(len(batch) == 1 for batch in driver.backend.batches[-1:])
    driver.run()
    assert staying.text == expected(staying.request, 256)


def test_the_end_token_is_counted_and_has_no_text() -> None:
    driver = Driver(FakeBackend(next_token=spelling("hi", 1)))
    sink = driver.submit([97], 10)
    driver.run()
    assert sink.text == "hi"
    end = sink.events[-1]
    assert (end.reason, end.usage.n_completion) == ("stop", 3)


def test_ignoring_the_end_token_goes_on_to_the_limit() -> None:
    backend = FakeBackend(next_token=lambda tokens: EOG if len(tokens) == 3 else letters(tokens))
    driver = Driver(backend)
    sink = driver.submit([97], 6, sampling=SamplingParams(temperature=0, ignore_eos=True))
    driver.run()
    assert sink.events[-1].reason == "length"
    assert sink.events[-1].usage.n_completion == 6


def test_a_stop_string_ends_the_generation_before_it() -> None:
    driver = Driver(FakeBackend(next_token=spelling("one two three", 1)))
    sink = driver.submit([97], 20, stop=("o t", "zzz"))
    driver.run()
    assert sink.text == "one tw"
    assert sink.events[-1].reason == "stop"


def test_the_context_bounds_a_generation_without_a_limit() -> None:
    driver = Driver(FakeBackend(n_ctx=32))
    sink = driver.submit([97] * 30, None)
    driver.run()
    assert sink.events[-1].reason == "length"
    assert sink.events[-1].usage.n_completion == 2


def test_no_tokens_are_asked_for_and_none_are_made() -> None:
    driver = Driver(FakeBackend())
    sink = driver.submit([97], 0)
    assert sink.events == [Finished("length", sink.events[0].usage)]
    assert not driver.backend.batches


def test_the_same_seed_gives_the_same_text_and_every_draw_is_closed() -> None:
    driver = Driver(FakeBackend())
    texts = [driver.submit([97], 8, sampling=SamplingParams(seed=seed)) for seed in (3, 3, 4, None)]
    driver.run()
    same, again, other, _ = (sink.text for sink in texts)
    assert same == again != other
    assert FakeDraw.open_draws == 0


def test_a_conversation_computes_only_what_is_new() -> None:
    driver = Driver(FakeBackend())
    first = driver.submit([97] * 20, 5)
    driver.run()
    second = driver.submit([*[97] * 20, *first.text.encode(), 98, 99], 5)
    driver.run()
    # The last token of an answer is never computed: nothing follows it.
    assert second.events[-1].usage.n_cached == 24
    assert second.text == expected(second.request, 256)


def test_biases_and_penalties_move_the_choice() -> None:
    driver = Driver(FakeBackend(next_token=lambda tokens: 97))
    biased = driver.submit([97], 3, sampling=SamplingParams(temperature=0, logit_bias={98: 100}))
    penalised = driver.submit(
        [97], 3, sampling=SamplingParams(temperature=0, presence_penalty=2, logit_bias={99: 9})
    )
    driver.run()
    assert biased.text == "bbb"
    assert penalised.text == "aca"


def test_embeddings_go_on_beside_streams_and_a_cancelled_one_is_skipped() -> None:
    driver = Driver(FakeBackend(n_ctx=512))
    stream = driver.submit([97], 100)
    jobs = [EmbeddingJob([[i] * 20 for i in range(1, 7)]) for _ in range(3)]
    jobs[1].future.cancel()
    for job in jobs:
        driver.core.step([job])
    for _ in range(30):
        driver.core.step([])
    assert not stream.ended
    for job in (jobs[0], jobs[2]):
        vectors = job.future.result(0)
        assert vectors.shape == (6, 8)
        assert [int(row.argmax()) for row in vectors] == [1, 2, 3, 4, 5, 6]
    driver.run()


def test_an_input_that_must_be_whole_is_never_split() -> None:
    driver = Driver(FakeBackend(n_batch=16, whole_inputs=True))
    future: Future[Any] = Future()
    driver.run([EmbeddingJob([[1] * 60, [2] * 3, [3] * 50], future)])
    assert future.result(0).shape == (3, 8)


def test_a_request_that_cannot_be_taken_fails_alone() -> None:
    driver = Driver(FakeBackend())
    good, bad = (
        Sink(GenerationRequest([97], 3, GREEDY)),
        Sink(GenerationRequest([97], 3, SamplingParams(repeat_penalty=1.1, repeat_last_n=-2))),
    )
    driver.run([Submit(bad, bad.request), Submit(good, good.request)])
    assert isinstance(bad.events[-1], Failed)
    assert good.text == expected(good.request, 256)
    driver.check_nothing_is_left()


def together(driver: Driver, requests: Sequence[GenerationRequest]) -> list[Sink]:
    """Submit in one step, and run to the end."""
    sinks = [Sink(request) for request in requests]
    driver.run([Submit(sink, sink.request) for sink in sinks])
    return sinks


def test_requests_that_arrive_together_compute_their_common_prefix_once() -> None:
    driver = Driver(FakeBackend(n_slots=6))
    shared = [97, 98, 99] * 50
    requests = [GenerationRequest([*shared, 100 + i], 5, GREEDY) for i in range(12)]
    sinks = together(driver, requests)
    for sink in sinks:
        assert sink.text == expected(sink.request, 256)
    assert driver.core.metrics().prompt_tokens_computed_total == 150 + 12
    assert sorted(sink.events[-1].usage.n_cached for sink in sinks) == [0] + [150] * 11


def test_choices_of_one_prompt_compute_it_once() -> None:
    driver = Driver(FakeBackend(n_slots=8))
    prompt = [97, 98, 99] * 50
    together(driver, [GenerationRequest(prompt, 5, SamplingParams(seed=i)) for i in range(8)])
    assert driver.core.metrics().prompt_tokens_computed_total == 150 + 7


def test_where_the_one_that_computes_a_prefix_goes_away_another_computes_it() -> None:
    driver = Driver(FakeBackend(n_batch=16))
    prompt = [97, 98] * 60
    sinks = [Sink(GenerationRequest([*prompt, 100 + i], 5, GREEDY)) for i in range(3)]
    driver.core.step([Submit(sink, sink.request) for sink in sinks])
    assert driver.core.metrics().sequences_waiting == 2
    driver.run([Cancel(sinks[0])])
    assert [sink.text for sink in sinks[1:]] == [expected(s.request, 256) for s in sinks[1:]]
    assert driver.core.metrics().prompt_tokens_computed_total < 150


def test_a_prefix_is_shared_with_one_that_still_streams_but_not_between_salts() -> None:
    driver = Driver(FakeBackend())
    prompt = [97, 98] * 40
    first = driver.submit(prompt, 60)
    for _ in range(10):
        driver.core.step([])
    same, other = driver.submit(prompt, 5), driver.submit(prompt, 5, cache_salt="b")
    driver.run()
    assert first.ended and same.text == other.text == expected(same.request, 256)
    assert same.events[-1].usage.n_cached == 79
    assert other.events[-1].usage.n_cached == 0


def test_what_takes_too_long_ends_with_a_reason_waiting_or_running() -> None:
    driver = Driver(FakeBackend(n_ctx=10**6, n_slots=1, step_s=0.01), request_timeout_s=0.1)
    running, waiting = together(driver, [GenerationRequest([97]), GenerationRequest([98])])
    for sink in (running, waiting):
        assert isinstance(sink.events[-1].error, DeadlineExceeded)
    assert running.text
    later = driver.submit([97], 3)
    driver.run()
    assert later.text == expected(later.request, 256)
    driver.check_nothing_is_left()


def test_a_prompt_that_is_moved_into_a_gap_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(core, "GAP_STEPS", 1)
    driver = Driver(FakeBackend(n_batch=16))
    streams = [driver.submit([97 + i], 30) for i in range(3)]
    while not all(sink.text for sink in streams):
        driver.core.step([])
    long = driver.submit([104] * 200, 5)
    driver.core.step([Cancel(streams[1])])
    assert not long.text
    driver.run()
    for sink in (streams[0], streams[2], long):
        assert sink.text == expected(sink.request, 256)


def test_when_cells_run_out_the_youngest_makes_room_and_goes_on_as_if_nothing_had_been() -> None:
    backend = FakeBackend(n_ctx=256, n_slots=4, n_cells=256)
    driver = Driver(backend)
    sinks = [driver.submit([97 + i] * 70, 100) for i in range(2)]
    driver.run()
    for sink in sinks:
        assert sink.text == expected(sink.request, 256)
        assert sink.events[-1].usage.n_cached == 0
    metrics = driver.core.metrics()
    assert metrics.preemptions_total == 1
    # Its own, and later that of the other, which had ended.
    assert metrics.states_saved_total == 2
    # What it had computed came back; only the token that was sampled last was left to do.
    assert metrics.prompt_tokens_computed_total == 2 * 70 + 1
    assert [len(sink.events) for sink in sinks] == [101, 101]


def test_without_ram_a_preempted_sequence_is_computed_again() -> None:
    driver = Driver(FakeBackend(n_ctx=256, n_slots=4, n_cells=256), cache_ram=0)
    sinks = [driver.submit([97 + i] * 70, 100) for i in range(2)]
    driver.run()
    assert [sink.text for sink in sinks] == [expected(sink.request, 256) for sink in sinks]
    metrics = driver.core.metrics()
    assert (metrics.preemptions_total, metrics.states_saved_total) == (1, 0)
    assert metrics.prompt_tokens_computed_total > 2 * 70 + 40


def test_the_lowest_priority_is_preempted_even_if_it_is_older() -> None:
    driver = Driver(FakeBackend(n_ctx=256, n_slots=4, n_cells=256))
    flex = driver.submit([97] * 70, 100, priority=-1)
    default = driver.submit([98] * 70, 100)
    for _ in range(1000):
        driver.core.step([])
        if default.ended:
            break
    assert default.ended and not flex.ended
    driver.run()
    assert flex.text == expected(flex.request, 256)


def test_nobody_is_admitted_to_a_pool_that_has_no_room_for_its_prompt() -> None:
    driver = Driver(FakeBackend(n_ctx=256, n_slots=4, n_cells=256))
    sinks = together(driver, [GenerationRequest([97 + i] * 150, 20, GREEDY) for i in range(3)])
    assert [sink.text for sink in sinks] == [expected(sink.request, 256) for sink in sinks]
    assert driver.core.metrics().preemptions_total == 0


def test_what_lost_its_slot_comes_back_from_ram() -> None:
    driver = Driver(FakeBackend(n_slots=1))
    first = driver.submit([97] * 100, 5)
    driver.run()
    driver.submit([98] * 100, 5)
    driver.run()
    again = driver.submit([*[97] * 100, *first.text.encode(), 99], 5)
    driver.run()
    assert again.events[-1].usage.n_cached == 104
    assert again.text == expected(again.request, 256)
    assert driver.core.metrics().prompt_tokens_reused_ram_total == 104
    other = driver.submit([*[98] * 100, 97], 5, cache_salt="another")
    driver.run()
    assert other.events[-1].usage.n_cached == 0


def test_a_memory_that_is_one_state_shares_prefixes_by_saving_it_on_the_way() -> None:
    driver = Driver(FakeBackend(n_slots=4, n_drop_max=0))
    shared = [97, 98] * 40
    requests = [GenerationRequest([*shared, 100 + i], 5, GREEDY) for i in range(8)]
    sinks = together(driver, requests)
    assert [sink.text for sink in sinks] == [expected(r, 256) for r in requests]
    assert driver.core.metrics().prompt_tokens_computed_total == 80 + 8
    # A later one has it too, and one that goes on from an answer starts at its end.
    later = driver.submit([*shared, 120], 5)
    driver.run()
    assert later.events[-1].usage.n_cached == 80
    goes_on = driver.submit([*shared, 120, *later.text.encode(), 97], 5)
    driver.run()
    assert goes_on.events[-1].usage.n_cached == 85
    assert goes_on.text == expected(goes_on.request, 256)


def test_prefixes_that_come_one_after_another_are_saved_once_their_end_is_known() -> None:
    driver = Driver(FakeBackend(n_slots=2, n_drop_max=0))
    cached = []
    for i in range(4):
        sink = driver.submit([*[97, 98] * 40, 100 + i, 97], 5)
        driver.run()
        cached.append(sink.events[-1].usage.n_cached)
        assert sink.text == expected(sink.request, 256)
    assert cached == [0, 0, 80, 80]


@pytest.mark.parametrize("n_drop_max", [0, 16])
def test_a_turn_goes_on_from_the_prompt_before_though_its_thoughts_are_left_out(
    n_drop_max: int,
) -> None:
    driver = Driver(FakeBackend(n_ctx=1024, n_slots=2, n_drop_max=n_drop_max))
    prompt = [i % 200 for i in range(300)]
    driver.submit(prompt, 100)
    driver.run()
    opening = prefix_cache.N_OPENING_TOKENS - 2
    turn = driver.submit([*prompt[:-opening], *range(50)])
    driver.run()
    assert turn.text == expected(turn.request, 1024)
    assert turn.events[-1].usage.n_cached == 300 - prefix_cache.N_OPENING_TOKENS
    driver.check_nothing_is_left()


def test_an_aborted_step_is_taken_again() -> None:
    n_calls = 0

    def faults(batch: Any) -> int:
        nonlocal n_calls
        n_calls += 1
        return ABORTED if n_calls % 3 == 0 else 0

    for n_drop_max in (None, 0):
        driver = Driver(FakeBackend(faults=faults, n_drop_max=n_drop_max))
        sinks = together(driver, [GenerationRequest([97 + i] * 5, 10, GREEDY) for i in range(3)])
        assert [sink.text for sink in sinks] == [expected(s.request, 256) for s in sinks]


@pytest.mark.parametrize("code", [NO_PLACE, ABORTED, -1, -2, -3, 99])
def test_a_code_that_never_goes_away_fails_the_work_and_not_the_engine(code: int) -> None:
    broken = True
    driver = Driver(FakeBackend(faults=lambda batch: code if broken else 0))
    sinks = together(driver, [GenerationRequest([97 + i] * 5, 10, GREEDY) for i in range(3)])
    assert all(isinstance(sink.events[-1].error, StepFailed) for sink in sinks)
    broken = False
    later = driver.submit([97], 3)
    driver.run()
    assert later.text == expected(later.request, 256)


def test_the_histograms_count_what_happened() -> None:
    driver = Driver(FakeBackend(n_slots=2))
    together(driver, [GenerationRequest([97 + i] * 5, 10, GREEDY) for i in range(3)])
    metrics = driver.core.metrics()
    assert metrics.queue_seconds.count == metrics.first_token_seconds.count == 3
    assert metrics.request_seconds.count == 3
    assert metrics.inter_token_seconds.count == 3 * 9
    assert metrics.decode_batch_size.count == metrics.decode_steps_total
    assert metrics.decode_batch_size.total == 3 * 9
    assert metrics.cells_total == 2 * 256 and metrics.cells_used > 0


def test_what_was_computed_before_a_restart_comes_back_from_the_disk(tmp_path: Path) -> None:
    for n_drop_max in (None, 0):
        folder = tmp_path / str(n_drop_max)
        before = Driver(FakeBackend(n_drop_max=n_drop_max), cache_dir=folder)
        first = before.submit([97, 98] * 50, 5, cache_salt="mine")
        before.run()
        before.core.close([])
        assert before.backend.closed

        after = Driver(FakeBackend(n_drop_max=n_drop_max), cache_dir=folder)
        wait_for_scan(after)
        prompt = [*[97, 98] * 50, *first.text.encode(), 99]
        mine = [GenerationRequest([*prompt, 97 + i], 5, GREEDY, (), "mine") for i in range(3)]
        sinks = together(after, mine)
        for sink in sinks:
            assert sink.text == expected(sink.request, 256)
            assert sink.events[-1].usage.n_cached >= 104
        assert after.core.metrics().prompt_tokens_reused_disk_total >= 104
        other = after.submit([*prompt, 99], 5, cache_salt="")
        after.run()
        assert other.events[-1].usage.n_cached == 0
        after.check_nothing_is_left()
        after.core.close([])


def kept(folder: Path) -> Path:
    """The one file that an engine leaves behind which knows a prompt of 100 tokens."""
    before = Driver(FakeBackend(), cache_dir=folder)
    before.submit([97, 98] * 50, 5)
    before.run()
    before.core.close([])
    (file,) = folder.iterdir()
    return file


def test_what_several_had_in_common_is_kept_and_kept_once(tmp_path: Path) -> None:
    shared = [97, 98] * 60
    before = Driver(FakeBackend(n_slots=8), cache_dir=tmp_path)
    together(before, [GenerationRequest([*shared, 100 + i], 5, GREEDY) for i in range(8)])
    before.core.close([])
    assert len(list(tmp_path.iterdir())) == 1
    after = Driver(FakeBackend(), cache_dir=tmp_path)
    wait_for_scan(after)
    sink = after.submit([*shared, 97], 5)
    after.run()
    assert sink.events[-1].usage.n_cached == 120
    after.core.close([])


def test_a_damaged_state_on_disk_is_computed_again(tmp_path: Path) -> None:
    file = kept(tmp_path)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    after = Driver(FakeBackend(), cache_dir=tmp_path)
    wait_for_scan(after)
    again = after.submit([97, 98] * 50, 5)
    after.run()
    assert again.text == expected(again.request, 256)
    assert again.events[-1].usage.n_cached == 0
    after.core.close([])


def test_reuse_counts_for_the_tier_that_it_came_from(tmp_path: Path) -> None:
    kept(tmp_path)
    driver = Driver(FakeBackend(n_slots=1), cache_dir=tmp_path)
    wait_for_scan(driver)
    tiers = []
    for prompt in ([97, 98] * 50, [97, 98] * 50, [99] * 100, [97, 98] * 50):
        driver.submit(prompt, 5)
        driver.run()
        metrics = driver.core.metrics()
        tiers.append(
            (
                metrics.prompt_tokens_reused_slot_total,
                metrics.prompt_tokens_reused_ram_total,
                metrics.prompt_tokens_reused_disk_total,
            )
        )
    assert tiers == [(0, 0, 99), (99, 0, 99), (99, 0, 99), (99, 99, 99)]
    assert metrics.ram_bytes == (104 + 104) * 4
    assert metrics.disk_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    driver.core.close([])


def test_what_does_not_fit_into_ram_is_not_read_from_the_disk(tmp_path: Path) -> None:
    kept(tmp_path)
    for cache_ram, n_cached in ((104 * 4 - 1, 0), (104 * 4, 99)):
        driver = Driver(FakeBackend(), cache_dir=tmp_path, cache_ram=cache_ram)
        wait_for_scan(driver)
        sink = driver.submit([97, 98] * 50, 5)
        driver.run()
        assert sink.events[-1].usage.n_cached == n_cached
        driver.core.close([])


def test_a_state_that_cannot_be_loaded_is_not_tried_again(tmp_path: Path) -> None:
    kept(tmp_path)
    driver = Driver(FakeBackend(state_faults=lambda: True), cache_dir=tmp_path)
    wait_for_scan(driver)
    sink = driver.submit([97, 98] * 50, 5)
    driver.run()
    assert sink.text == expected(sink.request, 256)
    assert sink.events[-1].usage.n_cached == 0
    assert driver.core.metrics().ram_bytes == 0
    disk = driver.core._memory._disk
    assert disk is not None and disk.match([97, 98] * 50, "") == (None, 0)
    driver.core.close([])


def test_an_engine_that_died_keeps_nothing_of_what_it_no_longer_knows(tmp_path: Path) -> None:
    driver = Driver(FakeBackend(), cache_dir=tmp_path)
    driver.submit([97, 98] * 50, 5)
    driver.run()

    def break_down(events: Any) -> None:
        raise RuntimeError("a mistake")

    driver.core._deliver = break_down
    with pytest.raises(RuntimeError):
        driver.submit([97], 0)
    driver.core._deliver = driver._deliver
    driver.core.close([])
    assert driver.backend.closed and not list(tmp_path.iterdir())


class DiskOfOne(FakeDisk):
    """Has the state of a prompt of 100 tokens."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__({}, n_files=9, can_drop=True)
        self.put([97, 98] * 50, "", np.array([97, 98] * 50, np.int32).view(np.uint8))


class HangingDisk(DiskOfOne):
    """Never answers."""

    def answer(self, *, broken: bool = False) -> None:
        pass


@pytest.mark.parametrize("who", [0, 1])
def test_what_two_wait_for_is_read_once_also_when_one_of_them_leaves(
    who: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = DiskOfOne()
    monkeypatch.setattr(kv_memory, "DiskCache", lambda *args, **options: disk)
    driver = Driver(FakeBackend(), [disk], cache_dir=Path("nowhere"))
    sinks = [driver.submit([97, 98] * 50, 5) for _ in range(2)]
    assert len(disk.fetches) == 1
    driver.step([Cancel(sinks[who])])
    driver.run()
    assert sinks[1 - who].events[-1].usage.n_cached == 99
    driver.check_nothing_is_left()


def test_a_prompt_waits_for_the_disk_no_longer_than_computing_it_takes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kv_memory, "DiskCache", HangingDisk)
    driver = Driver(FakeBackend(), cache_dir=Path("nowhere"))
    waiting, other = driver.submit([97, 98] * 50, 5), driver.submit([99] * 30, 5)
    while driver.step():
        pass
    assert other.ended and not waiting.events
    wait_s = driver.core.wake_in_s()
    assert wait_s is not None and core.MIN_FETCH_TIMEOUT_S < wait_s <= core.FETCH_TIMEOUT_S
    # Now that it is known how fast prompts are computed, another waits for less.
    driver.submit([97, 98] * 50, 5)
    wait_s = driver.core.wake_in_s()
    assert wait_s is not None and 0 < wait_s <= core.MIN_FETCH_TIMEOUT_S
    over = time.monotonic() + core.FETCH_TIMEOUT_S
    monkeypatch.setattr(time, "monotonic", lambda: over)
    assert driver.core.wake_in_s() == 0
    driver.run()
    assert waiting.text == expected(waiting.request, 256)
    assert "the disk takes too long" in caplog.text
    driver.check_nothing_is_left()


@pytest.mark.anyio
async def test_an_engine_that_sleeps_until_the_disk_answers_wakes_up_for_a_deadline(
    monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    monkeypatch.setattr(kv_memory, "DiskCache", HangingDisk)
    monkeypatch.setattr(core, "FETCH_TIMEOUT_S", 1000.0)
    config = EngineConfig(Path("fake"), cache_dir=Path("nowhere"), request_timeout_s=0.05)
    async with Engine(config, open_backend=lambda config, stopping: FakeBackend()) as engine:
        with anyio.fail_after(30), pytest.raises(DeadlineExceeded):
            async for _ in engine.submit(GenerationRequest([97, 98] * 50, 5)):
                pass


def wait_for_scan(driver: Driver) -> None:
    give_up = time.monotonic() + 10
    while not driver.core.metrics().disk_bytes:
        assert time.monotonic() < give_up
        time.sleep(0.001)
