"""`berth crossover MODEL`: what do tokens cost on each class as concurrency grows, and where do the lines cross?"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from berth_operator.api import (
    CapacityType,
    Effective,
    HardwareClass,
    InferencePool,
    Quantization,
    ServingProfile,
    format_duration,
    parse_decimal,
    resolve,
    spec_problems,
)
from berth_operator.api.inference_pool import WorkloadClass
from berth_operator.catalog import CATALOG, hardware_class
from berth_operator.catalog.sanity import sift
from berth_operator.catalog.whatif import SETS, implied
from berth_operator.catalog.whatif import profiles as profiles_of
from berth_operator.cli.bench import Quantized
from berth_operator.cli.output import Fitting, TableFormat, console, print_data
from berth_operator.cli.pictures import Curve, Panel, check_picture, draw
from berth_operator.cli.problems import BAD_INPUT, FAILED, OK, complain, leave, remark
from berth_operator.cli.snapshots import gather
from berth_operator.cluster.kube import ApiError
from berth_operator.economics.crossover import (
    Cost,
    Crossover,
    Line,
    cheapest,
    concurrencies,
    crossings,
    crossover,
    with_prices,
)
from berth_operator.planner.architectures import ARCHITECTURES, closest_names

_CASES = {
    "busy": "always busy: so many requests in flight, nobody pauses",
    "idle": "with idle time: so many sessions, each of which pauses between its turns, p99 kept, whole nodes paid",
}
_MOST_COLUMNS = 9


def command(
    model: Annotated[str, typer.Argument(help="Model name, such as llama-3.1-8b-instruct")],
    files: Annotated[
        list[str] | None,
        typer.Option("--file", "-f", help="Hardware classes and profiles; default: the catalog's that plans may use"),
    ] = None,
    from_cluster: Annotated[
        bool, typer.Option("--from-cluster", help="The cluster's classes, prices in force and profiles")
    ] = False,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="Default: $KUBECONFIG, else ~/.kube/config", show_default=False)
    ] = None,
    hardware: Annotated[
        list[str] | None, typer.Option("--hardware", help="Only these classes; what-if ones of the catalog too")
    ] = None,
    prices: Annotated[
        list[str] | None, typer.Option("--price", help="CLASS=USD: what if a node of it cost so much an hour?")
    ] = None,
    what_if: Annotated[
        str | None, typer.Option("--what-if-set", help="Take figures in circulation for true: news-2026-04")
    ] = None,
    spot: Annotated[bool, typer.Option("--spot", help="Lines for spot prices, too")] = False,
    quantization: Annotated[Quantized, typer.Option()] = Quantized.INT8,
    workload: Annotated[WorkloadClass, typer.Option(help="Defaults of what follows")] = WorkloadClass.AGENTIC,
    prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Of a request, cached ones included")] = None,
    output_tokens: Annotated[int | None, typer.Option(min=1, help="Of a request")] = None,
    cached_percent: Annotated[int | None, typer.Option(min=0, max=100, help="Of the prompt")] = None,
    first_token: Annotated[str | None, typer.Option(help="Objective: p99 of the first token, such as 800ms")] = None,
    between_tokens: Annotated[str | None, typer.Option(help="Objective: p99 between tokens, such as 60ms")] = None,
    think_time: Annotated[str, typer.Option(help="Mean pause of a session between turns")] = "2s",
    utilisation: Annotated[
        int,
        typer.Option(min=1, max=100, help="Percent of the hours that have demand at all, for the case with idle time"),
    ] = 100,
    most: Annotated[int, typer.Option("--max-concurrency", min=1, max=100_000)] = 512,
    picture: Annotated[Path | None, typer.Option(help="Draw to this PNG or SVG file")] = None,
    output: Annotated[TableFormat, typer.Option("--output", "-o")] = TableFormat.TABLE,
) -> None:
    """Compare the price of generated tokens on every class, at each concurrency.

    Exit code: 0, or 2 where something in the input must change (the rest is compared all the same).
    """
    check_picture(picture)
    shape = {"promptTokens": prompt_tokens, "outputTokens": output_tokens, "cachedPromptPercent": cached_percent}
    objectives = {"timeToFirstTokenP99": first_token, "interTokenLatencyP99": between_tokens}
    effective = _workload(model, workload, shape, objectives, think_time)
    asked = _prices(prices or ())
    classes, profiles, sound = _hardware(files, hardware, from_cluster, kubeconfig, asked)
    if what_if:
        profiles = (*_claimed(what_if, model, Quantization(quantization.value), classes), *profiles)
    if model not in ARCHITECTURES and not any(p.spec.model == model for p in profiles):
        near = ", ".join(closest_names(model) or sorted(ARCHITECTURES)[:5])
        leave(BAD_INPUT, f"{model}: not in the model catalogue and no ServingProfile names it; known are: {near}")
    types = (CapacityType.ON_DEMAND, CapacityType.SPOT) if spot else (CapacityType.ON_DEMAND,)
    found = crossover(
        effective,
        Quantization(quantization.value),
        with_prices(classes, asked),
        profiles,
        concurrencies(most),
        capacity_types=types,
        utilisation=utilisation / 100,
    )
    if output is TableFormat.TABLE:
        _show(console(), found, effective, utilisation)
    else:
        print_data(_data(found, effective, utilisation), as_yaml=output is TableFormat.YAML)
    if picture:
        draw(picture, _title(effective), [_panel(found, case) for case in _CASES])
    raise typer.Exit(OK if sound else BAD_INPUT)


# --- Input ----------------------------------------------------------------------------------------------------------


_OPTIONS = {
    "name": "MODEL",
    "promptTokens": "--prompt-tokens",
    "outputTokens": "--output-tokens",
    "thinkTime": "--think-time",
    "timeToFirstTokenP99": "--first-token",
    "interTokenLatencyP99": "--between-tokens",
}
"""By the field of a pool that an option states."""


def _workload(
    model: str,
    workload: WorkloadClass,
    shape: Mapping[str, int | None],
    objectives: Mapping[str, str | None],
    think_time: str,
) -> Effective:
    spec = {
        "model": {"name": model, "source": "hf://none/none"},
        "workload": {
            "class": workload.value,
            "shape": {key: value for key, value in shape.items() if value is not None},
            "demand": {"concurrentSessions": 1, "thinkTime": think_time},
        },
        "objectives": {key: value for key, value in objectives.items() if value is not None},
    }
    try:
        effective = resolve(InferencePool.model_validate({"spec": spec}).spec)
    except ValidationError as error:
        leave(BAD_INPUT, *map(_wrong_option, error.errors()))
    if problems := spec_problems(effective):
        leave(BAD_INPUT, *(problem.message for problem in problems))
    return effective


def _wrong_option(details: Mapping[str, Any]) -> str:
    """One pydantic error in the words of the command line."""
    field, found, text = details["loc"][-1], details["input"], str(details["msg"]).removeprefix("Value error, ")
    if field == "name":
        near = closest_names(str(found).lower()) or sorted(ARCHITECTURES)[:5]
        return f"{found}: model names are of lower-case letters, digits, '-' and '.'; known are: {', '.join(near)}"
    shown = text if repr(found) in text else f"found {found!r}: {text[:1].lower()}{text[1:]}"
    return f"{_OPTIONS.get(field, field)}: {shown}"


def _prices(given: Iterable[str]) -> dict[str, Decimal]:
    prices = {}
    for text in given:
        name, _, usd = text.partition("=")
        try:
            prices[name] = parse_decimal(usd)
        except ValueError:
            leave(BAD_INPUT, f"--price: found {text!r}: write CLASS=USD, such as l4=0.805")
        if prices[name] <= 0:
            leave(BAD_INPUT, f"--price: found {text!r}: a price is above zero")
    return prices


def _hardware(
    files: Sequence[str] | None,
    names: Sequence[str] | None,
    from_cluster: bool,
    kubeconfig: Path | None,
    prices: Mapping[str, Decimal],
) -> tuple[list[HardwareClass], tuple[ServingProfile, ...], bool]:
    """Classes, profiles, and whether all input was sound."""
    profiles: tuple[ServingProfile, ...] = ()
    sound = True
    classes: list[HardwareClass] = []
    if files or from_cluster:
        try:
            inputs = gather(files or [], from_cluster=from_cluster, kubeconfig=kubeconfig)
        except ApiError as error:
            leave(FAILED, f"the cluster cannot be read: {error}")
        complain(inputs.problems)
        for text in inputs.remarks:
            remark(text)
        sound = not inputs.problems
        if files and not inputs.snapshot.hardware_classes:
            remark("there is no HardwareClass among the objects: the catalog's are compared")
        classes, profiles = list(inputs.snapshot.hardware_classes), inputs.snapshot.serving_profiles
    known = {item.metadata.name: item for item in classes}
    known = {name: hardware_class(entry) for name, entry in CATALOG.items()} | known
    for name in (*(names or ()), *prices):
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, 1, cutoff=0.4)
            leave(BAD_INPUT, f"{name}: there is no such class" + (f"; did you mean {near[0]}?" if near else ""))
    if names:
        chosen = {*names, *prices}
    elif classes:
        chosen = {item.metadata.name for item in classes} | prices.keys()
    else:
        chosen = {name for name, entry in CATALOG.items() if not entry.what_if} | prices.keys()
    return [known[name] for name in sorted(chosen)], profiles, sound


def _claimed(
    name: str, model: str, quantization: Quantization, classes: Sequence[HardwareClass]
) -> list[ServingProfile]:
    """Profiles of a what-if set, with a remark for each claim that cannot be true."""
    if name not in SETS:
        leave(BAD_INPUT, f"--what-if-set: found {name!r}: there is {', '.join(SETS)}")
    found = SETS[name]
    if model != found.model:
        leave(BAD_INPUT, f"--what-if-set {name} is about {found.model}: ask for that model")
    known = {item.metadata.name: item for item in classes}
    claimed = [p for p in profiles_of(found, quantization) if p.spec.hardware_class in known]
    for claim in found.claims:
        if way := known.get(claim.hardware_class):
            usd = way.spec.capacity[0].usd_per_hour
            per_million, needed = implied(claim, usd)
            remark(
                f"{name}: {claim.hardware_class} at {claim.tokens_per_second:f} tokens/s and {usd:f} USD/h is"
                f" {per_million:.2f} USD per million tokens; the claimed {claim.usd_per_million_tokens:f} takes"
                f" {needed:.0f} tokens/s, {needed / claim.tokens_per_second:.1f} times as many"
            )
    for fault in sift(classes, claimed).faults:
        if fault.reason == "AboveRoofline" and "prefill" not in fault.field:
            remark(f"{name}: {fault.hardware_class}: {fault.field}: {fault.message}")
    return claimed


# --- Output ---------------------------------------------------------------------------------------------------------


def _title(effective: Effective) -> str:
    return (
        f"{effective.model}: {effective.prompt_tokens} tokens in ({effective.cached_prompt_percent}% cached),"
        f" {effective.output_tokens} out; p99 first token {format_duration(effective.time_to_first_token_p99)},"
        f" between tokens {format_duration(effective.inter_token_latency_p99)}"
    )


def _case_title(case: str, effective: Effective, utilisation: int) -> str:
    text = f"USD per million generated tokens, {_CASES[case]}"
    if case == "idle":
        text += f"; pause {format_duration(effective.think_time)}, demand in {utilisation}% of the hours"
    return text


def _show(to: Console, found: Crossover, effective: Effective, utilisation: int) -> None:
    to.print(Text(_title(effective), style="bold"))
    for case in _CASES:
        to.print()
        to.print(Text(_case_title(case, effective, utilisation)))
        to.print(Fitting(_table(found, case)))
        for text in _in_words(found, case):
            to.print(Text(text))
    to.print()
    for item in found.left_out:
        to.print(Text(f"{item.hardware_class} has no line: {item.reason}", style="dim"))
    if any(line.estimated for line in found.lines):
        to.print(Text("*: speed estimated by roofline, not measured on that hardware.", style="dim"))


def _table(found: Crossover, case: str) -> Table:
    shown = _columns(found.concurrencies)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("HARDWARE", no_wrap=True)
    table.add_column("USD/H", justify="right", no_wrap=True)
    for index in shown:
        table.add_column(str(found.concurrencies[index]), justify="right", no_wrap=True)
    best = {
        index: min((c.usd_per_million_tokens for line in found.lines if (c := _cost(line, index, case))), default=0.0)
        for index in shown
    }
    order = sorted(found.lines, key=lambda line: [_sort_key(line, index, case) for index in shown])
    for line in order:
        cells = []
        for index in shown:
            cost = _cost(line, index, case)
            lowest = cost is not None and cost.usd_per_million_tokens <= best[index] * (1 + 1e-9)
            cells.append(Text(_usd(cost), style="bold green" if lowest else ""))
        table.add_row(line.name + ("*" if line.estimated else ""), f"{line.usd_per_hour:f}", *cells)
    return table


def _sort_key(line: Line, index: int, case: str) -> float:
    cost = _cost(line, index, case)
    return math.inf if cost is None else cost.usd_per_million_tokens


def _columns(at: Sequence[int]) -> list[int]:
    """Powers of two, thinned out to what fits a screen; the first and the last always."""
    powers = [i for i, n in enumerate(at) if n & (n - 1) == 0 or i == len(at) - 1]
    stride = -(-len(powers) // _MOST_COLUMNS)
    return sorted({*powers[::-1][::stride], 0})


def _in_words(found: Crossover, case: str) -> Iterable[str]:
    steps = cheapest(found, case)
    if not steps:
        yield "No class can serve this within the objectives."
        return
    for before, after in zip([None, *steps], steps, strict=False):
        where = "Cheapest at 1" if before is None else f"From {after.concurrency}"
        yield f"{where}: {after.name}, {_number(after.usd_per_million_tokens)} USD per million tokens."


def _data(found: Crossover, effective: Effective, utilisation: int) -> dict[str, Any]:
    return {
        "model": effective.model,
        "workload": {**effective.to_api(), "thinkTime": format_duration(effective.think_time)},
        "utilisationPercent": utilisation,
        "lines": [
            {
                "hardwareClass": line.hardware_class,
                "capacityType": line.capacity_type.value,
                "usdPerHour": f"{line.usd_per_hour:f}",
                "estimated": line.estimated,
                "points": [
                    {"concurrency": p.concurrency, "busy": _cost_data(p.busy), "idle": _cost_data(p.idle)}
                    for p in line.points
                ],
            }
            for line in found.lines
        ],
        "cheapest": {
            case: [
                {
                    "fromConcurrency": c.concurrency,
                    "line": c.name,
                    "usdPerMillionTokens": _number(c.usd_per_million_tokens),
                }
                for c in cheapest(found, case)
            ]
            for case in _CASES
        },
        "crossings": {
            case: [{"concurrency": c.concurrency, "from": c.first, "to": c.then} for c in crossings(found, case)]
            for case in _CASES
        },
        "leftOut": [{"hardwareClass": item.hardware_class, "reason": item.reason} for item in found.left_out],
    }


def _cost_data(cost: Cost | None) -> dict[str, Any] | None:
    if cost is None:
        return None
    return {
        "usdPerMillionTokens": _number(cost.usd_per_million_tokens),
        "nodes": cost.nodes,
        "tokensPerSecond": _number(cost.tokens_per_second),
    }


def _panel(found: Crossover, case: str) -> Panel:
    curves = [
        Curve(
            line.name,
            found.concurrencies,
            [
                None if (c := _cost(line, i, case)) is None else c.usd_per_million_tokens
                for i in range(len(line.points))
            ],
            dashed=line.capacity_type is CapacityType.SPOT,
        )
        for line in found.lines
    ]
    title = "always busy" if case == "busy" else "with idle time"
    unit = "requests in flight" if case == "busy" else "sessions"
    return Panel(title, unit, "USD per million tokens", curves, logarithmic=True)


def _cost(line: Line, index: int, case: str) -> Cost | None:
    point = line.points[index]
    return point.busy if case == "busy" else point.idle


def _usd(cost: Cost | None) -> str:
    return "-" if cost is None else _number(cost.usd_per_million_tokens)


def _number(value: float) -> str:
    """Three digits that say something, never an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 0.001 else f"{value:.6f}"
