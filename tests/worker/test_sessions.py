"""Does a session's next turn find what the last one left, and does keeping it never cost anyone a step?"""

from __future__ import annotations

import pytest
from berth_worker.engine.blocks import blocks_for
from berth_worker.engine.request import State
from scheduler_harness import COMMON, TTL, Harness, expected, request, run_all


def other_traffic(harness: Harness, count: int, start: int = 0) -> None:
    """Requests without a session, one after the other, that have nothing in common."""
    for index in range(start, start + count):
        run_all(harness, [request([index] * 40, max_tokens=20)])


@pytest.mark.parametrize(("session", "found"), [("agent", 69), ("", 0)])
def test_a_sessions_next_turn_finds_its_blocks_though_other_traffic_has_passed(session: str, found: int) -> None:
    harness = Harness(10, 4, 4, 64)
    turn = request(COMMON[:40], max_tokens=30, session=session)
    run_all(harness, [turn])
    assert (harness.blocks.retained, harness.blocks.held) == (blocks_for(found), 0)
    other_traffic(harness, 8)
    following = request([*turn.tokens, 5, 6, 7], session=session)
    run_all(harness, [following])
    assert following.cached_tokens == found


def test_a_session_that_stays_away_too_long_is_reused_like_any_other_block() -> None:
    harness = Harness(10, 4, 4, 64)
    turn = request(COMMON[:40], max_tokens=30, session="agent")
    run_all(harness, [turn])
    harness.scheduler.tick(TTL)
    assert len(harness.scheduler.sessions) == 1
    harness.scheduler.tick(TTL + 1)
    assert (len(harness.scheduler.sessions), harness.blocks.retained) == (0, 0)
    run_all(harness, [again := request([*turn.tokens, 5], session="agent")])
    assert again.cached_tokens == 69, "nobody has taken them yet"


def test_a_session_whose_next_turn_waits_in_the_queue_is_kept_for_it() -> None:
    harness = Harness(12, 1, 4, 64)
    turn, rival = (request([i] * 40, max_tokens=9, session=name) for i, name in enumerate(["agent", "rival"]))
    run_all(harness, [turn])
    run_all(harness, [rival])
    running = request([7] * 20, max_tokens=80)
    harness.scheduler.add(running)
    harness.step()
    harness.scheduler.tick(TTL - 1)
    following = request([*turn.tokens, 5], session="agent")
    following.arrived = TTL - 1
    harness.scheduler.add(following)
    harness.scheduler.tick(TTL + 1)
    assert list(harness.scheduler.sessions._kept) == ["agent", following.arrival]
    assert len(harness.scheduler.sessions) == 1, "who waits is no session"
    harness.drain()
    assert following.cached_tokens == 48


@pytest.mark.parametrize("waits", [True, False])
def test_a_turn_that_waits_finds_what_was_there_when_it_came_though_it_names_no_session(waits: bool) -> None:
    harness = Harness(11, 1, 4, 64)
    turn, rival = (request([i] * 40, max_tokens=9) for i in range(2))
    run_all(harness, [turn])
    run_all(harness, [rival])
    running = request([7] * 20, max_tokens=100)  # 8 blocks, and 5 of 11 have no content
    following = request([*turn.tokens, 5])
    harness.scheduler.add(running)
    harness.step()
    if waits:
        harness.scheduler.add(following)
    while running.state is not State.FINISHED:
        harness.step()
        harness.check()
    if not waits:
        harness.scheduler.add(following)
    harness.drain()
    assert following.cached_tokens == (48 if waits else 0)
    assert harness.blocks.retained == 0


def test_what_is_kept_for_a_request_that_waits_makes_room_for_those_that_run_and_goes_when_it_is_cancelled() -> None:
    harness = Harness(8, 1, 4, 64)
    turn = request([1] * 40, max_tokens=9)
    run_all(harness, [turn])
    running = request([7] * 20, max_tokens=100)
    cancelled, following = (request([*turn.tokens, i]) for i in range(2))
    harness.scheduler.add(running)
    harness.step()
    harness.scheduler.add(cancelled)
    harness.scheduler.add(following)
    assert harness.blocks.retained == 3
    harness.scheduler.finish(cancelled)
    harness.check()
    harness.drain()
    assert (harness.scheduler.preemptions, harness.blocks.retained) == (0, 0)
    assert following.cached_tokens == 0


def test_under_pressure_the_least_recently_used_session_goes_first_and_whole() -> None:
    harness = Harness(12, 4, 4, 64)
    turns = {name: request([i] * 40, max_tokens=9, session=name) for i, name in enumerate("abc")}
    for turn in turns.values():
        run_all(harness, [turn])
    run_all(harness, [request([*turns["a"].tokens, 1], max_tokens=1, session="a")])
    assert harness.blocks.retained == 10, "three full ones each, and what the last turn began"
    run_all(harness, [request([9] * 60, max_tokens=4)])  # 4 blocks, with 2 that are free
    assert list(harness.scheduler.sessions._kept) == ["c", "a"]
    cached = []
    for name in "ac":
        run_all(harness, [again := request([*turns[name].tokens, 2], max_tokens=1)])
        cached.append(again.cached_tokens)
    assert cached == [48, 48]


def test_of_sessions_whose_next_turns_wait_the_last_in_the_queue_goes_first() -> None:
    harness = Harness(12, 1, 4, 64)
    turns = {name: request([i] * 40, max_tokens=9, session=name) for i, name in enumerate("abc")}
    for turn in turns.values():
        run_all(harness, [turn])
    assert (harness.blocks.retained, harness.blocks.free) == (9, 3)
    harness.scheduler.add(request([7] * 40, max_tokens=30))  # 3 blocks, and 2 more while the others wait
    harness.step()
    following = [request([*turns[name].tokens, 5], session=name) for name in "abc"]
    run_all(harness, following)
    assert [turn.cached_tokens for turn in following[:2]] == [48, 48], "they come before c"


def test_sessions_make_room_before_anyone_is_preempted_or_kept_waiting() -> None:
    harness = Harness(8, 4, 4, 64)
    for i, name in enumerate("ab"):
        run_all(harness, [request([i] * 50, max_tokens=12, session=name)])
    assert harness.blocks.retained == 8
    outputs = run_all(harness, [request([7] * 40, max_tokens=80, session="c")])
    assert outputs == [expected([7] * 40, 80)]
    assert (harness.scheduler.preemptions, len(harness.scheduler.sessions)) == (0, 1)


def test_a_request_that_fits_only_without_those_that_run_costs_no_session() -> None:
    harness = Harness(8, 4, 4, 64)
    run_all(harness, [request([1] * 30, session="a")])
    running, large = request([2] * 40, max_tokens=8), request([3] * 100, max_tokens=1)
    harness.scheduler.add(running)
    harness.step()
    harness.scheduler.add(large)
    harness.step()
    assert (large.state, len(harness.scheduler.sessions)) == (State.WAITING, 1)
    harness.drain()


def test_sessions_that_share_all_their_blocks_are_bounded_too() -> None:
    harness = Harness(8, 4, 4, 64)
    for index in range(20):
        run_all(harness, [request(COMMON[:16], max_tokens=1, session=str(index))])
    assert (len(harness.scheduler.sessions), harness.blocks.retained) == (8, 1)
