"""Which questions does a dashboard ask Prometheus, once its variables have values?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

ALL: Final = ".*"
"""What a multi-valued variable stands for when all of its values are chosen."""
_INTERVALS: Final = {"__range": "1h", "__rate_interval": "1m", "__interval": "15s"}
_LABEL_VALUES: Final = re.compile(r"label_values\((?P<series>.+), (?P<label>\w+)\)")
_VARIABLE: Final = re.compile(r"\$\{?(\w+)\}?")


@dataclass(frozen=True)
class DashboardQuery:
    """One PromQL expression and where it stands: `panel/refId`, or `variable NAME`."""

    where: str
    expression: str
    legend: str = ""


def queries_of(dashboard: Mapping[str, Any]) -> list[DashboardQuery]:
    """The expressions of all panels, then those that list the values of the variables (as instant queries)."""
    panels = [
        DashboardQuery(f"{panel['title']}/{target['refId']}", target["expr"], target.get("legendFormat", ""))
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]
    variables = [
        DashboardQuery(f"variable {variable['name']}", f"group by ({found['label']}) ({found['series']})")
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query" and (found := _LABEL_VALUES.fullmatch(variable["query"]))
    ]
    return panels + variables


def substitute(expression: str, values: Mapping[str, str]) -> str:
    """The expression with every `$variable` replaced: by ``values``, else by what Grafana would choose."""
    known = _INTERVALS | dict(values)
    return _VARIABLE.sub(lambda found: known.get(found[1], ALL), expression)
