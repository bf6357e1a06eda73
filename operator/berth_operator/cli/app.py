"""Which commands are there?  Each command's own module does the work."""

import sys

import typer

from berth_operator.cli import crds

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Place Llama inference workers on the cheapest hardware that keeps their latency promise.",
    pretty_exceptions_enable=False,
)
app.command("crds")(crds.command)


@app.callback()
def _root() -> None:
    """Keep subcommands even while there is only one."""


def main() -> None:
    """Entry point of `berth`: exit code 0 done, 1 failed, 2 bad input."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
