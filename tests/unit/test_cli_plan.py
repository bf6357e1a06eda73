"""Does `berth plan` answer with a plan, in every form, and with the right exit code?"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from berth_operator.api import CapacityType, InferencePool
from berth_operator.cli.app import app
from berth_operator.cli.objects import read_objects
from berth_operator.cli.snapshots import overlay
from berth_operator.cluster.observe import Observation, child_decoder
from berth_operator.cluster.resources import DEPLOYMENTS
from click.testing import Result
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[2] / "examples"
Berth = Callable[..., Result]


@pytest.fixture
def berth(monkeypatch: pytest.MonkeyPatch) -> Berth:
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str, text: str = "") -> Result:
        return CliRunner().invoke(app, arguments, input=text, catch_exceptions=False)

    return run


def example(name: str, **spec: Any) -> dict[str, Any]:
    """A document of the examples' pool of this name, with fields of its spec replaced."""
    body: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    body["spec"] |= spec
    return body


def test_a_table_names_placements_costs_savings_and_the_reason_of_every_candidate(berth: Berth) -> None:
    result = berth("plan", "-f", str(EXAMPLES))
    assert result.exit_code == 0
    assert "1x graviton4/OnDemand" in result.stdout
    assert "all pools" in result.stdout
    assert result.stdout.count("would enter below $") >= 3
    assert "GPU ONLY: a lower bound" in result.stdout
    assert "error" not in result.stderr


def test_json_and_yaml_say_the_same(berth: Berth) -> None:
    as_json = json.loads(berth("plan", "-f", str(EXAMPLES), "-o", "json").stdout)
    assert as_json == yaml.safe_load(berth("plan", "-f", str(EXAMPLES), "-o", "yaml").stdout)
    pools = {pool["name"]: pool for pool in as_json["pools"]}
    assert pools["chat"]["placements"][0]["hardwareClass"] == "graviton4"
    assert pools["chat"]["cost"]["usdPerHour"] == "0.638"
    total = sum(float(pool["cost"]["usdPerHour"]) for pool in as_json["pools"])
    assert float(as_json["fleet"]["usdPerHour"]) == pytest.approx(total)


def test_a_fleet_that_lacks_a_node_is_told_what_one_more_would_save(berth: Berth, tmp_path: Path) -> None:
    """Two chats, each cheapest on one Graviton at $0.638, of which there is one: the other takes an L4 at $0.805."""
    hardware = [body for body in yaml.safe_load_all((EXAMPLES / "hardware.yaml").read_text()) if body]
    for body in hardware:
        for way in body["spec"].get("capacity", []):
            way["maxNodes"] = {("graviton4", "OnDemand"): 1, ("l4", "OnDemand"): 9}.get(
                (body["metadata"]["name"], way["type"]), 0
            )
    pools = [example("chat"), example("chat")]
    for number, body in enumerate(pools):
        body["metadata"]["name"] = f"chat-{number}"
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump_all([*hardware, *pools]))
    result = berth("plan", "-f", str(file))
    assert "One more node of graviton4 (on demand) would save 0.167 USD/h." in result.stdout
    (price,) = json.loads(berth("plan", "-f", str(file), "-o", "json").stdout)["shadowPrices"]
    assert price == {"hardwareClass": "graviton4", "capacityType": "OnDemand", "usdPerHour": "0.167"}


def test_a_large_fleet_says_that_its_shadow_prices_are_marginal_and_what_savings_below_zero_are(
    berth: Berth, tmp_path: Path
) -> None:
    """130 batch pools on two cheap spot nodes and dear ones: the comparison, which knows no limit, costs less."""
    hardware = [body for body in yaml.safe_load_all((EXAMPLES / "hardware.yaml").read_text()) if body]
    pools = [example("digest") for _ in range(130)]
    for number, body in enumerate(pools):
        body["metadata"]["name"] = f"digest-{number}"
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump_all([*hardware, *pools]))
    result = berth("plan", "-f", str(file), "--summary")
    assert "One more node of l4 (spot) would save about " in result.stdout
    assert "SAVED below zero: the plan keeps maxNodes" in result.stdout
    data = json.loads(berth("plan", "-f", str(file), "-o", "json").stdout)
    assert all(price["marginal"] for price in data["shadowPrices"])


def test_standard_input_is_a_file(berth: Berth) -> None:
    result = berth("plan", "-f", str(EXAMPLES / "hardware.yaml"), "-f", "-", text=yaml.safe_dump(example("chat")))
    assert result.exit_code == 0
    assert "default/chat" in result.stdout


def test_demand_beyond_all_hardware_is_exit_code_1_and_says_what_is_short(berth: Berth) -> None:
    pool = example("chat", budget={"maxUsdPerHour": "0.70"})
    pool["spec"]["workload"]["demand"] = {"requestsPerSecond": "5"}
    result = berth("plan", "-f", str(EXAMPLES / "hardware.yaml"), "-f", "-", text=yaml.safe_dump(pool))
    assert result.exit_code == 1
    assert "0.70" in result.stdout


def test_bad_input_is_exit_code_2_and_the_rest_is_planned(berth: Berth) -> None:
    result = berth("plan", "-f", str(EXAMPLES), "-f", "-", text="kind: InferencePool\n")
    assert result.exit_code == 2
    assert (
        "error: standard input: InferencePool default/(no name): apiVersion: is missing: write berth.dev/v1alpha1"
        in result.stderr
    )
    assert "default/chat" in result.stdout


