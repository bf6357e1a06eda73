"""Is garbage looked for in quiet moments, all of it, and not at every moment?"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from berth_operator.garbage import Garbage


class _Cycle:
    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def test_a_cycle_that_was_set_aside_while_it_lived_is_collected_later() -> None:
    now = [0.0]
    garbage = Garbage(clock=lambda: now[0])
    cycle = _Cycle()
    gone = weakref.ref(cycle)
    assert garbage.look()
    assert gc.get_freeze_count() > 0
    del cycle
    gc.collect()
    assert gone() is not None, "what is set aside is not looked at"
    now[0] = 1e6
    assert garbage.look()
    assert gone() is None


def test_it_is_not_looked_for_at_every_moment() -> None:
    now = [0.0]
    garbage = Garbage(clock=lambda: now[0])
    assert garbage.look()
    now[0] += 60
    assert not garbage.look()
