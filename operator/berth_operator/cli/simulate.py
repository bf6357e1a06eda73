"""`berth simulate`: what would days of demand and mishaps cost, with our planner and with other policies?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from berth_operator.api import CapacityType, HardwareClass, format_digits, format_duration
from berth_operator.catalog.sanity import sift
from berth_operator.cli.objects import Objects, read_bodies
from berth_operator.cli.output import Fitting, TableFormat, console, print_data
from berth_operator.cli.pictures import Curve, Panel, check_picture, draw
from berth_operator.cli.problems import BAD_INPUT, OK, InputProblem, complain, leave, remark
from berth_operator.simulate.engine import Outcome, Simulation, node_watts, simulate
from berth_operator.simulate.load import ScenarioError, catalog_classes, find, pools_of, read_scenario
from berth_operator.simulate.policies import Pool
from berth_operator.simulate.scenario import Scenario

POLICIES = {
    "berth": "Berth's planner over all classes, spot as each pool allows",
    "berth-gpu-only": "the same planner with GPUs alone",
    "gpu-autoscaled": "for each pool the GPU class cheapest at its peak, on demand, replicas autoscaled",
    "fixed-by-hand": "for each pool the class cheapest at its peak, on demand, replicas autoscaled",
    "karpenter-like": "the cheapest node in stock that the model fits on, spot too, blind to its speed there",
}

_MOST_TICKS: Final = 10
_LEAST_MISSED: Final = 0.1
"""Percent: what is below is drawn as it is, what is above by its logarithm."""
_MOST_POOLS = 12
"""That are described one by one."""


def command(
    scenario: Annotated[str, typer.Argument(help="A scenario that ships (week), or a YAML file")],
    files: Annotated[list[str] | None, typer.Option("--file", "-f", help="More pools, classes and profiles")] = None,
    policy: Annotated[list[str] | None, typer.Option("--policy", help="Only these; default: all")] = None,
    days: Annotated[int | None, typer.Option(min=1, max=60, help="Instead of the scenario's")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Instead of the scenario's")] = None,
    copies: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Of every pool, each with its own demand")
    ] = None,
    times: Annotated[float | None, typer.Option(min=0.001, max=1e6, help="Multiplies every pool's demand")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw to this PNG or SVG file")] = None,
    output: Annotated[TableFormat, typer.Option("--output", "-o")] = TableFormat.TABLE,
) -> None:
    """Run each policy through the same days, and compare cost, promises kept, churn and power.

    Everything is reproducible by seed.  Exit code: 0, or 2 where something in the input must change.
    """
    check_picture(picture)
    for name in policy or ():
        if name not in POLICIES:
            leave(BAD_INPUT, f"--policy: found {name!r}: write one of {', '.join(POLICIES)}")
    changes = {"days": days, "seed": seed, "copies": copies, "times": None if times is None else Decimal(str(times))}
    problems: list[InputProblem] = []
    try:
        read, classes, pools = _gather(scenario, files or (), changes, problems)
    except ScenarioError as error:
        leave(BAD_INPUT, *problems, *str(error).splitlines())
    complain(problems)
    count = len(policy or POLICIES)
    with _progress() as progress:
        task = progress.add_task("simulating", total=read.steps * count)
        found = simulate(read, pools, classes, only=policy or (), on_step=lambda: progress.advance(task))
    if output is TableFormat.TABLE:
        _show(console(), found, pools, classes)
    else:
        print_data(_data(found, pools, classes), as_yaml=output is TableFormat.YAML)
    if picture:
        draw(picture, read.description.strip() or scenario, _panels(found))
    raise typer.Exit(BAD_INPUT if problems else OK)


def _gather(
    name: str, files: Sequence[str], changes: Mapping[str, Any], problems: list[InputProblem]
) -> tuple[Scenario, list[HardwareClass], list[Pool]]:
    """What is simulated; what must change in the rest is added to `problems`.  Raises ScenarioError."""
    source = find(name)
    scenario = read_scenario(source)
    scenario = scenario.model_copy(update={key: value for key, value in changes.items() if value is not None})
    paths = [str(source.folder / file) for file in scenario.files]
    objects, found = read_bodies([*paths, *files], [(f"{name}: objects", body) for body in scenario.objects])
    problems += found
    for text in objects.remarks:
        remark(text)
    known = {item.metadata.name: item for item in catalog_classes(scenario)}
    known |= {item.metadata.name: item for item in objects.hardware_classes}
    sifted = sift(known.values(), objects.serving_profiles)
    problems += [InputProblem("", f"{f.kind} {f.name}", f.field, f.message) for f in sifted.faults]
    classes = list(sifted.hardware_classes)
    return scenario, classes, _pools(objects, classes, sifted.serving_profiles, scenario)


def _pools(objects: Objects, classes: Sequence[HardwareClass], profiles: Any, scenario: Scenario) -> list[Pool]:
    return pools_of(objects.pools, classes, profiles, objects.namespace_labels, scenario)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(err=True),
        transient=True,
    )


# --- Output ---------------------------------------------------------------------------------------------------------


def _show(to: Console, found: Simulation, pools: Sequence[Pool], classes: Sequence[HardwareClass]) -> None:
    scenario = found.scenario
    if scenario.description:
        to.print(Text(scenario.description.strip(), style="bold"))
    to.print(Fitting(_table(found)))
    for outcome in found.outcomes:
        to.print(Text(f"{outcome.name}: {POLICIES[outcome.name]}; ran {_ran(outcome)}."))
        if outcome.unserved:
            to.print(Text(f"  It had nothing at the end for {', '.join(outcome.unserved)}.", style="yellow"))
    to.print()
    to.print(Text("Assumed:", style="bold"))
    for text in assumptions(scenario, pools, classes):
        to.print(Text(f"- {text}"))


def _table(found: Simulation) -> Table:
    base = found.outcomes[0].usd if found.outcomes else 0.0
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("POLICY", no_wrap=True)
    for heading in (
        *("USD", "USD/H", f"AGAINST\n{found.outcomes[0].name}", "WITHIN", "USD/M\nTURNS KEPT"),
        *("STARTED", "MOVES", "INTER-\nRUPTED", "MEAN\nNODES", "MEAN\nW"),
    ):
        table.add_column(heading.upper(), justify="right", no_wrap=True)
    hours = found.scenario.days * 24
    for o in found.outcomes:
        table.add_row(
            o.name,
            f"{o.usd:,.2f}",
            f"{o.usd / hours:.3f}",
            f"{(o.usd / base - 1) * 100:+.1f}%" if base else "-",
            f"{o.share * 100:.2f}%",
            f"{o.usd / o.within * 1e6:,.1f}" if o.within else "-",
            str(o.started),
            str(o.moves),
            str(o.interrupted),
            f"{float(np.mean(o.nodes)):,.1f}",
            "-" if o.kilowatt_hours is None else f"{o.kilowatt_hours / hours * 1000:,.0f}",
        )
    return table


def _ran(outcome: Outcome) -> str:
    total = sum(outcome.node_hours.values())
    shares = sorted(outcome.node_hours.items(), key=lambda item: -item[1])
    named = [f"{name} {kind.value} {value / total * 100:.0f}%" for (name, kind), value in shares[:4] if total]
    rest = len(shares) - 4
    return (", ".join(named) + (f" and {rest} more" if rest > 0 else "") + " of node hours") if named else "nothing"


def assumptions(scenario: Scenario, pools: Sequence[Pool], classes: Sequence[HardwareClass]) -> Iterable[str]:
    """Everything that the figures rest on."""
    form = scenario.demand
    yield (
        f"demand of each pool peaks at what it declares at {form.peak_hour}:00, falls to {form.trough_percent}% at"
        f" night and to {form.weekend_percent}% of that at weekends, with {form.noise_percent}% noise a step and"
        f" {form.bursts.per_day} bursts a day of {form.bursts.times}x for {format_duration(form.bursts.duration)}"
        + (f"; of its own: {', '.join(sorted(scenario.demand_of))}" if scenario.demand_of else "")
    )
    for pool in pools[:_MOST_POOLS]:
        e = pool.effective
        yield (
            f"{pool.key}: {e.model}, {e.workload_class.value}, peak {format_digits(pool.peak)} turns/s,"
            f" {e.prompt_tokens} tokens in ({e.cached_prompt_percent}% cached), {e.output_tokens} out; p99 promised:"
            f" first token {format_duration(e.time_to_first_token_p99)}, between tokens"
            f" {format_duration(e.inter_token_latency_p99)}"
        )
    if len(pools) > _MOST_POOLS:
        more = len(pools) - _MOST_POOLS
        yield f"and {more} more pools: {scenario.copies} of each, at {scenario.times} times their demand"
    yield (
        f"each policy decides every {format_duration(scenario.step)} from the demand of the step before and makes room"
        f" for {scenario.headroom_percent}% more"
    )
    starts = scenario.starts
    yield (
        f"a worker serves {format_duration(starts.cpu)} (CPU), {format_duration(starts.gpu)} (GPU) or"
        f" {format_duration(starts.accelerator)} (accelerator) after its node was asked for; until then the node is"
        " paid"
    )
    spot = scenario.spot
    price = "what each class has" if spot.percent is None else f"{spot.percent}% of on demand on average"
    yield (
        f"spot costs {price}, wanders by {spot.volatility_percent_per_day}% a day, and a node is taken away"
        f" {spot.interruptions_per_hour} times an hour where its class does not say"
    )
    for move in scenario.price_moves:
        at = format_duration(move.at)
        yield f"after {at} {move.hardware_class} {move.capacity_type.value} costs {move.times} times as much"
    for out in scenario.stock_outs:
        kind = out.capacity_type.value if out.capacity_type else "any"
        yield (
            f"from {format_duration(out.at)} on no new node of {out.hardware_class} ({kind}) for"
            f" {format_duration(out.lasts)}"
        )
    spread = {c.metadata.name: len(way.zones or ()) for c in classes if (way := c.capacity_of(CapacityType.SPOT))}
    for taken in scenario.spot_reclaims:
        several = spread.get(taken.hardware_class, 0)
        zones = f"each pool's fullest of {several} zones" if several > 1 else "its only zone"
        yield f"after {format_duration(taken.at)} all spot nodes of {taken.hardware_class} in {zones} are taken at once"
    yield (
        "what one replica carries within the objectives is the planner's prediction, by roofline where no profile was"
        " given; turns beyond it count as outside, turns of a class that cannot keep them at all, too"
    )
    watts = ", ".join(f"{c.metadata.name} {w:.0f} W" for c in classes if (w := node_watts(c, scenario)) is not None)
    yield (
        f"power of a node at any load: {watts or 'unknown'} (its own figure, else its chips' limit without the host,"
        f" else {scenario.watts_per_vcpu} W a vCPU)"
    )


def _data(found: Simulation, pools: Sequence[Pool], classes: Sequence[HardwareClass]) -> dict[str, Any]:
    hours = found.scenario.days * 24
    return {
        "days": found.scenario.days,
        "stepMinutes": found.scenario.step / timedelta(minutes=1),
        "seed": found.scenario.seed,
        "policies": [
            {
                "name": o.name,
                "usd": round(o.usd, 3),
                "usdPerHour": round(o.usd / hours, 4),
                "turns": round(o.turns),
                "withinObjectivesPercent": round(o.share * 100, 3),
                "replicasStarted": o.started,
                "moves": o.moves,
                "interruptedNodes": o.interrupted,
                "meanNodes": round(float(np.mean(o.nodes)), 2),
                "meanWatts": None if o.kilowatt_hours is None else round(o.kilowatt_hours / hours * 1000, 1),
                "nodeHours": {f"{name}/{kind.value}": round(v, 2) for (name, kind), v in sorted(o.node_hours.items())},
                "poolsWithNothing": o.unserved,
            }
            for o in found.outcomes
        ],
        "assumptions": list(assumptions(found.scenario, pools, classes)),
        "series": {
            "hours": [round(float(h), 4) for h in found.hours],
            "turnsPerSecond": _rounded(_total(found)),
            "policies": {
                o.name: {
                    "usdPerHour": _rounded(o.usd_per_hour),
                    "withinObjectives": _rounded(o.within_share),
                    "nodes": _rounded(o.nodes),
                }
                for o in found.outcomes
            },
        },
    }


def _total(found: Simulation) -> Any:
    return np.sum(list(found.demand.values()), axis=0)


def _rounded(values: Any) -> list[float]:
    return [round(float(v), 4) for v in values]


def _panels(found: Simulation) -> list[Panel]:
    hours = [float(h) for h in found.hours]
    every = 24.0 * -(-found.scenario.days // _MOST_TICKS) if found.scenario.days > 1 else 6.0

    def panel(title: str, label: str, series: Any) -> Panel:
        curves = [Curve(o.name, hours, [float(v) for v in series(o)]) for o in found.outcomes]
        return Panel(title, "hours", label, curves, steps=True, x_every=every)

    spent = panel("spent", "USD", lambda o: np.cumsum(o.usd_per_hour) * found.scenario.step_hours)
    turns = _total(found)
    day = max(1, round(24 / found.scenario.step_hours))
    missed = panel(
        "turns outside objectives, mean of the last day",
        "% of turns",
        lambda o: _trailing((1 - o.within_share) * turns, day) / _trailing(turns, day) * 100,
    )
    missed = replace(missed, linear_below=_LEAST_MISSED)
    rate = panel("cost", "USD per hour", lambda o: o.usd_per_hour)
    total = Curve("all pools", hours, [float(v) for v in turns])
    return [spent, rate, missed, Panel("demand", "hours", "turns per second", [total], steps=True, x_every=every)]


def _trailing(values: Any, width: int) -> Any:
    """At each step the mean of so many steps that end there, of fewer at the beginning."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)
