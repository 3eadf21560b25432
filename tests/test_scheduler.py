"""How many prompt tokens go between two tokens of a stream, and whose."""

from __future__ import annotations

import pytest

from openai_local.engine import GenerationRequest, SamplingParams
from openai_local.engine.cache.prefix_cache import PrefixCache
from openai_local.engine.sampling import Sampler
from openai_local.engine.scheduler import (
    MIN_CHUNK_TOKENS,
    TILE,
    PrefillBudget,
    Scheduler,
)
from openai_local.engine.sequence import Sequence, Status
from openai_local.engine.waiting import WaitingQueue


def budget(tokens_per_s: float, decode_s: float, n_batch: int = 2048) -> PrefillBudget:
    """Settled on these speeds, with a target of 100 ms."""
    budget = PrefillBudget(n_batch, 0.1)
    for _ in range(100):
        budget.observe_prefill(100, 100 / tokens_per_s)
        budget.observe_decode(decode_s)
    return budget


def scheduler(*prompts: int, n_decoding: int = 0, speed: float = 700.0) -> Scheduler:
    """Prompts of these lengths, after sequences that generate already."""
    scheduler = Scheduler(PrefixCache(64, 8192), budget(speed, 0.02), 64)
    for length in [1] * n_decoding + list(prompts):
        # No two have a prefix in common.
        tokens = [scheduler.n_running] * length
        request = GenerationRequest(tokens, 8)
        sampler = Sampler(SamplingParams(), tokens, (), None)
        sequence = Sequence(request, sampler, 8192, object())
        scheduler.submit(sequence)
        scheduler.admit(sequence)
    for sequence in scheduler.sequences()[:n_decoding]:
        sequence.status = Status.DECODE
    return scheduler


def chunks(scheduler: Scheduler, n_decoding: int = 0) -> list[tuple[int, int]]:
    """Slots and tokens of the next chunks, which are then done."""
    chunks = scheduler.chunks(n_decoding)
    for chunk in chunks:
        chunk.sequence.n_computed += chunk.n_tokens
        if chunk.sequence.n_to_compute == 0:
            chunk.sequence.status = Status.DECODE
    return [(chunk.sequence.slot, chunk.n_tokens) for chunk in chunks]


def test_with_streams_running_a_chunk_and_a_decode_fit_the_target_in_whole_tiles() -> None:
    assert budget(4100, 0.02).tokens(1) == 320
    assert budget(3900, 0.02).tokens(1) == 256


def test_with_nobody_streaming_a_chunk_is_as_long_as_half_a_second() -> None:
    assert budget(1000, 0.02).tokens(0) == 448


def test_the_batch_bounds_a_chunk() -> None:
    assert budget(100_000, 0.02, n_batch=500).tokens(0) == 500


def test_where_decodes_alone_take_the_target_a_chunk_takes_as_long_as_they_do() -> None:
    assert budget(1500, 0.09).tokens(32) == 128


def test_a_chunk_is_a_tile_at_least_unless_a_tile_takes_too_long() -> None:
    assert budget(300, 0.09).tokens(32) == TILE
    assert budget(150, 0.09).tokens(32) == 37
    assert budget(10, 0.09).tokens(32) == MIN_CHUNK_TOKENS


def test_the_first_chunk_is_a_tile_and_the_second_fits_what_the_first_took() -> None:
    unknown = PrefillBudget(2048, 0.1)
    assert unknown.tokens(0) == TILE
    unknown.observe_prefill(TILE, TILE / 20)
    assert unknown.tokens(0) == MIN_CHUNK_TOKENS


def test_a_stall_is_forgotten() -> None:
    stalled = budget(1000, 0.02)
    stalled.observe_prefill(64, 30.0)
    assert stalled.tokens(0) < TILE
    for _ in range(30):
        n = stalled.tokens(0)
        stalled.observe_prefill(n, n / 1000)
    assert stalled.tokens(0) == 448


def test_short_chunks_say_nothing_of_the_speed() -> None:
    settled = budget(1000, 0.0)
    before = settled.tokens(1)
    settled.observe_prefill(1, 1.0)
    assert settled.tokens(1) == before


def test_a_short_prompt_is_not_cut_and_a_long_one_goes_on_in_tiles() -> None:
    assert chunks(scheduler(120, n_decoding=8), 8) == [(8, 120)]
    assert chunks(scheduler(200, n_decoding=8), 8) == [(8, TILE)]


