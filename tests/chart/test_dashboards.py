"""Would Grafana and Prometheus take every dashboard, and does a person learn from each panel what it shows?"""

import json
import re
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from chartgen import CHART
from chartgen.queries import queries_of, substitute
from devcluster import ensure
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
GRID_WIDTH = 24

Json = dict[str, Any]


@pytest.fixture(params=DASHBOARDS, ids=lambda path: path.stem)
def dashboard(request: pytest.FixtureRequest) -> Json:
    loaded: Json = json.loads(request.param.read_text())
    return loaded


def _panels(dashboard: Json) -> Iterator[Json]:
    return (panel for panel in dashboard["panels"] if panel["type"] != "row")


def test_there_is_a_dashboard() -> None:
    assert [path.stem for path in DASHBOARDS] == ["fleet-economics"]


def test_it_is_of_the_types_that_grafana_publishes(dashboard: Json) -> None:
    read = models.Dashboard.from_json(dashboard)
    assert json.loads(json.dumps(read, cls=JSONEncoder)) == dashboard


def test_every_panel_says_what_it_shows_in_which_unit(dashboard: Json) -> None:
    for panel in _panels(dashboard):
        assert panel["title"]
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["type"] == "state-timeline" or panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"


def test_panels_tile_the_grid(dashboard: Json) -> None:
    for panel in dashboard["panels"]:
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= GRID_WIDTH, panel["title"]
    for one, other in combinations(dashboard["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, f"{one['title']} overlaps {other['title']}"


def test_variables_used_are_variables_declared(dashboard: Json) -> None:
    declared = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert declared == {"datasource", "namespace", "pool"}
    used = set(re.findall(r"\$\{?(\w+)\}?", json.dumps(dashboard)))
    assert used - declared <= {"__all", "__range", "__rate_interval"}


def test_promtool_accepts_every_expression(dashboard: Json, tmp_path: Path) -> None:
    queries = queries_of(dashboard)
    assert len(queries) > 20
    rules = [{"record": f"q{i}", "expr": substitute(q.expression, {})} for i, q in enumerate(queries)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        [ensure(["promtool"])["promtool"], "check", "rules", file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout
