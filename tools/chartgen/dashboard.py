"""How does a Berth dashboard look?  The few kinds of panel that all of them are made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

PANEL_HEIGHT = 8
STAT_HEIGHT = 4
GRID_WIDTH = 24
DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_BLUE, _GREEN, _RED, _GREY = "blue", "green", "red", "gray"


@dataclass(frozen=True)
class Query:
    """One PromQL expression, its legend, and whether it is drawn as a bound (dashed, grey) instead of a measurement."""

    expression: str
    legend: str
    bound: bool = False


def render(dashboard: grafana.Dashboard) -> str:
    """The dashboard's JSON as it is committed."""
    return json.dumps(dashboard.build(), cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def number(
    title: str, description: str, unit: str, expression: str, *, width: int, bad_below: float | None = None
) -> Any:
    """One number, its trend behind it; red below ``bad_below``, if given."""
    steps = [models.Threshold(value=None, color=_BLUE if bad_below is None else _RED)]
    if bad_below is not None:
        steps.append(models.Threshold(value=bad_below, color=_GREEN))
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .height(STAT_HEIGHT)
        .span(width)
        .unit(unit)
        .thresholds(grafana.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
        .color_mode(common_models.BigValueColorMode.VALUE)
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_target(0, Query(expression, title)))
    )


def lines(
    title: str,
    description: str,
    unit: str,
    queries: Iterable[Query],
    *,
    width: int = 12,
    stacked: bool = False,
) -> Any:
    """Lines over time, with their last and greatest values in the legend."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .height(PANEL_HEIGHT)
        .span(width)
        .unit(unit)
        .min(0)
        .show_points(common_models.VisibilityMode.NEVER)
        .line_width(2)
        .fill_opacity(25 if stacked else 0)
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.TABLE)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    for index, query in enumerate(queries):
        panel = panel.with_target(_target(index, query))
        if query.bound:
            panel = panel.override_by_query(_ref_id(index), _bound_style())
    return panel


def states(
    title: str, description: str, query: Query, texts: Sequence[tuple[str, str, bool]], *, width: int = 12
) -> Any:
    """Bands over time; ``texts`` are (value, what to call it, whether it is good)."""
    mapping = models.ValueMap(
        options={
            value: models.ValueMappingResult(text=text, color=_GREEN if good else _RED, index=index)
            for index, (value, text, good) in enumerate(texts)
        }
    )
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .height(PANEL_HEIGHT)
        .span(width)
        .mappings([mapping])
        .show_value(common_models.VisibilityMode.NEVER)
        .merge_values(True)
        .with_target(_target(0, query))
    )


def multi_variable(name: str, label: str, query: str) -> Any:
    """A variable whose values Prometheus knows, several or all of which can be chosen."""
    return (
        grafana.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def _target(index: int, query: Query) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .ref_id(_ref_id(index))
        .datasource(DATASOURCE)
        .expr(query.expression)
        .legend_format(query.legend)
        .range()
    )


def _ref_id(index: int) -> str:
    return chr(ord("A") + index)


def _bound_style() -> list[models.DynamicConfigValue]:
    return [
        models.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [10, 10]}),
        models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": _GREY}),
        models.DynamicConfigValue("custom.stacking", {"mode": "none", "group": "bound"}),
        models.DynamicConfigValue("custom.fillOpacity", 0),
    ]
