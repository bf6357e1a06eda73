"""Is no figure cut off, however narrow the terminal, and no text taken for anything but text?"""

import re
from pathlib import Path

import pytest
from berth_operator.cli.app import app
from berth_operator.cli.output import Fitting, console
from rich import box
from rich.table import Table
from typer.testing import CliRunner

EXAMPLES = str(Path(__file__).parents[2] / "examples")
COMMANDS = {
    "plan": ("plan", "-f", EXAMPLES),
    "explain": ("explain", "chat", "-f", EXAMPLES),
    "hardware": ("hardware", "list"),
    "crossover": ("crossover", "llama-3.1-8b-instruct", "--hardware", "l4", "--hardware", "a10g"),
}
_FIGURE = re.compile(r"(?<![\w.-])\d+\.\d+(?![\w.-])")


def said(monkeypatch: pytest.MonkeyPatch, width: int, *arguments: str) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize("width", [40, 60, 80, 100])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_narrow_terminal_sees_the_same_figures(monkeypatch: pytest.MonkeyPatch, name: str, width: int) -> None:
    wide, narrow = (said(monkeypatch, w, *COMMANDS[name]) for w in (250, width))
    assert "\u2026" not in narrow
    assert max(map(len, narrow.splitlines())) <= width
    assert sorted(_FIGURE.findall(wide)) == sorted(_FIGURE.findall(narrow))


def test_reasons_stand_below_their_candidates_where_they_do_not_fit_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = said(monkeypatch, 80, *COMMANDS["explain"]).splitlines()
    row = ["l4", "OnDemand", "TooExpensive", "0.323", "estimated"]
    at = next(n for n, line in enumerate(lines) if line.split() == row)
    assert lines[at + 1].strip() == "would enter below $0.638/h; costs $0.805/h"


@pytest.mark.parametrize("width", [27, 200])
def test_what_stands_in_brackets_is_no_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("NAME", no_wrap=True)
    table.add_column("FIELD", no_wrap=True)
    table.add_row("[bold]a", "x[red] :smile:")
    console().print(Fitting(table))
    printed = " ".join(capsys.readouterr().out.split())
    assert "[bold]a" in printed
    assert "x[red] :smile:" in printed


def test_a_class_is_found_whatever_its_case_and_listed_once() -> None:
    done = CliRunner().invoke(app, ["hardware", "list", "L4"])
    assert done.exit_code == 2
    assert "L4: the catalog has no such class; did you mean l4?" in done.stderr
    twice = CliRunner().invoke(app, ["hardware", "list", "l4", "l4", "-o", "yaml"])
    assert twice.stdout.count("kind: HardwareClass") == 1
