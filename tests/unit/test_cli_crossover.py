"""Does `berth crossover` answer in tables, data and pictures, and refuse what it cannot answer with what to write?"""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from berth_operator.cli.app import app
from click.testing import Result
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = "llama-3.1-8b-instruct"
FEW = ("--hardware", "l4", "--hardware", "h100", "--max-concurrency", "32")


def berth(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["crossover", *arguments], catch_exceptions=False)


def test_a_table_for_each_case_and_where_the_cheapest_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    done = berth(MODEL, *FEW)
    assert done.exit_code == 0
    assert "always busy" in done.stdout and "with idle time" in done.stdout
    assert "Cheapest at 1: l4" in done.stdout
    assert "estimated by roofline" in done.stdout


def test_json_holds_every_line_and_crossing() -> None:
    data = json.loads(berth(MODEL, *FEW, "-o", "json").stdout)
    assert [line["hardwareClass"] for line in data["lines"]] == ["h100", "l4"]
    point = data["lines"][1]["points"][0]
    assert point["concurrency"] == 1
    assert set(point["busy"]) == {"usdPerMillionTokens", "nodes", "tokensPerSecond"}
    assert data["crossings"]["busy"][0]["from"] == "l4"
    assert data["cheapest"]["busy"][-1]["line"] == "h100"


def test_by_default_all_that_plans_may_use_is_compared() -> None:
    data = json.loads(berth(MODEL, "--max-concurrency", "1", "-o", "json").stdout)
    names = {line["hardwareClass"] for line in data["lines"]} | {item["hardwareClass"] for item in data["leftOut"]}
    assert {"graviton3-c7g-4xl", "b200-8", "l40s"} <= names
    assert not {"maia-100", "t4", "grace"} & names


def test_a_what_if_price_brings_in_what_nobody_rents() -> None:
    data = json.loads(berth(MODEL, *FEW, "--price", "maia-100=2.50", "-o", "json").stdout)
    prices = {line["hardwareClass"]: line["usdPerHour"] for line in data["lines"]}
    assert prices["maia-100"] == "2.50"


def test_classes_of_files_are_compared_instead_of_the_catalogs() -> None:
    data = json.loads(berth(MODEL, "-f", str(EXAMPLES / "hardware.yaml"), "--spot", "-o", "json").stdout)
    lines = {(line["hardwareClass"], line["capacityType"]) for line in data["lines"]}
    assert ("l4", "Spot") in lines
    assert {name for name, _ in lines} <= {"graviton4", "l4", "h100"}


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_picture_is_drawn_the_same_twice(tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{name}.{suffix}" for name in ("one", "two")]
    for file in files:
        assert berth(MODEL, *FEW, "--picture", str(file)).exit_code == 0
    first, second = (file.read_bytes() for file in files)
    assert first == second
    if suffix == "svg":
        assert ElementTree.fromstring(first.decode()).tag.endswith("svg")  # noqa: S314 - our own
    else:
        assert first.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("llama-3.1-8b-instrukt",), "known are: llama-3.1-8b-instruct"),
        ((MODEL, "--hardware", "l5"), "l5: there is no such class; did you mean l4?"),
        ((MODEL, "--price", "l4"), "write CLASS=USD, such as l4=0.805"),
        ((MODEL, "--price", "l4=0"), "a price is above zero"),
        ((MODEL, "--think-time", "2"), "'2' is not a duration"),
        ((MODEL, "--picture", "x.gif"), "write a name that ends in .png or .svg"),
        ((MODEL, "--picture", "nowhere/x.svg"), "there is no folder"),
    ],
)
def test_bad_input_is_exit_code_2_and_says_what_to_write(arguments: tuple[str, ...], says: str) -> None:
    done = berth(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr


def test_figures_in_circulation_are_taken_for_true_only_when_asked_and_said_to_be_impossible() -> None:
    three = ("--hardware", "l4", "--hardware", "a10g", "--hardware", "graviton3-c7g-16xl", "--max-concurrency", "1")
    done = berth("llama-3-8b-instruct", *three, "--what-if-set", "news-2026-04", "-o", "json")
    assert done.exit_code == 0
    busy = {x["hardwareClass"]: x["points"][0]["busy"]["usdPerMillionTokens"] for x in json.loads(done.stdout)["lines"]}
    # 2.32 USD/h over 45 tokens/s, 1.006 over 120, 0.805 over 180
    assert busy == {"graviton3-c7g-16xl": "14.3", "a10g": "2.33", "l4": "1.24"}
    assert "the claimed 0.08 takes 8056 tokens/s, 179.0 times as many" in done.stderr
    assert "l4: spec.points[0].decodeTokensPerSecond: found 180: 1 requests" in done.stderr
    other = berth(MODEL, "--what-if-set", "news-2026-04")
    assert other.exit_code == 2
    assert "is about llama-3-8b-instruct: ask for that model" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((MODEL, "--first-token", "0s"), "--first-token: '0s' must be above zero"),
        ((MODEL, "--between-tokens", "60"), "--between-tokens: '60' is not a duration"),
        ((MODEL, "--prompt-tokens", "2000000"), "--prompt-tokens: found 2000000: input should be less than"),
        (("Llama-3.1-8B-Instruct",), f"known are: {MODEL}"),
    ],
)
def test_an_option_that_no_pool_could_state_is_named(arguments: tuple[str, ...], says: str) -> None:
    done = berth(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr


def test_files_without_a_class_are_compared_on_the_catalog_with_a_word_about_it() -> None:
    done = berth(MODEL, *FEW, "-f", str(EXAMPLES / "chat.yaml"))
    assert done.exit_code == 0
    assert "no HardwareClass among the objects: the catalog's are compared" in done.stderr
