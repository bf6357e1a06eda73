"""Does `berth explain` tell a newcomer what serves, where, why there, what was next best, and what would change it?"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from berth_operator.api import CapacityType, InferencePoolStatus
from berth_operator.cli.app import app
from berth_operator.cli.explanation import paragraph
from berth_operator.cli.objects import read_objects
from berth_operator.cli.snapshots import overlay
from berth_operator.cli.what_if import WhatIf, ask
from berth_operator.cluster.observe import Observation
from berth_operator.planner import RunningPlacement, Snapshot, plan
from berth_operator.status import pool_status
from click.testing import Result
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[2] / "examples"
Berth = Callable[..., Result]


@pytest.fixture
def berth(monkeypatch: pytest.MonkeyPatch) -> Berth:
    monkeypatch.setenv("COLUMNS", "4000")

    def run(*arguments: str, text: str = "") -> Result:
        return CliRunner().invoke(app, arguments, input=text, catch_exceptions=False)

    return run


def chat(**spec: Any) -> str:
    body: dict[str, Any] = yaml.safe_load((EXAMPLES / "chat.yaml").read_text())
    body["spec"] |= spec
    return yaml.safe_dump(body)


def test_one_paragraph_answers_what_where_why_what_else_and_what_would_change_it(berth: Berth) -> None:
    result = berth("explain", "chat", "-f", str(EXAMPLES))
    assert result.exit_code == 0
    text = result.stdout.splitlines()[0]
    for part in (
        "default/chat serves llama-3.1-8b-instruct with 8-bit weights to people who read the answer as it comes",
        "12 requests a minute",
        "the first token within 2s",
        "It runs on graviton4 (1 replica on demand, AWS Graviton4)",
        "0.638 USD an hour",
        "it saves 20%",
        "Why there: on graviton4 on demand, 1 replica on 1 node at $0.638/h can carry",
        "(a turn is one request with its answer; 0.2 a second are asked for)",
        "Next best is 1 x l4 on demand: it would cost 0.805 USD an hour, 26% more",
        "It would be taken if a node of it cost less than $0.638 an hour.",
        "At ten times the demand it would be on 1 x l4 on demand",
        "estimates from data sheets",
    ):
        assert part in text
    assert "Not ready" not in text


def test_every_candidate_follows_with_its_reason(berth: Berth) -> None:
    data = json.loads(berth("explain", "default/chat", "-f", str(EXAMPLES), "-o", "json").stdout)
    found = {(c["hardwareClass"], c["capacityType"]) for c in data["status"]["candidates"]}
    assert found == {(c, t) for c in ("graviton4", "l4", "h100") for t in ("OnDemand", "Spot")}
    assert all(c["reason"] for c in data["status"]["candidates"])
    assert data["whatIf"]["withoutItsHardware"]["placements"][0]["hardwareClass"] == "l4"
    assert data["whatIf"]["atDemandTimes"]["10"]["placements"][0]["hardwareClass"] == "l4"


def test_an_unknown_pool_is_exit_code_2_with_the_likely_name(berth: Berth) -> None:
    result = berth("explain", "chatt", "-f", str(EXAMPLES))
    assert result.exit_code == 2
    assert "there is no InferencePool default/chatt: did you mean default/chat?" in result.stderr


def test_a_pool_that_nothing_can_serve_says_why(berth: Berth) -> None:
    files = ["-f", str(EXAMPLES / "hardware.yaml"), "-f", "-"]
    impossible = chat(objectives={"timeToFirstTokenP99": "1ms", "interTokenLatencyP99": "100ms"})
    result = berth("explain", "chat", *files, text=impossible)
    assert result.exit_code == 0
    assert "It runs nowhere: " in result.stdout
    assert "1ms" in result.stdout.splitlines()[0] or "1 ms" in result.stdout.splitlines()[0]


def test_what_a_pool_keeps_without_a_place_in_the_plan_is_not_said_to_run_nowhere(tmp_path: Path, now: Any) -> None:
    file = tmp_path / "chat.yaml"
    file.write_text(chat(placement={"hardware": {"allow": {"names": ["doomed"]}}}))
    objects, _ = read_objects([str(EXAMPLES / "hardware.yaml"), str(file)])
    snapshot = overlay(objects, Observation(), now)
    (pool,) = snapshot.pools
    runs = RunningPlacement(pool.key, "doomed", CapacityType.ON_DEMAND, 1, 1)
    placed = {"hardwareClass": "doomed", "capacityType": "OnDemand", "replicas": 1, "usdPerHour": "0.638"}
    before = InferencePoolStatus.model_validate({"placements": [placed | {"trafficPercent": 100}]})
    pool = pool.model_copy(update={"status": before})
    status = pool_status(pool, plan(snapshot).pools[pool.key], [runs], now)
    text = paragraph(pool, status, {}, WhatIf(), live=True)
    assert "It runs on doomed (1 replica on demand). That costs 0.638 USD an hour. The plan has no place for it" in text
    assert "nowhere" not in text
    assert 'stays as it is: spec.placement.hardware.allow.names: "doomed" is not a HardwareClass' in text


def test_what_a_budget_leaves_unserved_is_said_in_the_paragraph(berth: Berth) -> None:
    demand = {"class": "Interactive", "shape": {"promptTokens": 1000, "cachedPromptPercent": 90}}
    demand |= {"demand": {"requestsPerSecond": "5"}}
    files = ["-f", str(EXAMPLES / "hardware.yaml"), "-f", "-"]
    shed = berth("explain", "chat", *files, text=chat(workload=demand, budget={"maxUsdPerHour": "1"}))
    assert "It does not keep its promises: 2.23 of 5 requests/s are unserved: $0.805/h of budget" in shed.stdout
    over = {"maxUsdPerHour": "1", "onExceeded": "Overspend"}
    overspent = berth("explain", "chat", *files, text=chat(workload=demand, budget=over))
    assert "It is over its budget: $1.610/h is above spec.budget.maxUsdPerHour 1" in overspent.stdout


def test_an_objective_that_is_not_cost_is_told_with_why_it_costs_more(berth: Berth) -> None:
    files = ["-f", str(EXAMPLES / "hardware.yaml"), "-f", "-"]
    said = berth("explain", "chat", *files, text=chat(placement={"objective": "Latency"})).stdout
    assert (
        "were money all that counts, and no node limited, a fleet of GPUs alone could cost as little as 0.805" in said
    )
    assert "Its objective is Latency: the hardware that answers fastest is taken" in said
    assert "graviton4 is slower: an unloaded turn takes 13" in said


def snapshot_of(text: str, tmp_path: Path, now: Any) -> Snapshot:
    file = tmp_path / "chat.yaml"
    file.write_text(text)
    objects, problems = read_objects([str(EXAMPLES / "hardware.yaml"), str(file)])
    assert not problems
    return overlay(objects, Observation(), now)


def test_what_holds_a_pool_on_dearer_hardware_is_told(tmp_path: Path, now: Any) -> None:
    """The status in force says l4, and a plan from scratch says graviton4."""
    snapshot = snapshot_of(chat(), tmp_path, now)
    denied = snapshot_of(chat(placement={"hardware": {"deny": {"names": ["graviton4"]}}}), tmp_path, now)
    pool = snapshot.pools[0]
    status = pool_status(pool, plan(denied).pools[pool.key], (), now)
    text = paragraph(pool, status, {}, ask(snapshot, pool), live=True)
    assert "It runs on l4 (1 replica on demand)" in text
    assert "Placed afresh it would be on 1 x graviton4 on demand for 0.638 USD an hour" in text
    assert "Not ready yet: 0 of 1 replicas are ready" in text


def test_the_demand_at_which_hardware_changes_is_the_planners_own(tmp_path: Path, now: Any) -> None:
    snapshot = snapshot_of(chat(), tmp_path, now)
    what_if = ask(snapshot, snapshot.pools[0])
    assert what_if.at_demand
    for factor, told in what_if.at_demand:
        demand = {"class": "Interactive", "shape": {"promptTokens": 1000, "cachedPromptPercent": 90}}
        demand |= {"demand": {"requestsPerSecond": f"{float(factor) * 0.2:g}"}}
        scaled = snapshot_of(chat(workload=demand), tmp_path, now)
        assert plan(scaled).pools["default/chat"].placements == told.placements


def test_large_fleets_are_spared_the_questions(tmp_path: Path, now: Any) -> None:
    snapshot = snapshot_of(chat(), tmp_path, now)
    pool = snapshot.pools[0]
    many = tuple(
        pool.model_copy(update={"metadata": pool.metadata.model_copy(update={"name": f"p{n}"})}) for n in range(201)
    )
    assert ask(Snapshot(now=now, pools=many, hardware_classes=snapshot.hardware_classes), many[0]) == WhatIf()
