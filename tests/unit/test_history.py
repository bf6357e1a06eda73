"""Is each decision told once, and only such as a person would want to know?"""

from collections.abc import Sequence
from datetime import datetime

from berth_operator.api import Decision
from berth_operator.history import MOST_DECISIONS, Situation, news, recorded
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime.fromisoformat("2026-11-21T12:00:00+00:00")
CPU, GPU = "graviton4/OnDemand", "l4/OnDemand"


def _on(*hardware: str, settled: bool = True, constrained: Sequence[str] = ()) -> Situation:
    return Situation(hardware, placement=" + ".join(hardware), settled=settled, constrained=constrained)


def _story(*situations: Situation) -> list[str]:
    record: list[Decision] = []
    for seen in situations:
        record = recorded(record, NOW, seen)
        assert recorded(record, NOW, seen) == record  # a second look tells nothing
    return [decision.reason for decision in record]


def test_a_shortage_is_a_fallback_and_a_return_and_trials_that_fail_are_nothing() -> None:
    trial = _on(CPU, settled=False)
    story = _story(
        _on(CPU, settled=False),
        _on(GPU, settled=False, constrained=[CPU]),
        _on(GPU, constrained=[CPU]),
        trial,
        _on(GPU, constrained=[CPU]),
        trial,
        _on(CPU),
    )
    assert story == ["Placed", "FellBack", "Returned"]


def test_what_is_clipped_and_joined_by_other_hardware_fell_back_too() -> None:
    assert _story(_on(CPU), _on(CPU, GPU, constrained=[CPU]), _on(CPU)) == ["Placed", "FellBack", "Returned"]
    assert _story(_on(CPU), _on(CPU, constrained=[CPU])) == ["Placed"]  # what runs is enough


def test_a_move_is_told_once_it_is_done() -> None:
    assert _story(_on(CPU), _on(GPU, settled=False)) == ["Placed"]
    assert _story(_on(CPU), _on(GPU, settled=False), _on(GPU), _on(GPU)) == ["Placed", "Moved"]


def test_refusals_and_failures_are_told_once_each() -> None:
    no_place = Situation(unplaced="no capacity until 12:05")
    assert _story(no_place, Situation(unplaced="no capacity until 12:15"), _on(GPU)) == ["NotPlaced", "Placed"]
    assert _story(Situation(refused="a"), Situation(refused="a"), Situation(refused="b")) == ["Refused", "Refused"]
    failed = Situation([CPU], "x", failed="exit code 2: no such model")
    assert _story(_on(CPU), failed, failed) == ["Placed", "RolloutFailed"]


def test_a_pool_that_is_suspended_or_asleep_decides_nothing() -> None:
    assert _story(_on(CPU), Situation(), _on(CPU)) == ["Placed"]


def test_news_has_the_same_mark_when_it_has_to_be_told_again_and_another_for_another_time() -> None:
    before = recorded([], NOW, _on(CPU))
    later = datetime.fromisoformat("2026-11-21T13:00:00+00:00")
    ((_, first),) = news(before, recorded(before, NOW, _on(GPU)))
    ((_, again),) = news(before, recorded(before, later, _on(GPU)))
    assert first == again
    moved = recorded(before, NOW, _on(GPU))
    back = recorded(moved, NOW, _on(CPU))
    ((_, second),) = news(back, recorded(back, later, _on(GPU)))
    assert second != first
    assert news(back, back) == []


_hardware = st.sets(st.sampled_from([CPU, GPU, "h100/Spot"]))


@given(st.lists(st.tuples(_hardware, st.booleans(), _hardware), max_size=60))
def test_the_record_is_bounded_and_a_second_look_adds_nothing(story: list[tuple[set[str], bool, set[str]]]) -> None:
    record: list[Decision] = []
    for hardware, settled, constrained in story:
        seen = Situation(hardware, "there", settled, constrained, unplaced=None if hardware else "none")
        after = recorded(record, NOW, seen)
        assert len(after) <= MOST_DECISIONS
        assert len(news(record, after)) <= 1
        record = after
        assert recorded(record, NOW, seen) == record
