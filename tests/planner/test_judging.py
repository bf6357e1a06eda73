"""Does a fleet judge classes that are as fast as each other once, and each by what it is?"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from berth_operator.api import HardwareClass
from berth_operator.planner import Snapshot, judging
from berth_operator.planner.candidates import candidates_of
from berth_operator.planner.capacities import roofline_pairs
from berth_operator.planner.capacity import Load
from berth_operator.planner.judged import judge_pools

Make = Callable[..., Any]


@pytest.fixture
def a10g(hardware: Make) -> Callable[..., HardwareClass]:
    """g5.xlarge."""

    def make(name: str, **changes: Any) -> HardwareClass:
        spec: dict[str, Any] = {
            "kind": "GPU",
            "cpus": 4,
            "memoryGiB": 24,
            "memoryBandwidthGBps": 600,
            "compute": {"bf16Tflops": 70},
            "prices": {"OnDemand": "1.006", "Spot": "0.45"},
        }
        made: HardwareClass = hardware(name, **(spec | changes))
        return made

    return make


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many loads each class, or several that are alike, was judged for."""
    found: list[int] = []

    def count(spec: Any, architecture: Any, quantization: Any, loads: Sequence[Load], nodes: int) -> Any:
        found.append(len(loads))
        return roofline_pairs(spec, architecture, quantization, loads, nodes)

    monkeypatch.setattr(judging, "roofline_pairs", count)
    return found


@pytest.mark.parametrize(
    ("other", "judged"),
    [
        ({"prices": {"OnDemand": "1.212"}}, [2]),
        ({"cpus": 8, "chip": "a10g", "vendor": "Other", "powerWatts": 300, "source": "a price list"}, [2]),
        ({"max_nodes": {"Spot": 3}, "namespaceSelector": {"matchLabels": {"team": "a"}}}, [2]),
        ({"memoryGiB": 22}, [2, 2]),
        ({"memoryBandwidthGBps": 500}, [2, 2]),
        ({"compute": {"bf16Tflops": 60}}, [2, 2]),
        ({"accelerators": {"resource": "nvidia.com/gpu", "count": 2}}, [2, 2]),
        ({"runtime": {"name": "VLLM", "args": ["--max-num-batched-tokens=512"]}}, [2, 2]),
        ({"maxNodesPerReplica": 2, "interconnectGbps": 100}, [2, 2]),
    ],
)
def test_classes_as_fast_as_each_other_are_judged_once(
    a10g: Make, pool: Make, now: Any, asked: list[int], other: dict[str, Any], judged: list[int]
) -> None:
    classes = (a10g("g5-xl"), a10g("g5-other", **other))
    objectives = {"interTokenLatencyP99": "150ms", "timeToFirstTokenP99": "4s"}
    pools = tuple(
        pool(f"p{tokens}", quantization="Int8", shape={"promptTokens": tokens}, objectives=objectives)
        for tokens in (900, 1800)
    )
    found = judge_pools(Snapshot(now=now, pools=pools, hardware_classes=classes))
    assert asked == judged
    for one in found:
        assert one.candidates == candidates_of(classes, replace(one.context, judged={}))
        assert {o.hardware_class for o in one.candidates.options} | {
            u.hardware_class for u in one.candidates.unfit
        } == {
            "g5-xl",
            "g5-other",
        }


def test_processors_without_a_stated_speed_are_told_apart_by_their_number(
    hardware: Make, pool: Make, now: Any, asked: list[int]
) -> None:
    classes = (hardware("small"), hardware("large", cpus=32))
    judge_pools(
        Snapshot(now=now, pools=(pool(model="llama-3.2-1b-instruct", quantization="Int8"),), hardware_classes=classes)
    )
    assert asked == [1, 1]
