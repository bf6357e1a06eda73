"""Does `berth simulate` compare policies in tables, data and pictures, with every assumption listed?"""

import json
from pathlib import Path

import pytest
import yaml
from berth_operator.cli import simulate as command
from berth_operator.cli.app import app
from berth_operator.cli.pictures import Panel
from click.testing import Result
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[2] / "examples"


def berth(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["simulate", *arguments], catch_exceptions=False)


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """Six hours' steps of a day, with the examples' hardware and one of its pools."""
    body = {
        "description": "a short day",
        "days": 1,
        "step": "6h",
        "files": ["hardware.yaml", "chat.yaml"],
        "priceMoves": [{"at": "12h", "hardwareClass": "l4", "capacityType": "OnDemand", "times": "1.5"}],
    }
    for name in ("hardware.yaml", "chat.yaml"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text())
    file = tmp_path / "short.yaml"
    file.write_text(yaml.safe_dump(body))
    return file


def test_a_table_compares_policies_and_every_assumption_is_listed(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "180")
    done = berth(str(short))
    assert done.exit_code == 0
    for name in ("berth", "berth-gpu-only", "gpu-autoscaled", "fixed-by-hand", "karpenter-like"):
        assert f"\n  {name} " in done.stdout
    for part in (
        "Assumed:",
        "default/chat: llama-3.1-8b-instruct",
        "25% more",
        "costs 1.5 times as much",
        "2.34 W a vCPU",
    ):
        assert part in done.stdout


def test_json_holds_totals_series_and_assumptions(short: Path) -> None:
    data = json.loads(berth(str(short), "--policy", "berth", "--policy", "gpu-autoscaled", "-o", "json").stdout)
    ours, gpus = data["policies"]
    assert (ours["name"], gpus["name"]) == ("berth", "gpu-autoscaled")
    assert ours["usd"] <= gpus["usd"]
    assert len(data["series"]["hours"]) == len(data["series"]["policies"]["berth"]["usdPerHour"]) == 4
    assert ours["usd"] == pytest.approx(6 * sum(data["series"]["policies"]["berth"]["usdPerHour"]), rel=1e-3)
    assert any("l4 OnDemand costs 1.5 times" in text for text in data["assumptions"])


def test_a_picture_is_drawn(short: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.svg"
    assert berth(str(short), "--policy", "berth", "--picture", str(file)).exit_code == 0
    assert "<svg" in file.read_text()


def test_what_ships_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    done = berth("week", "--days", "1", "--policy", "fixed-by-hand", "-o", "json")
    assert done.exit_code == 0
    (policy,) = json.loads(done.stdout)["policies"]
    assert policy["withinObjectivesPercent"] > 90


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere",), "nowhere: cannot be read (No such file or directory), and is none of the scenarios that ship"),
        (("week", "--policy", "magic"), "write one of berth, berth-gpu-only"),
        (("week", "--picture", "x.bmp"), "write a name that ends in .png or .svg"),
        (("week", "--seed", "-1"), "Invalid value for '--seed'"),
    ],
)
def test_bad_input_is_exit_code_2_and_says_what_to_write(arguments: tuple[str, ...], says: str) -> None:
    done = berth(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr


def test_a_class_that_cannot_be_true_is_named_and_left_out(short: Path) -> None:
    text = (short.parent / "hardware.yaml").read_text().replace('"0.638"', '"0"')
    (short.parent / "hardware.yaml").write_text(text)
    done = berth(str(short), "--policy", "berth", "-o", "json")
    assert done.exit_code == 2
    assert "HardwareClass graviton4: spec.capacity[0].usdPerHour: found 0" in done.stderr
    assert "graviton4/OnDemand" not in done.stdout


def test_objects_that_cannot_be_read_are_named_where_nothing_is_left_to_simulate(short: Path) -> None:
    text = (short.parent / "chat.yaml").read_text().replace("name: chat", "name: чат")
    (short.parent / "chat.yaml").write_text(text, encoding="utf-8")
    done = berth(str(short))
    assert done.exit_code == 2
    assert "metadata.name: found 'чат': write lower-case letters" in done.stderr
    assert "there is no InferencePool" in done.stderr


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("days: 2\n", "is not valid YAML: 'days' is given twice in one mapping: remove one"),
        ("---\ndays: 2\n", "a scenario is one document, and another begins here"),
    ],
)
def test_a_scenario_is_read_as_strictly_as_objects_are(short: Path, more: str, says: str) -> None:
    short.write_text(short.read_text() + more)
    line = short.read_text().count("\n", 0, short.read_text().rindex("days: 2")) + ("---" not in more)
    done = berth(str(short))
    assert done.exit_code == 2
    assert f"short.yaml: line {line}: {says}" in done.stderr


