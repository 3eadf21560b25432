"""No prompt token is computed twice: prefixes of slots, of RAM, and of those that run."""

from __future__ import annotations

import pytest
from driver import GREEDY, Driver, Sink, expected, together
from fakes import FakeBackend

from openai_local.engine import GenerationRequest, SamplingParams
from openai_local.engine.cache import prefix_cache
from openai_local.engine.intake import Cancel, Submit


def test_a_conversation_computes_only_what_is_new() -> None:
    driver = Driver(FakeBackend())
    first = driver.submit([97] * 20, 5)
    driver.run()
    second = driver.submit([*[97] * 20, *first.text.encode(), 98, 99], 5)
    driver.run()
    # The last token of an answer is never computed: nothing follows it.
    assert second.events[-1].usage.n_cached == 24
    assert second.text == expected(second.request, 256)


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


def test_a_memory_that_is_one_state_is_saved_also_where_a_prompt_ends() -> None:
    driver = Driver(FakeBackend(n_slots=2, n_drop_max=0))
    whole = [97, 98] * 40
    requests = [GenerationRequest([*whole, *rest], 20, GREEDY) for rest in ([], [97], [98, 99])]
    sinks = together(driver, requests)
    assert [sink.text for sink in sinks] == [expected(r, 256) for r in requests]
    assert driver.core.metrics().prompt_tokens_computed_total == 80 + 1 + 2
    driver.check_nothing_is_left()


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
