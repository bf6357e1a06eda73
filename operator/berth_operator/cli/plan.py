"""`berth plan`: where would everything run, what would it cost, and why?  Nothing is changed anywhere."""

from pathlib import Path
from typing import Annotated

import typer

from berth_operator.cli.output import TableFormat, console, print_data
from berth_operator.cli.plan_diff import changes
from berth_operator.cli.plan_view import plan_data, print_plan
from berth_operator.cli.problems import BAD_INPUT, FAILED, OK, complain, leave, remark
from berth_operator.cli.snapshots import gather
from berth_operator.cluster.kube import ApiError
from berth_operator.planner import Plan


def command(
    files: Annotated[
        list[str] | None,
        typer.Option("--file", "-f", help="YAML file or folder with pools, classes and profiles; - is standard input"),
    ] = None,
    from_cluster: Annotated[
        bool, typer.Option("--from-cluster", help="Plan what is in the cluster; files win over objects of their name")
    ] = False,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Namespace of pools in files that name none")
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="Default: $KUBECONFIG, else ~/.kube/config", show_default=False)
    ] = None,
    summary: Annotated[bool, typer.Option("--summary", help="The fleet's table only, without candidates")] = False,
    output: Annotated[TableFormat, typer.Option("--output", "-o")] = TableFormat.TABLE,
) -> None:
    """Print where every pool would run, what that costs, why, and with --from-cluster what would change.

    Needs no cluster with -f.  Exit code: 0 all demand is placed, 1 some is not, 2 something in the input must change
    (the rest is planned all the same).
    """
    if not files and not from_cluster:
        leave(BAD_INPUT, "nothing to plan: name files with -f, or say --from-cluster")
    try:
        inputs = gather(
            files or [], from_cluster=from_cluster, namespace=namespace, kubeconfig=kubeconfig, check_nodes=True
        )
    except ApiError as error:
        leave(FAILED, f"the cluster cannot be read: {error}")
    complain(inputs.problems)
    for text in inputs.remarks:
        remark(text)
    result = inputs.plan()
    against = changes(result, inputs.snapshot) if from_cluster else None
    if output is TableFormat.TABLE:
        print_plan(console(), result, inputs.snapshot, summary=summary, against=against)
    else:
        print_data(plan_data(result, against), as_yaml=output is TableFormat.YAML)
    raise typer.Exit(_exit_code(result, bad_input=bool(inputs.problems)))


def _exit_code(result: Plan, *, bad_input: bool) -> int:
    pools = result.pools.values()
    if bad_input or any(pool.not_accepted for pool in pools):
        return BAD_INPUT
    short = any(pool.unserved_requests_per_second > 0 for pool in pools if not pool.effective.suspend)
    return FAILED if short else OK
