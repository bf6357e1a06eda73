"""Does `berth plan` name what cannot be true, with exit code 2, and plan the rest?"""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from berth_operator.api import HardwareClass, InferencePool
from berth_operator.cli.app import app
from berth_operator.cli.objects import Objects
from berth_operator.cli.snapshots import overlay
from berth_operator.cluster.observe import Observation
from click.testing import Result
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[2] / "examples"
OF_THE_EXAMPLES = {
    "model": "llama-3.1-8b-instruct",
    "quantization": "Int8",
    "hardwareClass": "graviton4",
    "runtime": "Berth",
}
"""What a ServingProfile is of that a pool of theirs may be planned with."""


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Result]:
    def run(*extra: dict[str, Any]) -> Result:
        file = tmp_path / "extra.yaml"
        file.write_text(yaml.safe_dump_all(extra))
        return CliRunner().invoke(app, ["plan", "-f", str(EXAMPLES), "-f", str(file), "-o", "json"])

    return run


def hardware(name: str, **spec: Any) -> dict[str, Any]:
    body: dict[str, Any] = next(yaml.safe_load_all((EXAMPLES / "hardware.yaml").read_text()))
    return body | {"metadata": {"name": name}, "spec": body["spec"] | spec}


def test_a_class_with_a_price_of_nothing_is_named_and_the_rest_is_planned(plan: Callable[..., Result]) -> None:
    done = plan(hardware("free", capacity=[{"type": "OnDemand", "usdPerHour": "0"}]))
    assert done.exit_code == 2
    assert "error: HardwareClass free: spec.capacity[0].usdPerHour: found 0: OnDemand nodes cost" in done.stderr
    pools = json.loads(done.stdout)["pools"]
    assert all(pool["placements"] for pool in pools)
    assert "free" not in done.stdout


@pytest.mark.parametrize(
    ("zones", "says"),
    [
        ({"zones": ["a"], "selector": {"topology.kubernetes.io/zone": "a"}}, "say the same: keep one of them"),
        ({"zones": ["a", "a"]}, "spec.capacity[0].zones[1]: 'a' is there twice"),
    ],
)
def test_zones_that_contradict_are_refused_as_the_api_server_does(
    plan: Callable[..., Result], zones: dict[str, Any], says: str
) -> None:
    done = plan(hardware("apart", capacity=[{"type": "Spot", "usdPerHour": "0.2"} | zones]))
    assert done.exit_code == 2
    assert says in done.stderr


def test_a_profile_faster_than_its_memory_is_refused_with_the_arithmetic(plan: Callable[..., Result]) -> None:
    points = [{"concurrency": 1, "contextTokens": 100, "decodeTokensPerSecond": "9000", "interTokenLatencyP99": "1ms"}]
    spec = {
        **OF_THE_EXAMPLES,
        "points": points,
        "prefillTokensPerSecond": "100",
        "kvCacheTokens": 9000,
        "provenance": {"method": "Published", "source": "a press release"},
    }
    body = {"apiVersion": "berth.dev/v1alpha1", "kind": "ServingProfile", "metadata": {"name": "news"}, "spec": spec}
    done = plan(body)
    assert done.exit_code == 2
    assert "error: ServingProfile news: spec.points[0].decodeTokensPerSecond: found 9000" in done.stderr
    assert "228 GB/s make at most" in done.stderr
    chat = next(pool for pool in json.loads(done.stdout)["pools"] if pool["name"] == "chat")
    assert chat["placements"][0]["replica"]["estimated"], "the refused profile is not planned with"


