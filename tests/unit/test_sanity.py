"""Is everything that cannot be true named with its arithmetic, and everything that can be left alone?"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from berth_operator.api import HardwareClass, ServingProfile
from berth_operator.catalog import CATALOG, hardware_class
from berth_operator.catalog.matching import among, unmatched
from berth_operator.catalog.sanity import Fault, sift
from berth_operator.cli.objects import read_objects
from hypothesis import given
from hypothesis import strategies as st

Make = Callable[..., HardwareClass]


def profile(*points: tuple[int, int, str, str], **spec: Any) -> ServingProfile:
    """Of Llama-3.1-8B in Int8 on `c`; points are (concurrency, context, tokens/s, p99 between tokens)."""
    body = {
        "model": "llama-3.1-8b-instruct",
        "quantization": "Int8",
        "hardwareClass": "c",
        "runtime": "Berth",
        "points": [
            {"concurrency": b, "contextTokens": c, "decodeTokensPerSecond": rate, "interTokenLatencyP99": gap}
            for b, c, rate, gap in points or [(1, 1000, "20", "60ms")]
        ],
        "prefillTokensPerSecond": "200",
        "kvCacheTokens": 50_000,
        "provenance": {"method": "Measured", "source": "a test"},
    }
    return ServingProfile.model_validate({"metadata": {"name": "p"}, "spec": body | spec}, extra="forbid")


def faults(*items: HardwareClass | ServingProfile) -> tuple[Fault, ...]:
    classes = [item for item in items if isinstance(item, HardwareClass)]
    return sift(classes, [item for item in items if isinstance(item, ServingProfile)]).faults


def only(found: tuple[Fault, ...]) -> Fault:
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


def vllm(name: str = "c", **changes: Any) -> HardwareClass:
    made = hardware_class(CATALOG["l4"])
    body = made.model_dump(mode="json", by_alias=True, exclude_none=True)
    body["metadata"] = {"name": name}
    body["spec"] |= changes
    return HardwareClass.model_validate(body)


def test_the_catalog_and_the_examples_are_sane() -> None:
    objects, problems = read_objects([str(Path(__file__).parents[2] / "examples")])
    assert not problems
    assert faults(*objects.hardware_classes, *objects.serving_profiles) == ()
    assert faults(*map(hardware_class, CATALOG.values())) == ()


@pytest.mark.parametrize(
    ("way", "reason", "says"),
    [
        ({"type": "OnDemand", "usdPerHour": "0"}, "ZeroPrice", "or type Reserved where they are already paid"),
        ({"type": "Spot", "usdPerHour": "0.0001"}, "AbsurdPrice", "is it of a month, in cents"),
        ({"type": "OnDemand", "usdPerHour": "63800"}, "AbsurdPrice", "found 63800: believed are 0.005 to 1000"),
        (
            {"type": "Spot", "usdPerHour": "0.2", "interruptionsPerHour": "40"},
            "AbsurdInterruptions",
            "every 1.5 minutes",
        ),
    ],
)
def test_absurd_prices_are_refused(make_class: Make, way: dict[str, Any], reason: str, says: str) -> None:
    fault = only(faults(make_class("c", capacity=[way])))
    assert fault.reason == reason
    assert says in str(fault)
    assert str(fault).startswith("HardwareClass c: spec.capacity[0].")


@pytest.mark.parametrize(
    ("selector", "field", "says"),
    [
        ({"not a label!": "x"}, "spec.capacity[0].selector", "'not a label!'"),
        ({"UPPER.io/x": "x"}, "spec.capacity[0].selector", "which no label can have"),
        ({"/x": "x"}, "spec.capacity[0].selector", "which no label can have"),
        ({"k" * 64: "x"}, "spec.capacity[0].selector", "which no label can have"),
        ({"zone": "eu west"}, "spec.capacity[0].selector[zone]", "'eu west'"),
        ({"zone": "-1"}, "spec.capacity[0].selector[zone]", "the first and the last"),
    ],
)
def test_a_selector_that_no_node_can_match_is_refused(
    make_class: Make, selector: dict[str, str], field: str, says: str
) -> None:
    found = only(faults(make_class(capacity=[{"type": "OnDemand", "usdPerHour": "1", "selector": selector}])))
    assert (found.reason, found.field) == ("BadSelector", field)
    assert says in found.message


@pytest.mark.parametrize("selector", [{"a": ""}, {"example.com/a_b.C": "A.b_c-9"}, {"a/b": "c" * 63}])
def test_every_label_can_be_selected(make_class: Make, selector: dict[str, str]) -> None:
    assert faults(make_class(capacity=[{"type": "OnDemand", "usdPerHour": "1", "selector": selector}])) == ()


def test_what_is_paid_or_cannot_be_had_may_cost_nothing(make_class: Make) -> None:
    ways = [{"type": "Reserved", "usdPerHour": "0"}, {"type": "OnDemand", "usdPerHour": "0", "maxNodes": 0}]
    assert faults(make_class("c", capacity=ways)) == ()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"memoryBandwidthGBps": 3}, "memoryBandwidthGBps"),
        ({"memoryBandwidthGBps": 300_000}, "memoryBandwidthGBps"),
        ({"memoryGiB": 22_528}, "memoryGiB"),
        ({"compute": {"bf16Tflops": 121_000}}, "compute.bf16Tflops"),
        ({"powerWatts": 72_000}, "powerWatts"),
    ],
)
def test_figures_in_the_wrong_unit_are_recognised(change: dict[str, Any], field: str) -> None:
    fault = only(faults(vllm(**change)))
    assert (fault.reason, fault.field) == ("AbsurdFigure", f"spec.{field}")
    assert "is it in " in fault.message


def test_two_prices_for_the_same_nodes_contradict_each_other(make_class: Make) -> None:
    ways = [{"type": kind, "usdPerHour": "1", "selector": {"a": "b"}} for kind in ("OnDemand", "Spot")]
    fault = only(faults(make_class("c", capacity=ways)))
    assert fault.reason == "SameNodes"
    assert "karpenter.sh/capacity-type" in fault.message


def test_more_tokens_than_the_memory_can_feed_are_refused_with_the_arithmetic() -> None:
    fault = only(faults(vllm(), profile((1, 1000, "60", "40ms"), runtime="VLLM")))
    assert fault.reason == "AboveRoofline"
    assert fault.field == "spec.points[0].decodeTokensPerSecond"
    # 6.98e9 matrix parameters of one byte and an output table of 0.53e9 in two; KV 66 MB; 300 GB/s
    for part in ("found 60", "weights 8.03 GB", "KV 0.0655 GB", "300 GB/s", "at most 37.06 tokens/s"):
        assert part in fault.message


def test_a_worker_that_guesses_ahead_may_be_faster_than_one_token_a_read(make_class: Make) -> None:
    fast = profile((1, 1000, "100", "40ms"))  # 228 GB/s over 8 GB is 28 tokens/s without guessing
    assert faults(make_class("c"), fast) == ()
    assert only(faults(make_class("c"), profile((1, 1000, "500", "40ms")))).reason == "AboveRoofline"


def test_more_arithmetic_than_the_chip_does_is_refused_with_the_arithmetic() -> None:
    fault = only(faults(vllm(), profile(runtime="VLLM", prefillTokensPerSecond="90000")))
    assert (fault.reason, fault.field) == ("AboveRoofline", "spec.prefillTokensPerSecond")
    assert "1.26e+03 TFLOP/s, and HardwareClass c has 242" in fault.message


def test_a_cache_beyond_the_memory_is_refused_with_the_arithmetic(make_class: Make) -> None:
    fault = only(faults(make_class("c"), profile(kvCacheTokens=600_000)))
    assert fault.reason == "KvTooLarge"
    assert "1 replicas x (weights 7.9 GiB + KV 36.6 GiB) = 44.6 GiB, and HardwareClass c has 32 GiB" in fault.message


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ([(1, 1000, "20", "60ms"), (8, 1000, "10", "900ms")], "at concurrency 8, below 20 at 1"),
        ([(1, 1000, "10", "110ms"), (4, 1000, "80", "60ms")], "20 for each request, more than 10 at concurrency 1"),
        ([(1, 1000, "10", "110ms"), (1, 4000, "20", "60ms")], "at context 4000, faster than 10 at context 1000"),
    ],
)
def test_profiles_that_change_strangely_with_load_are_named(
    make_class: Make, points: list[tuple[int, int, str, str]], says: str
) -> None:
    fault = only(faults(make_class("c"), profile(*points)))
    assert fault.reason == "StrangeProfile"
    assert says in fault.message


def test_tokens_a_second_of_one_request_given_for_all_are_recognised() -> None:
    fault = only(faults(vllm(), profile((8, 1000, "10", "100ms"), runtime="VLLM")))
    assert fault.reason == "ContradictingPoint"
    assert "wait 800 ms a token on average" in fault.message


@pytest.mark.parametrize(
    ("resources", "reason", "says"),
    [
        ({"memory": "16"}, "MissingUnit", "which is 16 bytes: write a unit, such as 16Gi"),
        ({"memory": "20Gi"}, "ReplicasDoNotFit", "2 x memory 20Gi > 32 GiB"),
        ({"cpu": "9"}, "ReplicasDoNotFit", "2 x cpu 9 > 16 vCPUs"),
    ],
)
def test_replicas_that_do_not_fit_the_node_are_refused(
    make_class: Make, resources: dict[str, Any], reason: str, says: str
) -> None:
    fault = only(faults(make_class("c"), profile(resources=resources, replicasPerNode=2)))
    assert fault.reason == reason
    assert says in fault.message


def test_a_profile_of_more_nodes_than_its_class_allows_is_refused() -> None:
    of_two = profile((1, 1000, "60", "40ms"), runtime="VLLM", nodesPerReplica=2)
    assert faults(vllm(maxNodesPerReplica=2), of_two) == (), "two nodes feed twice the tokens"
    fault = only(faults(vllm(), of_two))
    assert (fault.reason, fault.field) == ("SpansTooManyNodes", "spec.nodesPerReplica")
    assert "found 2: HardwareClass" in fault.message
    assert "allows maxNodesPerReplica 1" in fault.message


def test_what_is_at_fault_is_left_out_and_the_rest_kept(make_class: Make) -> None:
    bad = make_class("bad", capacity=[{"type": "OnDemand", "usdPerHour": "0"}])
    sifted = sift([bad, make_class("c")], [profile(), profile(hardwareClass="bad"), profile(kvCacheTokens=10**7)])
    assert [item.metadata.name for item in sifted.hardware_classes] == ["c"]
    assert len(sifted.serving_profiles) == 2, "a profile of a class at fault is not judged"
    assert {fault.reason for fault in sifted.of("c")} == {"KvTooLarge"}


@given(
    share=st.floats(0.05, 1.0),
    shape=st.lists(st.floats(0.3, 0.95), min_size=1, max_size=6),
    context=st.integers(100, 8000),
)
def test_whatever_a_roofline_allows_and_scales_plausibly_is_never_refused(
    share: float, shape: list[float], context: int
) -> None:
    points, rate, b = [], share * 35.0, 1
    weights, kv = 8.03e9, 2 * 32 * 8 * 128  # bytes: of the model, and of a token's keys and values in 8 bits
    for exponent in [0.0, *shape]:
        if b > 1:
            rate = min(rate * 2**exponent * 0.999, b * 300e9 / (weights + b * context * kv))
        points.append((b, context, f"{rate:.4f}", f"{1100 * b / rate:.0f}ms"))
        b *= 2
    assert faults(vllm(), profile(*points, runtime="VLLM")) == ()


# --- Nodes ----------------------------------------------------------------------------------------------------------


def node(**labels: str) -> dict[str, Any]:
    return {"metadata": {"name": "n", "labels": {"pool": "od", **labels}}}


def test_a_class_is_matched_by_a_node_with_its_labels(make_class: Make) -> None:
    assert list(unmatched([make_class("c")], among([node()]), [])) == []
    (fault,) = unmatched([make_class("c")], among([node(pool="other")]), [])
    assert fault.reason == "NoNodeMatches"
    assert "OnDemand pool=od; Spot pool=spot" in fault.message


def test_a_class_is_matched_by_a_node_pool_that_may_make_its_nodes() -> None:
    l4 = hardware_class(CATALOG["l4"])

    def node_pool(*values: str) -> dict[str, Any]:
        asked = [{"key": "node.kubernetes.io/instance-type", "operator": "In", "values": values}]
        return {"metadata": {"name": "np"}, "spec": {"template": {"spec": {"requirements": asked}}}}

    assert list(unmatched([l4], among([]), [node_pool("g6.xlarge")])) == []
    assert len(list(unmatched([l4], among([]), [node_pool("g5.xlarge")]))) == 1


def test_what_scales_from_zero_or_cannot_be_had_needs_no_node(make_class: Make) -> None:
    from_zero = make_class("c")
    annotated = {"annotations": {"berth.dev/scales-from-zero": "true"}}
    from_zero = from_zero.model_copy(update={"metadata": from_zero.metadata.model_copy(update=annotated)})
    assert list(unmatched([from_zero, hardware_class(CATALOG["maia-100"])], among([]), [])) == []
