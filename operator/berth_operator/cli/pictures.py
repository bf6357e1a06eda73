"""How is a curve drawn?  As PNG or SVG, by matplotlib: an optional dependency (`berth-operator[pictures]`)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from berth_operator.cli.problems import BAD_INPUT, FAILED, leave

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES: Final = (".png", ".svg")
_WIDEST: Final = 110
"""Characters of a line of the title: more would run into the legend."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One named line; y None where there is no value."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One set of axes; where curves meet, the first is on top."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    logarithmic: bool = False
    steps: bool = False
    x_every: float | None = None
    """Distance of ticks."""
    linear_below: float | None = None
    """Above it the y axis is logarithmic: for values that span decades and may be zero."""


def check_picture(path: Path | None) -> None:
    """End the command before its work where it could not draw afterwards."""
    if path is None:
        return
    if path.suffix.lower() not in SUFFIXES:
        leave(BAD_INPUT, f"--picture {path}: write a name that ends in {' or '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        leave(BAD_INPUT, f"--picture {path}: there is no folder {path.absolute().parent}")
    try:
        import matplotlib  # noqa: F401, PLC0415 - optional
    except ImportError:
        leave(FAILED, "--picture needs matplotlib: install berth-operator[pictures]")


def draw(path: Path, title: str, panels: Sequence[Panel], *, columns: int = 2) -> None:
    """Write the panels to one file.  The same data makes the same bytes."""
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    rows = -(-len(panels) // columns)
    with mpl.rc_context(
        {"svg.hashsalt": "berth", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(6.4 * min(columns, len(panels)), 4.2 * rows), layout="constrained")
        figure.suptitle(textwrap.fill(title, _WIDEST))
        axes = figure.subplots(rows, min(columns, len(panels)), squeeze=False)
        flat = [axis for row in axes for axis in row]
        for axis, panel in zip(flat, panels, strict=False):
            _panel(axis, panel)
        for axis in flat[len(panels) :]:
            axis.set_axis_off()
        _legend(figure, flat[0])
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
        figure.savefig(path, dpi=150, metadata=metadata)


def _panel(axis: Axes, panel: Panel) -> None:
    axis.set_title(panel.title, loc="left")
    axis.set_xlabel(panel.x_label)
    axis.set_ylabel(panel.y_label)
    for number, curve in enumerate(panel.curves):
        y = [float("nan") if value is None else value for value in curve.y]
        style = "--" if curve.dashed else "-"
        color, drawstyle = f"C{number % 10}", "steps-post" if panel.steps else "default"
        marker = None if panel.steps else "osv^D"[number // 10 % 5]
        axis.plot(
            curve.x,
            y,
            style,
            label=curve.name,
            color=color,
            drawstyle=drawstyle,
            marker=marker,
            markersize=3,
            linewidth=1.2,
            zorder=2 + 1 / (1 + number),
        )
    if panel.logarithmic:
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
    else:
        if panel.linear_below is not None:
            axis.set_yscale("symlog", linthresh=panel.linear_below)
            axis.yaxis.set_major_formatter("{x:g}")
        axis.set_ylim(bottom=0)
    if panel.x_every is not None:
        axis.set_xticks([n * panel.x_every for n in range(int(axis.get_xlim()[1] / panel.x_every) + 1)])
    axis.grid(visible=True, which="major", linewidth=0.3)


def _legend(figure: Figure, axis: Axes) -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize=8, frameon=False)
