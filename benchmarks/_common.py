"""What do all benchmarks share?  Options, interleaved rounds, the machine they ran on, a table and a flat JSON."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from berth_worker.kernels.cpus import usable_cpus

__all__ = ["Report", "cpu_flags", "interleave", "options", "p99", "progress", "timed"]

_TELLING_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sve")


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark has: --quick, --json FILE, --threads N."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions and small cases: shows that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="of both sides (default: what is allowed)")
    return parser


def timed(function: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def interleave(rounds: int, cases: Mapping[str, Callable[[], float]], title: str) -> dict[str, list[float]]:
    """Run every case once a round, so that a slow moment of the machine hits all; each case's values, in order."""
    values: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        for name, run in cases.items():
            progress(f"{title}: round {number + 1}/{rounds}, {name}")
            values[name].append(run())
    progress("")
    return values


def p99(values: Sequence[float]) -> float:
    """The 99th percentile, by nearest rank."""
    return sorted(values)[max(math.ceil(len(values) * 0.99) - 1, 0)]


def progress(text: str) -> None:
    """Say on a terminal what runs now, over what was said before; empty: nothing more."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


class Report:
    """Figures by name, printed as they come; the JSON at the end is name -> number, without what the machine is."""

    def __init__(self, threads: int) -> None:
        self.machine = {
            "processor": _processor(),
            "flags": " ".join(flag for flag in _TELLING_FLAGS if flag in cpu_flags()),
            "cpus": str(usable_cpus()),
            "threads": str(threads),
            "system": platform.platform(),
            **{name: _version(name) for name in ("berth-worker", "torch", "transformers")},
            "python": platform.python_version(),
        }
        self.figures: dict[str, float] = {}
        print("\n".join(f"{key:>14}: {value}" for key, value in self.machine.items()), flush=True)

    def note(self, name: str, text: str) -> None:
        """Say something in words about the run: a peer's setting, a version."""
        self.machine[name] = text
        print(f"{name:>14}: {text}", flush=True)

    def figure(self, name: str, value: float) -> None:
        """One number."""
        self.figures[name] = float(f"{value:.4g}")
        print(f"  {name:<52} {self.figures[name]:>10g}", flush=True)

    def speeds(self, name: str, values: list[float]) -> float:
        """The median of some repetitions, the fastest and the slowest; returns the median."""
        median = statistics.median(values)
        self.figure(name, median)
        self.figures[f"{name}_best"] = float(f"{max(values):.4g}")
        self.figures[f"{name}_worst"] = float(f"{min(values):.4g}")
        return median

    def ratio(self, name: str, ours: list[float], peers: Mapping[str, list[float]]) -> None:
        """Median of ours over the best median among the peer's settings; the same of the best runs beside it."""
        fastest = max(peers, key=lambda setting: statistics.median(peers[setting]))
        self.figure(name, statistics.median(ours) / statistics.median(peers[fastest]))
        best = max(max(values) for values in peers.values())
        self.figures[f"{name}_of_best"] = float(f"{max(ours) / best:.4g}")
        self.note(f"{name}_peer", fastest)

    def write(self, path: Path | None) -> None:
        """Write the figures, if a file was asked for."""
        if path is not None:
            path.write_text(json.dumps(self.figures, indent=2) + "\n")


def cpu_flags() -> frozenset[str]:
    """What the processor says that it can do, in Linux's words."""
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features")).split())


def _processor() -> str:
    return _cpuinfo("model name") or platform.machine()


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
