"""Is the wait of a turn that has lost its history bounded, and does a crowd of agents get more done for it?"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from berth_worker.engine.histories import Histories
from berth_worker.engine.request import Request, State
from crowd import Case, quantile, simulate
from hypothesis import given, settings
from scheduler_harness import Harness, request, run_all

AGENTS = 5


def step(harness: Harness) -> None:
    """One step; while a turn waits that has lost its history, everyone comes in as promised."""
    scheduler = harness.scheduler
    waiting = list(scheduler.waiting)
    lost = [r for r in waiting if r.lost]
    reading = any(r.long and not r.decoding for r in scheduler.running)
    first = min((r for r in waiting if r.long), key=lambda r: r.rank, default=None)
    harness.step()
    harness.check()
    came = [r for r in waiting if r.state is not State.WAITING]
    if any(r.state is State.WAITING for r in lost):
        long = [r for r in came if r.long]
        assert long in ([], [] if reading else [first]), "one at a time, in order of arrival"
        assert reading or not came or first in came, "and before anything else"


@settings(deadline=None)
@given(
    st.integers(20, 40),
    st.lists(st.tuples(st.integers(0, AGENTS - 1), st.integers(1, 40), st.integers(1, 12)), max_size=60),
)
def test_while_a_turn_waits_that_lost_its_history_long_prompts_come_in_one_at_a_time_by_arrival(
    blocks: int, turns: list[tuple[int, int, int]]
) -> None:
    harness = Harness(blocks, 3, AGENTS, 35)
    histories = [[agent] * 100 for agent in range(AGENTS)]
    asking: dict[int, Request] = {}
    for agent, new, steps in turns:
        if agent not in asking or asking[agent].state is State.FINISHED:
            if agent in asking:
                histories[agent] = asking[agent].tokens[:240]
            asking[agent] = request([*histories[agent], *range(50, 50 + new)], max_tokens=9)
            harness.scheduler.add(asking[agent])
        for _ in range(steps):
            if not harness.scheduler.idle:
                step(harness)
    while not harness.scheduler.idle:
        step(harness)
    assert all(r.generated == 9 for r in asking.values())


def crowd_of(histories: int) -> tuple[Harness, list[Request]]:
    """Sequences of 100 tokens that have run, of which room for 20 blocks keeps the last two, and their next turns."""
    harness = Harness(20, 4, 8, 35)
    before = [request([i] * 100, max_tokens=1) for i in range(histories)]
    for r in before:
        run_all(harness, [r])
    return harness, [request([*r.tokens, 9, 9], max_tokens=4) for r in before]


def test_a_turn_whose_history_is_gone_has_lost_it_and_a_new_prompt_and_one_that_is_found_have_not() -> None:
    harness, (first, *_, last) = crowd_of(5)
    new = request([8] * 100)
    for r in (first, last, new):
        harness.scheduler.add(r)
    assert [(r.long, r.lost) for r in (first, last, new)] == [(True, True), (False, False), (True, False)]
    harness.drain()


def test_while_a_turn_waits_that_lost_its_history_no_long_prompt_passes_it_and_one_is_read_at_a_time() -> None:
    harness, (first, second, *_) = crowd_of(5)
    shorter = request([8] * 60, max_tokens=1)
    long = [first, second, shorter]
    for r in long:
        harness.scheduler.add(r)
    while second.state is State.WAITING:
        assert sum(r.state is State.RUNNING and not r.decoding for r in long) <= 1
        assert shorter.state is State.WAITING
        harness.step()
    assert first.generated
    assert second.lost
    harness.drain()


def test_a_turn_whose_kept_history_had_to_make_room_while_it_waited_has_lost_it_too() -> None:
    harness = Harness(8, 1, 4, 35)
    turn = request([1] * 40, max_tokens=9)
    run_all(harness, [turn])
    harness.scheduler.add(request([7] * 20, max_tokens=100))
    harness.step()
    harness.scheduler.add(following := request([*turn.tokens, 2]))
    assert not following.lost, "48 of 50 tokens are kept for it, until the other needs all 8 blocks"
    harness.drain()
    assert (following.cached_tokens, following.lost) == (0, True)


def test_a_short_turn_still_passes_one_that_is_read_again() -> None:
    harness, (first, *_, last) = crowd_of(5)
    harness.scheduler.add(first)
    harness.step()
    harness.scheduler.add(last)
    harness.step()
    assert (first.generated, last.generated) == (0, 1)
    harness.drain()


def test_nobody_takes_the_room_that_a_turn_which_lost_its_history_waits_for_but_a_higher_priority_does() -> None:
    harness, (first, *_) = crowd_of(5)
    running = request([7] * 240, max_tokens=30)
    harness.scheduler.add(running)
    while not running.generated:
        harness.step()
    short, urgent = request([6] * 4, max_tokens=2), request([5] * 4, max_tokens=2, priority=1)
    for r in (first, short):
        harness.scheduler.add(r)
    for _ in range(3):
        harness.step()
        assert [r.state for r in (first, short)] == [State.WAITING] * 2
    harness.scheduler.add(urgent)
    harness.step()
    assert [r.state for r in (first, short, urgent)] == [State.WAITING, State.WAITING, State.RUNNING]
    harness.drain()
    assert harness.done.index(first) > harness.done.index(running)


@given(st.lists(st.lists(st.sampled_from([b"a", b"b"]), max_size=5), max_size=12), st.data())
def test_what_is_lost_is_what_goes_beyond_what_was_found_of_the_longest_history_known(
    ended: list[list[bytes]], data: st.DataObject
) -> None:
    histories = Histories(6)
    chained = [[b"".join(path[: i + 1]) for i in range(len(path))] for path in ended]
    for digests in chained:
        histories.end(digests)
    prompt = data.draw(st.lists(st.sampled_from([b"a", b"b"]), max_size=6))
    digests = [b"".join(prompt[: i + 1]) for i in range(len(prompt))]
    found = data.draw(st.integers(0, len(prompt)))
    latest = list(dict.fromkeys(path[-1] for path in reversed(chained) if path))[:6]
    known = max([len(end) for end in latest if end in digests], default=0)
    assert histories.lost(digests, found) == max(known - found, 0)


@pytest.mark.parametrize("named", [True, False])
def test_a_crowd_gets_more_turns_answered_and_its_longest_wait_is_far_shorter(named: bool) -> None:
    case = Case(10, 5, named=named, seconds=400)
    ours, without, by_arrival = (
        simulate(case, histories=histories, by_turns=by_turns)
        for histories, by_turns in ((True, True), (False, True), (False, False))
    )
    assert ours.turns > 1.05 * without.turns
    assert max(ours.first_token) < 0.7 * max(without.first_token)
    assert ours.turns > 2 * by_arrival.turns
    assert quantile(ours.first_token, 0.99) < 1.5 * quantile(by_arrival.first_token, 0.99)


def test_where_all_fit_nothing_is_changed() -> None:
    case = Case(6, 14, seconds=200)
    assert simulate(case) == simulate(case, histories=False)
