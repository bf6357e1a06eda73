"""`berth explain POOL`: why is it where it is?  One paragraph, then every candidate with its reason."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from berth_operator.api import Decision, InferencePool, InferencePoolStatus
from berth_operator.cli.explanation import paragraph
from berth_operator.cli.load_explained import corrected_profiles
from berth_operator.cli.output import Fitting, TableFormat, console, print_data, to_yaml
from berth_operator.cli.plan_view import candidate_table, pool_data
from berth_operator.cli.problems import BAD_INPUT, FAILED, OK, complain, leave, remark
from berth_operator.cli.snapshots import Inputs, gather, target_namespace
from berth_operator.cli.what_if import WhatIf, ask
from berth_operator.cluster.kube import ApiError
from berth_operator.planner import Snapshot
from berth_operator.status import pool_status


def command(
    pool: Annotated[str, typer.Argument(help="Name of the InferencePool, or NAMESPACE/NAME")],
    namespace: Annotated[str | None, typer.Option("--namespace", "-n")] = None,
    files: Annotated[
        list[str] | None, typer.Option("--file", "-f", help="Explain from these files instead of the cluster")
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="Default: $KUBECONFIG, else ~/.kube/config", show_default=False)
    ] = None,
    history: Annotated[
        bool, typer.Option("--history", help="What was decided about it, and when; from the cluster")
    ] = False,
    output: Annotated[TableFormat, typer.Option("--output", "-o")] = TableFormat.TABLE,
) -> None:
    """Say what a pool serves, where, why there, what was next best, and what would change that.

    Reads the decision in force from the cluster; with -f, plans the files instead and needs no cluster.
    """
    live = not files
    if "/" in pool:
        namespace, _, pool = pool.partition("/")
    try:
        namespace = namespace or target_namespace(from_cluster=live, kubeconfig=kubeconfig)
        inputs = gather(files or [], from_cluster=live, namespace=namespace, kubeconfig=kubeconfig)
    except ApiError as error:
        leave(FAILED, f"the cluster cannot be read: {error}")
    complain(inputs.problems)
    for text in inputs.remarks:
        remark(text)
    snapshot = inputs.snapshot
    found = _find(snapshot, f"{namespace}/{pool}")
    if history:
        _tell(found.status.history or [], output)
        raise typer.Exit(BAD_INPUT if inputs.problems else OK)
    status = _status(inputs, found, live=live)
    what_if = ask(snapshot, found)
    classes = {item.metadata.name: item for item in snapshot.hardware_classes}
    text = paragraph(found, status, classes, what_if, live=live)
    corrections = corrected_profiles(found, status, snapshot.serving_profiles, snapshot.now)
    if output is TableFormat.TABLE:
        to = console()
        to.print(Text(text))
        if status.candidates:
            to.print(Fitting(candidate_table(status.candidates)))
        for profile in corrections:
            to.print(Text(f"\nServingProfile {profile['metadata']['name']}, corrected (kubectl apply -f):\n"))
            typer.echo(to_yaml(profile), nl=False)
    else:
        data = {**_data(found, status, what_if, text), **({"correctedProfiles": corrections} if corrections else {})}
        print_data(data, as_yaml=output is TableFormat.YAML)
    raise typer.Exit(BAD_INPUT if inputs.problems else OK)


def _tell(decisions: Sequence[Decision], output: TableFormat) -> None:
    if output is not TableFormat.TABLE:
        print_data([decision.to_api() for decision in decisions], as_yaml=output is TableFormat.YAML)
    elif decisions:
        table = Table("TIME", "DECISION", "MESSAGE", box=None, pad_edge=False)
        for decision in decisions:
            table.add_row(decision.time, decision.reason, Text(decision.message))
        console().print(table)
    else:
        remark("nothing is recorded about it")


def _find(snapshot: Snapshot, key: str) -> InferencePool:
    pools = {item.key: item for item in snapshot.pools}
    if key not in pools:
        by_name = {item.metadata.name: item.key for item in snapshot.pools}  # a namespace in common is no likeness
        near = difflib.get_close_matches(key.rpartition("/")[2], by_name, 1)
        there = f"did you mean {by_name[near[0]]}?" if near else f"there are: {', '.join(sorted(pools)) or 'none'}"
        leave(BAD_INPUT, f"there is no InferencePool {key}: {there}")
    return pools[key]


def _status(inputs: Inputs, pool: InferencePool, *, live: bool) -> InferencePoolStatus:
    """The decision in force; where there is none yet, the one that a plan would make now."""
    current = pool.status.observed_generation
    if live and current is not None and pool.status.conditions:
        if current != pool.metadata.generation:
            remark(f"{pool.key} was changed, and the operator has not answered yet: this is the decision before")
        return pool.status
    if live:
        remark(f"the operator has not yet said anything about {pool.key}: this is what a plan would do now")
    return pool_status(pool, inputs.plan().pools[pool.key], (), inputs.snapshot.now)


def _data(pool: InferencePool, status: InferencePoolStatus, what_if: WhatIf, text: str) -> Mapping[str, Any]:
    demand = {str(factor): pool_data(other) for factor, other in what_if.at_demand}
    return {
        "namespace": pool.metadata.namespace,
        "name": pool.metadata.name,
        "explanation": text,
        "status": status.to_api(),
        "whatIf": {
            **({"withoutItsHardware": pool_data(what_if.without)} if what_if.without else {}),
            **({"atDemandTimes": demand} if demand else {}),
        },
    }
