"""Which commands are there?  Each command's own module does the work."""

import sys

import typer

from berth_operator.cli import bench, crds, crossover, explain, hardware, plan, simulate

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Place Llama inference workers on the cheapest hardware that keeps their latency promise.",
    pretty_exceptions_enable=False,
)
app.command("plan")(plan.command)
app.command("explain")(explain.command)
app.command("crossover")(crossover.command)
app.add_typer(hardware.app, name="hardware")
app.command("simulate")(simulate.command)
app.command("bench")(bench.command)
app.command("crds")(crds.command)


def main() -> None:
    """Entry point of `berth`: exit code 0 done, 1 failed, 2 bad input."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
