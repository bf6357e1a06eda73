"""Is a draft what stood there before, as long as pays, and the output the same with and without it?"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import numpy as np
import pytest
from berth_worker.engine.active import Active
from berth_worker.engine.cost import Load, Pace, StepCost
from berth_worker.engine.limits import EngineConfig
from berth_worker.engine.report import StepReport
from berth_worker.engine.request import Request, SamplingParams
from berth_worker.engine.speculation import LONGEST_DRAFT, Acceptance, Drafter, PromptLookup, drafts
from berth_worker.engine.stream import Chunk, Completion, SyncStream, merge
from hypothesis import given

if TYPE_CHECKING:
    from berth_worker.engine.engine import Engine

MakeEngine = Callable[..., "Engine"]
QUOTING = (
    "Repeat the following list word by word.\n"
    "List: alpha seven, bravo nine, charlie eleven, delta four, echo sixty, foxtrot twelve.\n"
    "List: alpha seven, bravo nine, charlie eleven, delta four, echo sixty, foxtrot twelve.\n"
    "List: alpha"
)
PROSE = "Once upon a time, in a village by the sea,"
GREEDY = SamplingParams(max_tokens=48, temperature=0, ignore_eos=True)


class Counted:
    """Sums what the engine reports."""

    def __init__(self) -> None:
        self.steps = self.drafted = self.accepted = self.generated = 0

    def step(self, report: StepReport) -> None:
        self.steps += 1
        self.drafted += report.drafted
        self.accepted += report.accepted
        self.generated += report.generated

    def finished(self, finish: object, e2e_seconds: float) -> None:
        pass


async def read(engine: Engine, prompt: str, params: SamplingParams) -> Completion:
    whole = merge([chunk async for chunk in engine.submit(engine.tokenizer.encode(prompt), params)])
    assert whole.finish is not None
    return Completion(whole.text, whole.token_ids, whole.finish)


# -- the same output -------------------------------------------------------------------------------------------------


REQUESTS = [
    (QUOTING, GREEDY),
    (PROSE, GREEDY),
    (QUOTING, dataclasses.replace(GREEDY, max_tokens=13)),
    (QUOTING, dataclasses.replace(GREEDY, stop=("eleven, delta",))),
    (QUOTING + " seven", dataclasses.replace(GREEDY, temperature=0.6, top_p=0.9, seed=3)),
    ("1, 2, 3, 1, 2, 3, 1, 2,", dataclasses.replace(GREEDY, temperature=1.0, seed=8)),
]


async def test_the_output_is_that_of_plain_decoding_alone_and_in_a_crowd(make_engine: MakeEngine) -> None:
    plain = make_engine(speculation="off")
    wanted = await asyncio.gather(*(read(plain, *request) for request in REQUESTS))
    counted = Counted()
    engine = make_engine(observer=counted)
    crowd = await asyncio.gather(*(read(engine, *request) for request in REQUESTS))
    for plainly, together in zip(wanted, crowd, strict=True):
        assert (together.text, together.token_ids) == (plainly.text, plainly.token_ids)
        assert together.finish.reason is plainly.finish.reason
    assert 0 < counted.accepted <= counted.drafted
    alone = [await read(engine, *REQUESTS[i]) for i in (0, 3, 5)]
    assert [c.token_ids for c in alone] == [wanted[i].token_ids for i in (0, 3, 5)]


async def test_quoting_takes_far_fewer_steps_than_tokens(make_engine: MakeEngine) -> None:
    counted = Counted()
    await read(make_engine(observer=counted, gap_seconds=1.0), QUOTING, GREEDY)
    assert counted.generated == 48
    assert counted.accepted > 16
    assert counted.steps == 48 - counted.accepted


async def test_drafts_beside_little_memory_and_preemption_change_no_token(make_engine: MakeEngine) -> None:
    params = dataclasses.replace(GREEDY, max_tokens=60)
    prompts = [PROSE, "My favourite city is", "The old engine", "a b a b a b a", "1, 2, 3, 1, 2, 3, 1, 2,"]
    plain = make_engine(speculation="off")
    wanted = await asyncio.gather(*(read(plain, prompt, params) for prompt in prompts))
    counted = Counted()
    tight = make_engine(
        start=False,
        observer=counted,
        gap_seconds=1.0,
        max_running=4,
        token_budget=24,
        max_context_tokens=128,
        kv_cache_tokens=128,
    )
    reading = asyncio.gather(*(read(tight, prompt, params) for prompt in prompts))
    await asyncio.sleep(0)  # each has submitted its prompt: they run at once, however fast or busy the machine is
    tight.start()
    got = await reading
    assert [g.token_ids for g in got] == [w.token_ids for w in wanted]
    assert counted.accepted > 0
    assert tight._scheduler.preemptions > 0
    assert tight.stats().blocks_held == 0


class Letters:
    """A tokenizer of one letter a token."""

    eos_ids = frozenset({0})

    def stream(self) -> Letters:
        return self

    def push(self, token: int) -> str:
        return chr(97 + token)

    def flush(self) -> str:
        return ""


def test_sampled_tokens_are_distributed_as_without_a_draft() -> None:
    """The model is a table: the logits after token t are row t. Two tokens, drafted as if the first two were (1, 2)."""
    table = np.log(np.array([[0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]], dtype=np.float32))
    best = table.argmax(axis=1)
    draft = (1, 2)
    seen: Counter[tuple[int, ...]] = Counter()
    runs = 6000
    for seed in range(runs):
        params = SamplingParams(temperature=1, seed=seed, ignore_eos=True)
        active = Active.start(Request("r", [0], params, 3), Letters(), SyncStream(), None)  # type: ignore[arg-type]
        rows = [0, *draft]
        came = active.advance(table[rows], best[rows], draft, 0.0, StepReport(1)).token_ids
        while len(came) < 2:
            rows = [came[-1]]
            came += active.advance(table[rows], best[rows], (), 0.0, StepReport(1)).token_ids
        seen[came[:2]] += 1
    for first, second in itertools.product(range(3), repeat=2):
        p = float(np.exp(table[0, first] + table[first, second]))
        assert abs(seen[first, second] / runs - p) < 4 * np.sqrt(p * (1 - p) / runs), (first, second)


def test_a_draft_beyond_the_end_of_the_request_is_not_taken() -> None:
    logits = np.zeros((4, 3), dtype=np.float32)
    logits[:, 1] = 1
    logits[1, 0], logits[1, 1] = 2, 1  # the second token is the end
    report = StepReport(4)
    active = Active.start(Request("r", [2], GREEDY, 9), Letters(), SyncStream(), None)  # type: ignore[arg-type]
    active.ends = frozenset({0})
    assert active.advance(logits, [1, 0, 1, 1], (1, 0, 1), 0.0, report) == Chunk("ba", (1, 0))
    assert active.ended is not None
    assert (report.drafted, report.accepted, report.generated) == (3, 1, 2)


# -- lookup ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(1, 7))
def test_lookup_finds_the_longest_earlier_match_whatever_was_added_at_once(tokens: list[int], step: int) -> None:
    lookup = PromptLookup()
    for count in [*range(1, len(tokens), step), len(tokens)]:
        known = tokens[:count]
        found = lookup.find(known)
        lengths = {
            at: next((n for n in range(min(at, 16)) if known[at - 1 - n] != known[count - 1 - n]), min(at, 16))
            for at in range(1, count)
        }
        matches = [at for at in lengths if lengths[at] >= 3]
        assert (found is None) == (not matches)
        if found is not None:
            at, length = found
            assert lengths[at] == length
            recent = sorted(matches)[-16:]
            assert length == max(lengths[m] for m in recent)
            assert at == max(m for m in recent if lengths[m] == length)


def test_a_guess_goes_on_into_what_it_repeats_and_not_past_the_requests_end() -> None:
    drafter = Drafter(Request("r", [1, 2] * 4, SamplingParams(), 100), Acceptance())
    drafter.look()
    assert drafter.guess == [1, 2] * (LONGEST_DRAFT // 2)
    drafter.request.max_tokens = 6
    drafter.look()
    assert drafter.guess == [1, 2, 1, 2, 1], "the sixth comes without a draft"


def test_a_prompt_is_indexed_bit_by_bit() -> None:
    rng = random.Random(1)  # noqa: S311 - not a secret
    tokens = [rng.randrange(1000) for _ in range(10_000)]
    tokens += tokens[50:60]
    lookup = PromptLookup()
    assert [lookup.find(tokens) for _ in range(3)] == [None, None, (60, 10)]


# -- how much pays ---------------------------------------------------------------------------------------------------


def known_cost(fixed: float, row: float) -> StepCost:
    cost = StepCost()
    for i in range(2000):
        load = Load(i % 40 + 1, 0, 0)
        cost.observe(load, fixed + row * load.rows)
    cost.lateness = 1.0
    return cost


def quoting(right: float) -> Drafter:
    """A request whose guesses came true so often."""
    drafter = Drafter(Request("r", [1, 2] * 10, SamplingParams(), 1000), Acceptance(Acceptance()))
    rng = random.Random(5)  # noqa: S311 - not a secret
    for _ in range(300):
        drafter.acceptance.learn(16, rng.random() < right)
    drafter.look()
    return drafter


def best_length(right: float, fixed: float, row: float) -> int:
    rate = [sum(right**i for i in range(n + 1)) / (fixed + row * (1 + n)) for n in range(LONGEST_DRAFT + 1)]
    return int(np.argmax(rate))


@pytest.mark.parametrize(("fixed", "row"), [(0.05, 0.001), (0.005, 0.001), (0.002, 0.002)])
@pytest.mark.parametrize("right", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_a_draft_is_as_long_as_brings_the_most_tokens_a_second(fixed: float, row: float, right: float) -> None:
    drafter = quoting(right)
    chance = drafter.acceptance.chance(16)
    assert abs(chance - right) < 0.25
    chosen = drafts([drafter], Load(1, 1, 20), Pace(known_cost(fixed, row), 1.0), 1000)
    assert len(chosen.get(drafter.request, [])) == pytest.approx(best_length(chance, fixed, row), abs=1)


def test_of_several_requests_the_likelier_guesses_run_first_and_within_rows_and_time() -> None:
    sure, unsure = quoting(0.95), quoting(0.5)
    load, cost = Load(2, 2, 40), known_cost(0.01, 0.001)
    free = drafts([sure, unsure], load, Pace(cost, 1.0), 100)
    assert len(free[sure.request]) > len(free[unsure.request]) > 0
    few = drafts([sure, unsure], load, Pace(cost, 1.0), 5)
    assert {r: len(d) for r, d in few.items()} == {sure.request: 5}
    short = drafts([sure, unsure], load, Pace(cost, 0.0155), 100)
    assert sum(map(len, short.values())) == 3, "10 ms and a row each for 2 + 3 fit into 15.5 ms"


def test_what_does_not_come_true_is_soon_not_tried_and_noticed_without_a_trial_when_it_does() -> None:
    drafter = quoting(0.9)
    pace = Pace(known_cost(0.004, 0.001), 1.0)

    def tries() -> bool:
        drafter.look()
        return bool(drafts([drafter], Load(1, 1, 20), pace, 100))

    assert tries()
    wasted = 0
    while tries():
        drafter.judge([999])
        wasted += 1
    assert wasted < 60
    unnoticed = 0
    while not tries():
        drafter.judge([drafter.guess[0]])  # nothing was drafted; the token that came is the one guessed
        unnoticed += 1
    assert unnoticed < 30


def test_what_all_requests_have_in_common_is_the_first_guess_for_a_new_one() -> None:
    common = Acceptance()
    before = Acceptance(common).chance(16)
    one = Acceptance(common)
    for _ in range(200):
        one.learn(16, right=False)
    assert Acceptance(common).chance(16) < 0.3 < before
    assert Acceptance(common).chance(4) == pytest.approx(Acceptance().chance(4))


def test_an_unknown_speculation_is_refused() -> None:
    with pytest.raises(ValueError, match="speculation: 'medusa'; one of prompt-lookup, off"):
        EngineConfig(speculation="medusa")  # type: ignore[arg-type]
