"""In which form does a command answer?  A table for people; JSON or YAML, with the API's names, for programs."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import typer
import yaml
from rich.console import Console

_WIDTH_WITHOUT_TERMINAL = 140


class TableFormat(StrEnum):
    """Choices of `-o` where a table is the default."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def print_data(data: Mapping[str, Any] | Sequence[Any], *, as_yaml: bool) -> None:
    """Print JSON data on stdout."""
    if as_yaml:
        typer.echo(to_yaml(data), nl=False)
    else:
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def to_yaml(data: Mapping[str, Any] | Sequence[Any]) -> str:
    """YAML as a person would write it: fields in the order given."""
    return yaml.safe_dump(data, sort_keys=False, width=120, allow_unicode=True)


def console(*, err: bool = False) -> Console:
    """A console that does not fold tables to 80 columns where there is no terminal to say how wide it is."""
    stream = sys.stderr if err else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH_WITHOUT_TERMINAL
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)
