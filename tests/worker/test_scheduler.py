"""Does every request get what it would get alone, whatever runs beside it, and does no block get lost or trampled?"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from berth_worker.engine.blocks import BlockManager, extend_digests
from berth_worker.engine.cost import Load, Pace, StepCost
from berth_worker.engine.request import Request, State
from berth_worker.engine.scheduler import QueueFullError, Scheduler
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from scheduler_harness import COMMON, TTL, Harness, expected, request, run_all

prompts = st.builds(
    lambda shared, own: COMMON[:shared] + own,
    st.integers(0, 70),
    st.lists(st.integers(0, 96), min_size=1, max_size=30),
)


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of arrivals, steps and cancellations."""

    requests = Bundle("requests")

    @initialize(
        blocks=st.integers(8, 24),
        running=st.integers(1, 5),
        waiting=st.integers(0, 6),
        spare=st.integers(0, 40),
    )
    def build(self, blocks: int, running: int, waiting: int, spare: int) -> None:
        self.harness = Harness(blocks, running, waiting, running + spare)
        self.prompts: dict[int, list[int]] = {}
        self.cancelled: set[int] = set()

    @rule(
        target=requests,
        prompt=prompts,
        count=st.integers(1, 24),
        priority=st.integers(-1, 1),
        session=st.sampled_from(["", "a", "b", "c"]),
    )
    def submit(self, prompt: list[int], count: int, priority: int, session: str) -> Request | None:
        scheduler = self.harness.scheduler
        inside = len(scheduler.running) + len(scheduler.waiting)
        r = request(prompt, count, priority, session)
        if inside >= scheduler.max_running + scheduler.max_waiting:
            with pytest.raises(QueueFullError):
                scheduler.add(r)
            return None
        scheduler.add(r)
        self.prompts[id(r)] = prompt
        return r

    @rule(times=st.integers(1, 6), right=st.integers(0, 20), wrong=st.integers(0, 20))
    def step(self, times: int, right: int, wrong: int) -> None:
        for _ in range(times):
            self.harness.step(right, wrong)

    @rule(seconds=st.sampled_from([1.0, 60.0, 200.0]))
    def wait(self, seconds: float) -> None:
        self.harness.scheduler.tick(self.harness.scheduler.now + seconds)

    @rule(r=requests)
    def cancel(self, r: Request | None) -> None:
        if r is not None and r.state is not State.FINISHED:
            self.harness.scheduler.finish(r)
            self.cancelled.add(id(r))
            self.harness.scheduler.finish(r)  # the second time does nothing

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "harness"):
            self.harness.check()

    def teardown(self) -> None:
        if not hasattr(self, "harness"):
            return
        self.harness.drain()
        self.harness.scheduler.tick(self.harness.scheduler.now + 2 * TTL)
        assert self.harness.blocks.free == self.harness.blocks.num_blocks, "no session stays for ever"
        assert len(self.harness.done) == len(self.prompts) - len(self.cancelled), "every request finishes"
        for r in self.harness.done:
            assert list(r.output_tokens) == expected(self.prompts[id(r)], r.max_tokens)


TestAnyOrderOfArrivalsStepsAndCancellations = SchedulerMachine.TestCase
TestAnyOrderOfArrivalsStepsAndCancellations.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_prefix_computed_once_is_not_computed_again() -> None:
    harness = Harness(32, 4, 4, 64)
    first = request([*COMMON[:100], 1])
    run_all(harness, [first])
    second = request([*COMMON[:100], 2])
    run_all(harness, [second])
    assert (first.cached_tokens, second.cached_tokens) == (0, 96)
    assert (harness.scheduler.prefix_hits, harness.scheduler.prefix_queried) == (96, 202)


def test_a_prompt_cached_whole_still_computes_its_last_token_for_the_logits() -> None:
    harness = Harness(32, 4, 4, 64)
    first, again = request(COMMON[:64]), request(COMMON[:64])
    assert run_all(harness, [first]) == run_all(harness, [again])
    assert again.cached_tokens == 63


def test_the_next_turn_of_a_session_finds_what_the_last_turn_generated() -> None:
    harness = Harness(32, 4, 4, 64)
    turn = request(COMMON[:40], max_tokens=30)
    run_all(harness, [turn])
    following = request([*turn.tokens, 5, 6, 7])
    run_all(harness, [following])
    assert following.cached_tokens == 69  # of 40 + 30 tokens the last was never computed