def test_a_call_has_no_scraps_of_prompts() -> None:
    waiting = scheduler(100, 100, 100, 100)
    assert chunks(waiting) == [(0, 100), (1, 100), (2, 100)]
    assert chunks(waiting) == [(3, 100)]


def test_a_burst_goes_before_the_few_streams_that_it_outnumbers() -> None:
    assert len(chunks(scheduler(*[100] * 7, n_decoding=4), 4)) == 3
    assert len(chunks(scheduler(*[100] * 7, n_decoding=7), 7)) == 1
    # Nothing that it computes now would be a stream.
    assert chunks(scheduler(*[4000] * 7, n_decoding=1), 1) == [(1, TILE)]


def test_short_prompts_are_not_stuck_behind_long_ones_nor_the_long_ones_for_ever() -> None:
    waiting = scheduler(4000, n_decoding=9)
    n_long = 0
    for i in range(40):
        request = GenerationRequest([100 + i] * 90, 8)
        short = Sequence(
            request, Sampler(SamplingParams(), request.prompt_tokens, (), None), 8192, object()
        )
        waiting.submit(short)
        waiting.admit(short)
        done = chunks(waiting, 9) + chunks(waiting, 9)
        assert short.status is Status.DECODE
        n_long += sum(n for slot, n in done if slot == 9)
        waiting.remove(short)
    assert n_long >= 39 * TILE


def waiting(n: int, priority: int) -> list[Sequence]:
    request = GenerationRequest([1], 8, priority=priority)
    return [
        Sequence(request, Sampler(SamplingParams(), [1], (), None), 64, object()) for _ in range(n)
    ]


def test_a_higher_priority_goes_first_and_the_oldest_every_fourth_time() -> None:
    queue = WaitingQueue()
    flex, default, priority = waiting(3, -1), waiting(4, 0), waiting(5, 1)
    for sequence in [*flex, *default, *priority]:
        queue.push(sequence)
    order = []
    while len(queue):
        order.append(next(iter(queue.candidates())))
        queue.take(order[-1])
    assert order == [
        *priority[:3], flex[0], *priority[3:], default[0], flex[1], *default[1:], flex[2],
    ]  # fmt: skip


def test_who_is_late_is_found_also_behind_one_that_was_in_a_slot_already() -> None:
    queue = WaitingQueue()
    old, young, preempted = waiting(3, 0)
    old.submitted_s, young.submitted_s, preempted.submitted_s = 1, 5, 4
    preempted.admitted_s = 4.5
    queue.push(old)
    queue.push(young)
    queue.push_first(preempted)
    assert queue.submitted_before(1) == []
    assert queue.submitted_before(2) == [old]
    assert queue.submitted_before(4.5) == [preempted, old]
    assert queue.submitted_before(6) == [preempted, old, young]


def test_each_waiting_sequence_is_asked_where_those_before_it_cannot_go() -> None:
    queue = WaitingQueue()
    sequences = waiting(2, 0) + waiting(2, -1) + waiting(1, 1)
    for sequence in sequences:
        queue.push(sequence)
    for _ in range(5):
        assert set(queue.candidates()) == set(queue) == set(sequences)
        queue._n_taken += 1
    queue.remove(sequences[0])
    assert sequences[0] not in queue and sequences[1] in queue and len(queue) == 4


@pytest.mark.parametrize("n_gaps", [1, 2, 3])
def test_gaps_between_streams_are_filled_while_they_are_few(n_gaps: int) -> None:
    running = scheduler(n_decoding=10)
    sequences = running.sequences()
    for sequence in sequences[2 : 2 + n_gaps]:
        sequence.n_computed = 1
        running.remove(sequence)
    decoding = running.decodes()
    assert len(decoding) == 10 - n_gaps
    fillers = [(2 + i, 1) for i in range(n_gaps)] if n_gaps <= 2 else []
    assert running.fillers(decoding) == fillers


def test_prompts_between_streams_take_part_in_their_decodes() -> None:
    running = scheduler(300, 300, n_decoding=3)
    last = running.sequences()[-1]
    assert [sequence.slot for sequence in running.decodes()] == [0, 1, 2]
    last.status = Status.DECODE
    assert [sequence.slot for sequence in running.decodes()] == [0, 1, 2, 3, 4]
    assert running.decodes()[3].status is Status.PREFILL