def test_a_pool_that_names_unknown_hardware_is_exit_code_2_and_the_rest_is_planned(berth: Berth) -> None:
    pool = example("chat", placement={"hardware": {"allow": {"names": ["gravitron4"]}}})
    pool["metadata"]["name"] = "lost"
    result = berth("plan", "-f", str(EXAMPLES), "-f", "-", text=yaml.safe_dump(pool))
    assert result.exit_code == 2
    assert "gravitron4" in result.stdout
    assert "default/chat" in result.stdout


def test_nothing_to_plan_is_exit_code_2(berth: Berth) -> None:
    result = berth("plan")
    assert result.exit_code == 2
    assert "name files with -f, or say --from-cluster" in result.stderr


def test_a_cluster_out_of_reach_is_exit_code_1_and_names_the_way_to_it(
    berth: Berth, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = berth("plan", "--from-cluster", "--kubeconfig", str(tmp_path / "none"))
    assert "Config not found" not in caplog.text, "the client's own warning says what the error says"
    assert result.exit_code == 1
    assert "the cluster cannot be read" in result.stderr


def test_a_file_wins_over_the_cluster_and_keeps_what_only_the_cluster_knows(
    make_pool: Callable[..., InferencePool], tmp_path: Path
) -> None:
    old = make_pool("chat", status={"lastMoveTime": "2026-11-21T11:59:00Z"})
    other = make_pool("other")
    deployment = {
        "metadata": {
            "namespace": "default",
            "name": "chat-1",
            "uid": "u",
            "labels": {
                "berth.dev/pool": "chat",
                "berth.dev/hardware-class": "l4",
                "berth.dev/capacity-type": "Spot",
            },
        },
        "spec": {"replicas": 3},
        "status": {"readyReplicas": 2},
    }
    seen = Observation(pools=(old, other), children=(child_decoder(DEPLOYMENTS)(deployment),))
    file = tmp_path / "chat.yaml"
    file.write_text(yaml.safe_dump(example("chat")))
    files, problems = read_objects([str(file)])
    assert not problems
    snapshot = overlay(files, seen, datetime.now(UTC))
    chat, kept = snapshot.pools
    assert kept == other
    assert chat.spec == files.pools[0].spec
    assert chat.status.last_move_time == "2026-11-21T11:59:00Z"
    assert chat.metadata.uid == old.metadata.uid
    (running,) = snapshot.running
    assert (running.pool, running.capacity_type, running.replicas) == ("default/chat", CapacityType.SPOT, 3)


def test_a_profile_of_no_known_class_is_remarked_upon(berth: Berth) -> None:
    profile = {
        "apiVersion": "berth.dev/v1alpha1",
        "kind": "ServingProfile",
        "metadata": {"name": "p"},
        "spec": {
            "model": "m",
            "quantization": "Int8",
            "hardwareClass": "nowhere",
            "runtime": "Berth",
            "points": [
                {
                    "concurrency": 1,
                    "contextTokens": 9,
                    "decodeTokensPerSecond": "5",
                    "interTokenLatencyP99": "2ms",
                }
            ],
            "prefillTokensPerSecond": "9",
            "kvCacheTokens": 100,
            "provenance": {"method": "Measured", "source": "a test"},
        },
    }
    result = berth("plan", "-f", str(EXAMPLES), "-f", "-", text=yaml.safe_dump(profile))
    assert result.exit_code == 0
    assert "ServingProfile p is of hardware class nowhere" in result.stderr


def test_a_rate_below_a_thousandth_is_shown_as_it_is(berth: Berth, tmp_path: Path) -> None:
    file = tmp_path / "rare.yaml"
    body = example("chat")
    body["spec"]["workload"]["demand"] = {"requestsPerSecond": "0.000278"}
    hardware = (EXAMPLES / "hardware.yaml").read_text()
    file.write_text(f"{yaml.safe_dump(body)}\n---\n{hardware}")
    assert "Interactive, 0.000278 requests/s" in berth("plan", "-f", str(file)).stdout
    (pool,) = json.loads(berth("plan", "-f", str(file), "-o", "json").stdout)["pools"]
    assert pool["effective"]["requestsPerSecond"] == pool["servedRequestsPerSecond"] == "0.000278"
    assert pool["unservedRequestsPerSecond"] == "0.000"
    assert ": 1 request a hour" not in (said := berth("explain", "chat", "-f", str(file)).stdout)
    assert "1 request an hour" in said


def test_advice_is_called_advice_in_the_table_and_in_the_sum(berth: Berth, tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    advised = example("chat", placement={"mode": "Recommend"})
    file.write_text((EXAMPLES / "hardware.yaml").read_text() + "\n---\n" + yaml.safe_dump(advised))
    shown = berth("plan", "-f", str(file)).stdout
    assert "Recommended" in shown.partition("all pools' USD/H")[0]
    assert "Recommended: nothing of it is applied; all pools' USD/H has 0.638 of that, metrics have none." in shown
    assert "Recommended" not in berth("plan", "-f", str(EXAMPLES)).stdout