def test_those_that_go_on_from_one_turn_write_into_copies_of_its_last_block() -> None:
    harness = Harness(32, 4, 4, 200)
    turn = request(COMMON[:40], max_tokens=30)
    run_all(harness, [turn])
    forks = [request([*turn.tokens, i, 6, 7], max_tokens=9) for i in range(3)]
    outputs = run_all(harness, forks)
    assert outputs == [expected([*turn.tokens, i, 6, 7], 9) for i in range(3)]
    assert [r.cached_tokens for r in forks] == [69] * 3
    shorter = request(turn.tokens[:67], max_tokens=9)
    assert run_all(harness, [shorter]) == [expected(turn.tokens[:67], 9)]
    assert shorter.cached_tokens == 64, "a block is found by all that it holds"


def test_a_block_copied_from_may_be_taken_in_the_same_step() -> None:
    harness = Harness(4, 4, 4, 200)
    turn = request(COMMON[:20], max_tokens=1)
    run_all(harness, [turn])
    other = request([9] * 20, max_tokens=1)
    run_all(harness, [other])  # takes what was free longer, and leaves the turn's two blocks
    following = request([*COMMON[:20], *[3] * 30], max_tokens=9)
    assert run_all(harness, [following]) == [expected([*COMMON[:20], *[3] * 30], 9)]
    assert following.cached_tokens == 20


def test_sessions_that_start_together_share_their_prefix_while_it_is_computed() -> None:
    harness = Harness(64, 4, 4, 32)
    together = [request([*COMMON[:160], i]) for i in range(3)]
    run_all(harness, together)
    rows = sum(len(r.tokens) - 1 - r.cached_tokens for r in together)
    assert rows <= 160 + 3 * 32, "three prompts of 161 tokens cost little more than one"


def test_an_output_longer_than_memory_for_all_is_preempted_and_still_right() -> None:
    harness = Harness(10, 4, 4, 64)
    many = [request([i, i + 1, i + 2], max_tokens=60) for i in range(4)]
    outputs = run_all(harness, many)
    assert harness.scheduler.preemptions > 0
    assert outputs == [expected([i, i + 1, i + 2], 60) for i in range(4)]


def test_a_request_waits_until_its_cached_prefix_and_the_rest_of_it_fit_beside_those_that_run() -> None:
    harness = Harness(6, 4, 4, 200)
    run_all(harness, [request(COMMON[:65], max_tokens=1)])
    running, large = request([1], max_tokens=10), request([*COMMON[:64], *[2] * 17], max_tokens=1)
    harness.scheduler.add(running)
    harness.step()
    harness.scheduler.add(large)
    while running.state is State.RUNNING:
        assert large.state is State.WAITING, "4 cached + 2 of its own + 1 to spare exceed the 5 that are free"
        harness.step()
    harness.drain()
    assert (large.cached_tokens, harness.scheduler.preemptions) == (64, 0)


def test_decoding_requests_get_a_row_in_every_step_while_a_long_prompt_is_prefilled() -> None:
    harness = Harness(64, 4, 4, 20)
    decoding = request([1, 2], max_tokens=40)
    harness.scheduler.add(decoding)
    harness.step()
    harness.scheduler.add(request(COMMON + COMMON[:200], max_tokens=1))
    for _ in range(20):
        before = decoding.generated
        harness.step()
        assert decoding.generated == before + 1


