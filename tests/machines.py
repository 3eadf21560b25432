"""Engines of all kinds, and what happens to them, drawn by hypothesis."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from driver import GREEDY, Driver, Sink
from fakes import FakeBackend, FakeDisk, FakeVocabulary
from hypothesis import strategies as st

from openai_local.engine import (
    Constraint,
    DeadlineExceeded,
    EngineStopped,
    GenerationRequest,
    PromptLogprobs,
    SamplingParams,
    TextDelta,
    admission,
    kv_memory,
)
from openai_local.engine.cache import fetches, prefix_cache
from openai_local.engine.constraints.compiler import ConstraintCompiler
from openai_local.engine.embedder import EmbeddingJob
from openai_local.engine.intake import Cancel, Submit
from openai_local.engine.sequence import Status

# Two families, so that prompts share long prefixes, and copies between slots are planned.
prompts = st.builds(
    lambda family, n_shared, rest: ([family, 99] * 40)[:n_shared] + rest,
    st.sampled_from([97, 98]),
    st.integers(0, 80),
    st.lists(st.integers(97, 100), min_size=1, max_size=10),
)
lengths = st.one_of(st.integers(0, 12), st.integers(30, 60))


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,3}$"},
        "city": {"enum": ["Paris", "Rome"]},
    },
    "required": ["name", "city"],
    "additionalProperties": False,
}
BOUND = ConstraintCompiler(FakeVocabulary()).compile(Constraint("json_schema", json.dumps(PERSON)))
# What is asked for beside a text: logprobs, those of the prompt, a prompt computed in full, an end
# that must not come at once, and a text that must be of a form.
options = st.sampled_from(
    [
        {"logprobs": 1},
        {"logprobs": 0, "prompt_logprobs": True},
        {"reuse": False},
        {"sampling": SamplingParams(seed=0, min_tokens=5), "stop_tokens": tuple(range(100, 112))},
        {"constraint": BOUND},
        {"constraint": BOUND},
        {"constraint": BOUND, "logprobs": 0, "reuse": False},
        {
            "constraint": BOUND,
            "sampling": SamplingParams(temperature=0, min_tokens=9),
            "stop_tokens": (ord("P"), ord("R")),
        },
    ]
)
operation = st.one_of(
    st.tuples(st.just("submit"), prompts, lengths),
    st.tuples(st.just("submit"), prompts, lengths),
    st.tuples(st.just("ask"), st.tuples(prompts, options), lengths),
    st.tuples(st.just("ask"), st.tuples(prompts, options), lengths),
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
        elif what == "ask":
            prompt, asked = value
            sinks.append(driver.submit(prompt, n, priority=len(prompt) % 3, **asked))
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


def undisturbed(request: GenerationRequest) -> Sink:
    """What the request gets on an engine of its own."""
    driver = Driver(FakeBackend(n_ctx=128))
    sink = Sink(request)
    driver.run([Submit(sink, request)])
    return sink


def told(sink: Sink) -> tuple[list[Any], list[Any]]:
    """The logprobs of the prompt and of the text."""
    of_prompt = [
        e for event in sink.events if isinstance(event, PromptLogprobs) for e in event.tokens
    ]
    of_text = [e for event in sink.events if isinstance(event, TextDelta) for e in event.logprobs]
    return of_prompt, of_text


def check_is_begun(sink: Sink, whole: Sink) -> None:
    """It has got the beginning of what it would have got undisturbed."""
    assert whole.text.startswith(sink.text)
    of_prompt, of_text = told(sink)
    assert of_prompt in ([], told(whole)[0])
    assert told(whole)[1][: len(of_text)] == of_text


def be_late(driver: Driver, sinks: list[Sink]) -> None:
    """The time of these, the oldest ones, is over."""
    late = [s for sink in sinks if (s := driver.core._deliveries.of(sink))]
    for sequence in late:
        sequence.submitted_s -= 10 * TIMEOUT_S
    end_early(driver, sinks, DeadlineExceeded)
    driver.step()
    assert all(sequence.status is Status.ENDED for sequence in late)


def end_early(driver: Driver, sinks: list[Sink], error: type[Exception]) -> None:
    """Those that have not ended will do so with ``error``."""
    for sink in sinks:
        if driver.core._deliveries.of(sink):
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
    asynchronous: bool = False

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
            asynchronous=self.asynchronous,
            state_faults=lambda: next(numbers) in self.bad_states,
        )
        files: dict[Any, Any] = {}

        def open_disk(*args: Any, can_drop: bool, **options: Any) -> FakeDisk:
            disks.append(FakeDisk(files, n_files=self.n_files or 0, can_drop=can_drop))
            return disks[-1]

        disks: list[FakeDisk] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kv_memory, "DiskCache", open_disk)
            patch.setattr(admission, "GAP_STEPS", self.gap_steps)
            patch.setattr(admission, "HEADROOM_TOKENS", 1)
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
    gap_steps=st.sampled_from([1, 3, admission.GAP_STEPS]),
    asynchronous=st.booleans(),
)
