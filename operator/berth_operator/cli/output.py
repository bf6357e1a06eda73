"""In which form does a command answer?  A table for people; JSON or YAML, with the API's names, for programs."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import typer
import yaml
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

_WIDTH_WITHOUT_TERMINAL = 140
_NARROWEST: Final = 12
"""Characters of a column of words, which are folded; what may not wrap, such as figures, takes what it takes."""
_ENDLESS: Final = 10_000


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
    return Console(file=stream, width=width, highlight=False, soft_wrap=False, markup=False, emoji=False)


class Fitting:
    """A table where it fits; else the last column below its row, or one line a column: no figure is ever cut off."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, to: Console, options: ConsoleOptions) -> RenderResult:
        """As rich asks for it."""
        table = self._table
        widths = [_least_width(column, to, options) + table.padding[1] + table.padding[3] for column in table.columns]
        words_last = [True] * (len(widths) - 1) + [False]
        lines = len(widths) + 1 if table.box else 0  # between columns, and at both edges
        if sum(widths) + lines <= options.max_width:
            yield table
        elif sum(widths[:-1]) <= options.max_width and [column.no_wrap for column in table.columns] == words_last:
            yield from _last_below(table, widths)
        else:
            yield from _line_by_line(table)


def _least_width(column: Column, to: Console, options: ConsoleOptions) -> int:
    found = [
        Measurement.get(to, options.update(max_width=_ENDLESS), cell)
        for cell in (column.header, column.footer, *column.cells)
    ]
    return max((m.maximum if column.no_wrap else min(m.minimum, _NARROWEST)) for m in found)


def _rows(table: Table) -> Iterator[tuple[Text, ...]]:
    yield from zip(*([_text(cell) for cell in column.cells] for column in table.columns), strict=True)
    if table.show_footer:
        yield tuple(_text(column.footer) for column in table.columns)


def _last_below(table: Table, widths: Sequence[int]) -> RenderResult:
    columns = table.columns[:-1]

    def line(cells: Iterable[Text]) -> Text:
        out = Text(no_wrap=True)
        for cell, column, width in zip(cells, columns, widths, strict=False):
            cell.align("right" if column.justify == "right" else "left", width - 2)
            out.append_text(Text("  ").join([Text(), cell]))
        return out

    yield Text()
    yield line(Text(str(column.header), style="bold") for column in columns)
    for *cells, last in _rows(table):
        yield line(cells)
        yield Padding(last, (0, 0, 0, 7))
    yield Text()


def _line_by_line(table: Table) -> RenderResult:
    headers = [str(column.header).replace("-\n", "").replace("\n", " ") for column in table.columns]
    yield Text()
    for title, *cells in _rows(table):
        yield Text.assemble("  ", (title.plain, "bold"))
        lines = Table.grid(padding=(0, 2, 0, 0))
        lines.add_column(no_wrap=True)
        lines.add_column(overflow="fold")
        for header, cell in zip(headers[1:], cells, strict=True):
            if cell.plain:
                lines.add_row(f"    {header}", cell)
        yield lines
    yield Text()


def _text(cell: object) -> Text:
    return cell.copy() if isinstance(cell, Text) else Text(str(cell))
