"""Is a prompt ever read later than if all were read side by side, and does a short one get past long ones?"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import hypothesis.strategies as st
import pytest
from berth_worker.engine.request import State
from berth_worker.engine.turns import Turns
from hypothesis import given
from scheduler_harness import Harness, request

Arrival = tuple[int, int]
"""Tokens that were read before it by all, at the least; tokens to read."""


def side_by_side(arrivals: Sequence[Arrival]) -> list[Fraction]:
    """Tokens that have been read of all when each is read to its end, all that are there at equal shares."""
    left = [Fraction(tokens) for _, tokens in arrivals]
    ends = [Fraction(0)] * len(arrivals)
    now = Fraction(0)
    while any(left):
        there = [i for i, (at, _) in enumerate(arrivals) if at <= now and left[i]]
        coming = [Fraction(at) for at, _ in arrivals if at > now]
        if not there:
            now = min(coming)
            continue
        share = min([left[i] for i in there] + [(at - now) / len(there) for at in coming])
        now += share * len(there)
        for i in there:
            left[i] -= share
            if not left[i]:
                ends[i] = now
    return ends


def by_turns(arrivals: Sequence[Arrival]) -> list[int]:
    """The same for one token at a time of the prompt whose turn it is."""
    turns = Turns()
    entered: dict[int, float] = {}
    left = [tokens for _, tokens in arrivals]
    ends = [0] * len(arrivals)
    now = 0
    while any(left):
        if not any(left[i] for i in entered):
            turns.rest()
        for i, (at, tokens) in enumerate(arrivals):
            if at <= now and i not in entered:
                entered[i] = turns.enter(tokens)
        there = [i for i in entered if left[i]]
        now += 1
        if there:
            first = min(there, key=lambda i: (entered[i], i))
            left[first] -= 1
            turns.read(1)
            if not left[first]:
                ends[first] = now
    return ends


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), min_size=1, max_size=8))
def test_no_prompt_is_read_later_than_if_all_were_read_side_by_side(arrivals: list[Arrival]) -> None:
    arrivals = sorted(arrivals, key=lambda arrival: arrival[0])
    for ours, theirs in zip(by_turns(arrivals), side_by_side(arrivals), strict=True):
        assert ours < theirs + 1, "a token is not divided"


@given(st.lists(st.integers(0, 60), min_size=2, max_size=8), st.integers(1, 40))
def test_prompts_of_one_length_are_read_in_order_of_arrival(times: list[int], tokens: int) -> None:
    ends = by_turns([(at, tokens) for at in sorted(times)])
    assert ends == sorted(ends)


def test_who_comes_when_nothing_is_left_to_read_comes_after_all_before() -> None:
    turns = Turns()
    long = turns.enter(100)
    turns.read(40)  # and of the rest it turned out that it was cached
    turns.rest()
    assert turns.enter(1) > long


def test_a_short_turn_does_not_wait_behind_long_prompts_that_came_before_it() -> None:
    harness = Harness(80, 8, 8, 64)
    long = [request([i] * 200, max_tokens=1) for i in range(3)]
    for r in long:
        harness.scheduler.add(r)
    harness.step()
    short = request([9] * 20, max_tokens=1)
    harness.scheduler.add(short)
    harness.step()
    assert short.generated == 1, "20 tokens of 64: read in the next step"
    harness.drain()
    assert harness.done == [short, *long], "and the long ones one after the other, in order of arrival"


def test_short_turns_hold_a_long_prompt_up_for_no_longer_than_sharing_would() -> None:
    harness = Harness(80, 8, 8, 32)
    long = request([1] * 320, max_tokens=1)
    harness.scheduler.add(long)
    for step in range(40):  # half of all rows
        harness.scheduler.add(request([2 + step] * 16, max_tokens=1))
        harness.step()
        if long.state is State.FINISHED:
            break
    assert step == pytest.approx(20, abs=2), "it needs the rows of ten steps, and half of them are the others'"


def test_what_others_read_of_a_shared_prefix_counts_as_read() -> None:
    harness = Harness(80, 8, 8, 32)
    for tail in range(3):
        harness.scheduler.add(request([*range(90), tail], max_tokens=1))
    harness.drain()
    assert harness.scheduler.turns._ends == [], "else who comes next would be taken for one of many"


def test_what_is_cancelled_counts_as_read() -> None:
    harness = Harness(80, 8, 8, 32)
    first, other = request([1] * 90, max_tokens=1), request([2] * 60, max_tokens=1)
    harness.scheduler.add(first)
    harness.scheduler.add(other)
    harness.step()
    harness.scheduler.finish(first)
    harness.drain()
    assert harness.scheduler.turns._ends == []
