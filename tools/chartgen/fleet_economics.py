"""What does the fleet cost, what would GPUs alone have cost, and is the promise to users kept meanwhile?"""

from __future__ import annotations

from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.models import dashboard as models

from chartgen.dashboard import GRID_WIDTH, Query, lines, multi_variable, number, states

_POOLS: Final = 'pool_namespace=~"$namespace",pool=~"$pool"'
_EACH_POOL: Final = "pool_namespace, pool"
_POOL_LEGEND: Final = "{{pool_namespace}}/{{pool}}"
_STAT_WIDTH: Final = GRID_WIDTH // 4


def dashboard() -> grafana.Dashboard:
    """The dashboard "Berth / Fleet economics"."""
    made = (
        grafana.Dashboard("Berth / Fleet economics")
        .uid("berth-fleet-economics")
        .description("What the fleet costs, what GPUs alone would have cost, and whether objectives are met meanwhile.")
        .tags(["berth", "llm", "cost"])
        .editable()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-6h", "now")
        .refresh("30s")
        .with_variable(grafana.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(multi_variable("namespace", "Namespace", "label_values(berth_pool_condition, pool_namespace)"))
        .with_variable(
            multi_variable("pool", "Pool", 'label_values(berth_pool_condition{pool_namespace=~"$namespace"}, pool)')
        )
    )
    for title, panels in (
        ("Cost", _cost()),
        ("Hardware", _hardware()),
        ("Promise to users", _promise()),
        ("Planner", _planner()),
    ):
        made = made.with_row(grafana.Row(title))
        for panel in panels:
            made = made.with_panel(panel)
    return made


def _sum(metric: str, *, by: str = "", window: str = "") -> str:
    """The metric of the chosen pools, added up; with a window, its increase over that."""
    selected = f"{metric}{{{_POOLS}}}"
    grown = f"increase({selected}[{window}])" if window else selected
    return f"sum by ({by}) ({grown})" if by else f"sum({grown})"


def _saved(spent: str, gpu_only: str) -> str:
    """Share saved, over the pools for which a GPU-only plan exists."""
    return f"1 - sum({spent} and on ({_EACH_POOL}) {gpu_only}) / (sum({gpu_only}) > 0)"


def _cost() -> list[Any]:
    now, gpu_only_now = "berth_pool_usd_per_hour", "berth_pool_gpu_only_usd_per_hour"
    spent, gpu_only = "berth_pool_spent_usd_total", "berth_pool_gpu_only_usd_total"
    saved_now = _saved(_sum(now, by=_EACH_POOL), _sum(gpu_only_now, by=_EACH_POOL))
    return [
        number(
            "Spend, USD per hour",
            "Price of the whole nodes that the plan places the chosen pools on, now.",
            "currencyUSD",
            _sum(now),
            width=_STAT_WIDTH,
        ),
        number(
            "GPU-only, USD per hour",
            "What the cheapest plan of the same demand, with the same freedoms, would cost at least on GPU classes "
            "alone: the solver's lower bound.",
            "currencyUSD",
            _sum(gpu_only_now),
            width=_STAT_WIDTH,
        ),
        number(
            "Saved against GPU-only",
            "1 - spend / GPU-only, over the pools that GPUs alone could serve. Negative: the fleet costs more than "
            "GPUs would, for instance while it moves.",
            "percentunit",
            saved_now,
            width=_STAT_WIDTH,
            bad_below=0,
        ),
        number(
            "Power",
            "Watts of the nodes that the chosen pools are placed on, at load, as their hardware classes state it.",
            "watt",
            _sum("berth_pool_watts"),
            width=_STAT_WIDTH,
        ),
        lines(
            "Spend and GPU-only, USD per hour",
            "Spend of each pool, stacked, and what the GPU-only plan of all of them costs (dashed).",
            "currencyUSD",
            [
                Query(_sum(now, by=_EACH_POOL), _POOL_LEGEND),
                Query(_sum(gpu_only_now), "GPU-only", bound=True),
            ],
            stacked=True,
        ),
        lines(
            "Spent and GPU-only, USD in all",
            "Dollars for nodes with ready workers since the leading operator started, and what the GPU-only plan "
            "would have spent on the demand they covered (dashed). Both begin at zero with another leader.",
            "currencyUSD",
            [Query(_sum(spent), "spent"), Query(_sum(gpu_only), "GPU-only", bound=True)],
        ),
        number(
            "Spent in the time shown",
            "Dollars spent over the dashboard's time range, restarts of the operator included.",
            "currencyUSD",
            _sum(spent, window="$__range"),
            width=_STAT_WIDTH * 2,
        ),
        number(
            "Saved in the time shown",
            "Dollars that the GPU-only plan would have spent over the dashboard's time range, less those spent.",
            "currencyUSD",
            f"{_sum(gpu_only, window='$__range')} - {_sum(spent, window='$__range')}",
            width=_STAT_WIDTH * 2,
            bad_below=0,
        ),
    ]


def _hardware() -> list[Any]:
    return [
        lines(
            "Replicas by hardware",
            "Ready workers of the chosen pools on each hardware class and capacity type, stacked, and all that are "
            "planned (dashed).",
            "short",
            [
                Query(_replicas("ready", "hardware_class, capacity_type"), "{{hardware_class}} {{capacity_type}}"),
                Query(_replicas("planned"), "planned", bound=True),
            ],
            stacked=True,
        ),
        lines(
            "Price in force, USD per node and hour",
            "The price that plans use for one node, and where it comes from.",
            "currencyUSD",
            [
                Query(
                    "max by (hardware_class, capacity_type, source) (berth_hardware_usd_per_hour)",
                    "{{hardware_class}} {{capacity_type}} ({{source}})",
                )
            ],
        ),
        states(
            "Constrained hardware",
            "Capacity that could not be had lately; plans do without more of it until its back-off ends.",
            Query(
                "max by (hardware_class, capacity_type) (berth_hardware_constrained)",
                "{{hardware_class}} {{capacity_type}}",
            ),
            [("0", "to be had", True), ("1", "constrained", False)],
            width=GRID_WIDTH,
        ),
    ]


def _replicas(state: str, by: str = "") -> str:
    series = f'berth_pool_replicas{{{_POOLS},state="{state}"}}'
    return f"sum by ({by}) ({series})" if by else f"sum({series})"


def _promise() -> list[Any]:
    met = f'berth_pool_condition{{{_POOLS},type="ObjectivesMet",status="True"}}'
    return [
        states(
            "Objectives met",
            "Whether each pool's condition ObjectivesMet is True: its placements keep its p99 latencies.",
            Query(f"max by ({_EACH_POOL}) ({met})", _POOL_LEGEND),
            [("1", "met", True), ("0", "not met", False)],
        ),
        lines(
            "Requests running and waiting",
            "Requests that workers decode now, and requests in their queues.",
            "short",
            [
                Query(_sum("vllm:num_requests_running", by=_EACH_POOL), f"{_POOL_LEGEND} running"),
                Query(_sum("vllm:num_requests_waiting", by=_EACH_POOL), f"{_POOL_LEGEND} waiting"),
            ],
        ),
        _latency(
            "Time to first token, p99",
            "From a request's arrival to its first token, all workers of a pool together.",
            "vllm:time_to_first_token_seconds",
        ),
        _latency(
            "Inter-token latency, p99",
            "Between one token of a request and the next.",
            "vllm:inter_token_latency_seconds",
        ),
        _latency(
            "Turn latency, p99",
            "From a request's arrival to its last token.",
            "vllm:e2e_request_latency_seconds",
        ),
        lines(
            "Tokens per second",
            "Tokens that workers generate, and tokens of prompts that they read.",
            "short",
            [
                Query(_rate("vllm:generation_tokens_total"), f"{_POOL_LEGEND} generated"),
                Query(_rate("vllm:prompt_tokens_total"), f"{_POOL_LEGEND} prompt"),
            ],
        ),
    ]


def _rate(metric: str) -> str:
    return f"sum by ({_EACH_POOL}) (rate({metric}{{{_POOLS}}}[$__rate_interval]))"


def _latency(title: str, description: str, histogram: str) -> Any:
    buckets = f"sum by ({_EACH_POOL}, le) (rate({histogram}_bucket{{{_POOLS}}}[$__rate_interval]))"
    return lines(title, description, "s", [Query(f"histogram_quantile(0.99, {buckets})", _POOL_LEGEND)])


def _planner() -> list[Any]:
    duration = "sum by (le) (rate(berth_plan_duration_seconds_bucket[$__rate_interval]))"
    return [
        number(
            "Since the last good pass",
            "Seconds since the leading operator last observed, planned and applied without an error.",
            "s",
            "time() - max(berth_last_success_timestamp_seconds)",
            width=_STAT_WIDTH,
        ),
        number(
            "Gap of the last plan",
            "How far the plan's cost may be above the least possible, as a share of it: the solver's proven bound.",
            "percentunit",
            "max(berth_plan_gap_ratio)",
            width=_STAT_WIDTH,
        ),
        lines(
            "Time to plan, p99",
            "Seconds from a snapshot of the fleet to a plan of all pools.",
            "s",
            [Query(f"histogram_quantile(0.99, {duration})", "p99")],
            width=_STAT_WIDTH,
        ),
        lines(
            "Plans per minute, by result",
            "Passes of the operator's loop: success, partial (a write failed) or error (no plan).",
            "short",
            [Query("60 * sum by (result) (rate(berth_plans_total[$__rate_interval]))", "{{result}}")],
            width=_STAT_WIDTH,
        ),
    ]