def test_a_live_price_in_status_is_planned_with_unless_the_file_asks_another(
    make_class: Callable[..., HardwareClass], make_pool: Callable[..., InferencePool]
) -> None:
    now = datetime.now(UTC)
    live = {"type": "Spot", "usdPerHour": "0.2", "source": "AWS", "asOf": (now - timedelta(hours=1)).isoformat()}
    made = make_class("c")
    old = made.model_copy(update={"status": type(made.status).model_validate({"prices": [live]})})
    seen = Observation(hardware_classes=(old,))
    same = overlay(Objects(hardware_classes=(make_class("c"),)), seen, now).hardware_classes[0]
    assert [p.usd_per_hour for p in same.status.prices or ()] == ["0.2"]
    ways = [{"type": "OnDemand", "usdPerHour": "0.638"}, {"type": "Spot", "usdPerHour": "0.1"}]
    asked = overlay(Objects(hardware_classes=(make_class("c", capacity=ways),)), seen, now).hardware_classes[0]
    assert asked.status.prices == []


def test_a_class_that_does_not_parse_is_not_called_unknown(plan: Callable[..., Result]) -> None:
    only = yaml.safe_load((EXAMPLES / "chat.yaml").read_text())
    only["metadata"]["name"] = "only"
    only["spec"]["placement"] = {"hardware": {"allow": {"names": ["odd"]}}}
    done = plan(hardware("odd", kind="cpu"), only)
    assert done.exit_code == 2
    problem = next(p for p in json.loads(done.stdout)["pools"] if p["name"] == "only")["notAccepted"]
    assert problem["reason"] == "HardwareAtFault"
    assert 'odd: spec.kind: found "cpu": write one of CPU, GPU, Accelerator' in problem["message"]


def test_a_class_whose_name_no_worker_can_be_labelled_with_is_named(plan: Callable[..., Result]) -> None:
    done = plan(hardware("g" * 64, capacity=[{"type": "OnDemand", "usdPerHour": "0.1"}]))
    assert done.exit_code == 2
    assert "metadata.name: found one of 64 characters: it also labels workers: at most 63" in done.stderr
    assert "g" * 64 not in done.stdout


def test_reserved_nodes_without_a_number_are_remarked(plan: Callable[..., Result]) -> None:
    endless = plan(hardware("paid", capacity=[{"type": "Reserved", "usdPerHour": "0.3"}]))
    assert endless.exit_code == 0
    assert "note: HardwareClass paid has Reserved nodes without maxNodes" in endless.stderr
    three = plan(hardware("paid", capacity=[{"type": "Reserved", "usdPerHour": "0.3", "maxNodes": 3}]))
    assert "Reserved" not in three.stderr


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"runtime": "VLLM"}, "is of runtime VLLM, and hardware class graviton4 has Berth: it is not used"),
        ({"quantization": "BF16"}, "is of quantization BF16, and pools of llama-3.1-8b-instruct have Int8: it is"),
        ({"model": "llama-3.1-8b-instuct"}, "is of model llama-3.1-8b-instuct, which no pool serves: it is not used"),
        ({"hardwareClass": "graviton9"}, "is of hardware class graviton9, which is not among the objects: it is not"),
        ({}, ""),
    ],
)
def test_a_profile_that_no_pool_is_planned_with_is_remarked(
    plan: Callable[..., Result], changes: dict[str, str], says: str
) -> None:
    points = [{"concurrency": 1, "contextTokens": 900, "decodeTokensPerSecond": "15", "interTokenLatencyP99": "80ms"}]
    spec = {
        **OF_THE_EXAMPLES,
        "points": points,
        "prefillTokensPerSecond": "300",
        "kvCacheTokens": 90000,
        "provenance": {"method": "Measured", "source": "a bench"},
    }
    body = {"apiVersion": "berth.dev/v1alpha1", "kind": "ServingProfile", "metadata": {"name": "mine"}}
    done = plan(body | {"spec": spec | changes})
    assert done.exit_code == 0
    notes = [line for line in done.stderr.splitlines() if "mine" in line]
    assert [f"note: ServingProfile mine {says}" in line for line in notes] == ([True] if says else [])
    if not says:
        older = plan(body | {"spec": spec}, body | {"metadata": {"name": "again"}, "spec": spec})
        assert "ServingProfile mine is of the same model, quantization, class and runtime as again" in older.stderr
