"""`berth hardware`: which kinds of node does the catalog know, and which of them does a cluster have?"""

import asyncio
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from berth_operator.catalog import CATALOG, Entry, manifest
from berth_operator.catalog.discover import Discovery, discover
from berth_operator.cli.cluster_objects import read_nodes
from berth_operator.cli.output import Fitting, TableFormat, console, print_data
from berth_operator.cli.problems import BAD_INPUT, FAILED, leave, remark
from berth_operator.cluster.kube import ApiError, Kube

app = typer.Typer(no_args_is_help=True, help="Hardware classes: those that ship, and those that a cluster calls for.")

Output = Annotated[TableFormat, typer.Option("--output", "-o", help="yaml and json can be applied")]


@app.command("list")
def list_classes(
    names: Annotated[list[str] | None, typer.Argument(help="Only these; default: all", show_default=False)] = None,
    output: Output = TableFormat.TABLE,
) -> None:
    """Show the hardware classes that ship, with the source of every figure in `-o yaml`.

    To use some: `berth hardware list l4 graviton4-c8g-4xl -o yaml | kubectl apply -f -`, or the chart berth-hardware.
    """
    for name in names or ():
        if name not in CATALOG:
            near = difflib.get_close_matches(name.lower(), CATALOG, 1, cutoff=0.4)
            leave(BAD_INPUT, f"{name}: the catalog has no such class" + (f"; did you mean {near[0]}?" if near else ""))
    entries = [CATALOG[name] for name in dict.fromkeys(names or CATALOG)]
    if output is TableFormat.TABLE:
        to = console()
        to.print(Fitting(_table(entries)))
        for entry in entries:
            if entry.what_if:
                to.print(Text(f"{entry.name} is for what-if questions only: {entry.what_if}."))
        to.print(Text("Figures are of the whole node; -: not published.  Prices: see source in -o yaml.", style="dim"))
    else:
        print_data(as_list([manifest(entry) for entry in entries]), as_yaml=output is TableFormat.YAML)


@app.command("discover")
def discover_classes(
    kubeconfig: Annotated[
        Path | None, typer.Option(help="Default: $KUBECONFIG, else ~/.kube/config", show_default=False)
    ] = None,
    output: Output = TableFormat.YAML,
) -> None:
    """Propose hardware classes from a cluster's nodes and Karpenter NodePools.  Nothing is written to it.

    Read the remarks, edit, then apply.
    """
    try:
        found = asyncio.run(_discover(kubeconfig))
    except ApiError as error:
        leave(FAILED, f"the cluster cannot be read: {error}")
    for text in found.remarks:
        remark(text)
    if output is TableFormat.TABLE:
        console().print(Fitting(_proposed_table(found)))
    else:
        print_data(as_list(found.proposals), as_yaml=output is TableFormat.YAML)


def as_list(manifests: Sequence[Any]) -> dict[str, Any]:
    """Manifests as one object that kubectl and `berth plan -f` take."""
    return {"apiVersion": "v1", "kind": "List", "items": list(manifests)}


async def _discover(kubeconfig: Path | None) -> Discovery:
    async with await Kube.connect(str(kubeconfig) if kubeconfig else None) as kube:
        found = await read_nodes(kube)
    return discover(CATALOG, found.nodes, found.node_pools)


def _table(entries: Sequence[Entry]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("NAME", no_wrap=True)
    table.add_column("CHIP", overflow="fold")
    table.add_column("NODE", overflow="fold")
    for heading in ("VCPUS", "GIB", "GB/S", "BF16\nTFLOPS", "INT8\nTOPS", "CHIP\nW", "USD/H"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("USE", overflow="fold")
    for e in entries:
        figures = (e.cpus, e.memory_gib, e.bandwidth_gbps, e.bf16_tflops, e.int8_tops, e.chip_watts, e.price_text)
        table.add_row(
            e.name,
            e.chip,
            e.instance_type or "-",
            *("-" if figure is None else str(figure) for figure in figures),
            Text("what-if" if e.rentable else "what-if, not rentable", style="yellow") if e.what_if else "plans",
        )
    return table


def _proposed_table(found: Discovery) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("NAME", "CHIP", "CAPACITY", "USD/H", "MAX NODES", "SELECTOR"):
        table.add_column(heading, overflow="fold")
    for body in found.proposals:
        for capacity in body["spec"]["capacity"]:
            table.add_row(
                body["metadata"]["name"],
                body["spec"]["chip"],
                capacity["type"],
                capacity["usdPerHour"],
                str(capacity.get("maxNodes", "no limit")),
                ", ".join(f"{key}={value}" for key, value in capacity["selector"].items()),
            )
    return table