def test_a_terminal_too_narrow_for_the_table_has_a_line_for_each_figure(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    done = berth(str(short))
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 60
    assert "…" not in done.stdout
    at = lines.index("  gpu-autoscaled")
    assert lines[at + 1].split()[0] == "USD"
    assert lines[at + 3].split()[:2] == ["AGAINST", "BERTH"]


def test_misses_are_drawn_as_a_share_of_the_turns_not_of_the_steps(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Panel] = []
    monkeypatch.setattr(command, "draw", lambda _path, _title, panels: drawn.extend(panels))
    done = berth(str(short), "-o", "json", "--times", "30", "--picture", str(tmp_path / "x.png"))
    (missed,) = (panel for panel in drawn if "outside objectives" in panel.title)
    policies = json.loads(done.stdout)["policies"]
    assert any(p["withinObjectivesPercent"] < 99 for p in policies)
    for curve, policy in zip(missed.curves, policies, strict=True):
        assert curve.y[-1] == pytest.approx(100 - policy["withinObjectivesPercent"], abs=1e-3), curve.name


def test_a_large_fleet_is_made_of_a_small_one(short: Path) -> None:
    one = json.loads(berth(str(short), "--policy", "fixed-by-hand", "-o", "json").stdout)
    many = json.loads(
        berth(str(short), "--policy", "fixed-by-hand", "--copies", "20", "--times", "2", "-o", "json").stdout
    )
    assert many["policies"][0]["turns"] == pytest.approx(40 * one["policies"][0]["turns"], rel=0.2)
    assert many["policies"][0]["meanNodes"] >= 20
    assert any("and 8 more pools: 20 of each, at 2.0 times their demand" in text for text in many["assumptions"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"step": "100h"}, "step: found '100h': a day must be a whole number of steps"),
        ({"step": "7h"}, "a day must be a whole number of steps: write one such as 15m or 1h"),
        ({"seed": -1}, "seed: found -1: "),
        ({"demandOf": {"chatt": {"peakHour": 3}}}, "demandOf names pools that are not there: chatt; there are chat"),
        ({"spotReclaims": [{"at": "3h", "hardwareClass": "l44"}]}, "spotReclaims name classes that are not there: l44"),
    ],
)
def test_a_scenario_that_cannot_be_run_is_named(short: Path, change: dict[str, object], says: str) -> None:
    short.write_text(yaml.safe_dump(yaml.safe_load(short.read_text()) | change))
    done = berth(str(short), "--policy", "fixed-by-hand")
    assert done.exit_code == 2
    assert says in done.stderr


def test_copies_of_a_pool_keep_its_own_form_of_demand(short: Path) -> None:
    quiet = {"troughPercent": 100, "weekendPercent": 100, "noisePercent": 0, "bursts": {"perDay": "0"}}
    short.write_text(yaml.safe_dump(yaml.safe_load(short.read_text()) | {"demandOf": {"chat": quiet}}))
    data = json.loads(berth(str(short), "--policy", "fixed-by-hand", "--copies", "3", "-o", "json").stdout)
    assert data["series"]["turnsPerSecond"] == pytest.approx([0.6] * 4)