def test_a_draft_that_comes_true_saves_its_steps_and_one_that_does_not_changes_nothing() -> None:
    outputs, steps = [], []
    for right, wrong in [(0, 0), (7, 0), (0, 7), (3, 4)]:
        harness = Harness(32, 4, 4, 64)
        many = [request([i, 1, 2], max_tokens=33) for i in range(3)]
        for r in many:
            harness.scheduler.add(r)
        harness.step()
        count = 1
        while not harness.scheduler.idle:
            harness.step(right, wrong)
            harness.check()
            count += 1
        outputs.append([list(r.output_tokens) for r in many])
        steps.append(count)
    assert all(o == outputs[0] == [expected([i, 1, 2], 33) for i in range(3)] for o in outputs)
    assert steps == [33, 1 + 32 // 8, 33, 1 + 32 // 4]


def test_drafts_share_the_steps_rows_with_prompts_and_push_nobody_out() -> None:
    harness = Harness(6, 4, 4, 20)
    small, large = request([1], max_tokens=40), request(COMMON[:48], max_tokens=9)
    harness.scheduler.add(small)
    harness.step()
    harness.scheduler.add(large)
    first = harness.step(right=10)
    assert [(item.rows, len(item.draft)) for item in first] == [(11, 10), (9, 0)]
    harness.drain(right=10)


def test_a_draft_takes_no_block_that_is_not_free() -> None:
    harness = Harness(3, 4, 4, 64)
    many = [request([i], max_tokens=20) for i in range(2)]
    for r in many:
        harness.scheduler.add(r)
    harness.step()
    work = harness.step(right=18)
    assert [len(item.draft) for item in work] == [18, 14], "the first takes the free block, the second fills its own"
    assert harness.scheduler.preemptions == 0
    harness.drain()


def known_cost(fixed: float, row: float, attended: float = 0.0) -> StepCost:
    """What it has learned from steps of a machine that takes exactly so long."""
    cost = StepCost()
    for i in range(3000):
        load = Load(i % 40 + 1, 0, i * 37 % 5000)
        cost.observe(load, fixed + row * load.rows + attended * load.attended)
    cost.lateness = 1.0
    return cost


def test_beside_running_streams_a_prompt_takes_the_time_that_the_pace_leaves_and_alone_all_rows() -> None:
    pace = Pace(known_cost(0.004, 0.001), 0.0205)
    harness = Harness(64, 4, 4, 200)
    stream = request([1, 2], max_tokens=30)
    harness.scheduler.add(stream)
    harness.step(pace=pace)
    harness.scheduler.add(request(COMMON[:200], max_tokens=1))
    assert [item.rows for item in harness.step(pace=pace)] == [1, 15], "4 + 16 x 1 ms fit into 20.5"
    assert [item.rows for item in harness.step(right=5, pace=pace)] == [6, 10], "a draft takes of the same time"
    harness.scheduler.finish(stream)
    assert [item.rows for item in harness.step(pace=pace)] == [175]
    harness.drain()


def test_a_prompt_gets_on_even_where_there_is_no_time() -> None:
    pace = Pace(known_cost(0.004, 0.001), 0.001)
    harness = Harness(64, 4, 4, 200)
    harness.scheduler.add(request([1, 2], max_tokens=60))
    harness.step(pace=pace)
    harness.scheduler.add(prompt := request(COMMON[:30], max_tokens=1))
    harness.scheduler.add(behind := request(COMMON[:31], max_tokens=1))
    steps = 0
    while prompt.state is not State.FINISHED:
        assert [item.rows for item in harness.step(pace=pace)][:2] == [1, min(4, 30 - 4 * steps)]
        steps += 1
    assert behind.cached_tokens == 16, "what it waited for was computed meanwhile"
    harness.drain()


def test_a_higher_priority_goes_in_first_and_equal_ones_by_arrival() -> None:
    harness = Harness(32, 1, 8, 64)
    order = [request([i], priority=p) for i, p in enumerate([0, 0, 5, 0])]
    run_all(harness, order)
    assert [harness.done.index(r) for r in order] == [1, 2, 0, 3]


def test_a_full_queue_says_how_full_it_is() -> None:
    harness = Harness(32, 1, 1, 64)
    harness.scheduler.add(request([1]))
    harness.scheduler.add(request([2]))
    with pytest.raises(QueueFullError, match="0 requests run and 2 wait; at most 1 run and 1 wait"):
        harness.scheduler.add(request([3]))


def test_a_chunk_that_is_not_the_last_ends_with_a_block() -> None:
    harness = Harness(32, 2, 2, 50)
    harness.scheduler.add(request(COMMON[:130]))
    assert [harness.step()[0].count for _ in range(3)] == [48, 48, 34]


def test_a_block_after_another_beginning_is_another_block() -> None:
    harness = Harness(32, 4, 4, 64)
    run_all(harness, [request([1] * 16 + COMMON[:16] + [5])])
    run_all(harness, [other := request([2] * 16 + COMMON[:16] + [5])])
    run_all(harness, [again := request([2] * 16 + COMMON[:16] + [5])])
    assert (other.cached_tokens, again.cached_tokens) == (0, 32)
    shifted = request(COMMON[:16] + COMMON[:16] + [5])
    run_all(harness, [shifted])
    assert shifted.cached_tokens == 0
    digests: list[bytes] = []
    extend_digests(digests, COMMON[:16] * 3, 3)
    assert len(set(digests)) == 3


def test_limits_that_would_starve_someone_are_refused() -> None:
    with pytest.raises(ValueError, match="token_budget: 3; at least max_running"):
        Scheduler(BlockManager(4), max_running=4, max_waiting=0, token_budget=3)
    with pytest.raises(ValueError, match="70 tokens never fit in 4 blocks of 16"):
        Scheduler(BlockManager(4), max_running=1, max_waiting=0, token_budget=3).add(request([1] * 66))
