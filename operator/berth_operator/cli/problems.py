"""What went wrong, whose part is it, and which exit code says so?  1: it failed; 2: the input must change."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

import typer

OK = 0
FAILED = 1
BAD_INPUT = 2


@dataclass(frozen=True, slots=True)
class InputProblem:
    """One thing that a person must change in what they gave us."""

    where: str
    """File and document: `pools.yaml` or `pools.yaml document 3`."""
    item: str
    """The object: `InferencePool default/chat`; empty where the document does not say."""
    field: str
    """Path of the field: `spec.workload.demand`; empty where the whole object is meant."""
    message: str
    """What was found, and what would be right."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.item, self.field, self.message) if part)


def complain(problems: Iterable[object]) -> None:
    """Print each problem as one line on stderr."""
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)


def remark(text: str) -> None:
    """Print something worth knowing, that is no error, on stderr."""
    typer.echo(f"note: {text}", err=True)


def leave(code: int, *problems: object) -> NoReturn:
    """End the command with an exit code, after its problems."""
    complain(problems)
    raise typer.Exit(code)
