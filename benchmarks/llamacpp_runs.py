"""How fast is llama.cpp at one case, in which of its settings is it fastest, and how much memory does it take?

Each run is a process of llama-bench or llama-batched-bench with one repetition, so that runs interleave with ours.
Neither counts sampling; both warm up before they measure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from _common import progress
from peers import LlamaCpp, llama_cpp

__all__ = ["Case", "Setting", "candidates", "peak_memory", "peak_of", "run"]

_PEAK = """\
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


@dataclass(frozen=True)
class Setting:
    """What a user can turn to make llama.cpp faster."""

    variant: str = "native"
    repack: bool = True
    flash: bool = True
    kv: str = "f16"
    huge_pages: bool = False

    def __str__(self) -> str:
        words = [self.variant, "fa" if self.flash else "no-fa", f"kv-{self.kv}"]
        return " ".join([*words, *([] if self.repack else ["no-repack"]), *(["hugetlb"] if self.huge_pages else [])])


@dataclass(frozen=True)
class Case:
    """`batch` streams that decode `decode` tokens, or (decode 0) one prompt of `prompt` tokens, at a depth."""

    model: Path
    batch: int = 1
    decode: int = 0
    prompt: int = 0
    depth: int = 0
    shared: bool = False


def run(case: Case, setting: Setting, threads: int) -> float:
    """Tokens a second, of all streams together; 0 if llama.cpp fails at it in this setting."""
    tools = llama_cpp()
    flash = "1" if setting.flash else "0"
    common = ["-m", str(case.model), "-t", str(threads), "-ctk", setting.kv, "-ctv", setting.kv]
    if case.batch == 1:
        sizes = ["-p", str(case.prompt), "-n", str(case.decode), "-d", str(case.depth)]
        repack = ["--repack", "1" if setting.repack else "0"]
        command = tools.command("llama-bench", *common, *sizes, *repack, "-fa", flash, "-r", "1", "-o", "jsonl")
        return next((float(line["avg_ts"]) for line in _lines(tools, command, setting)), 0.0)
    # A depth of 0 is not to be had: batched-bench reads a prompt for each stream.  Ours then stands at the same depth.
    depth = max(1, case.depth)
    context = (depth if case.shared else case.batch * depth) + case.batch * (case.decode + 8)
    sizes = ["-npp", str(depth), "-ntg", str(case.decode), "-npl", str(case.batch), "-c", str(context + 256)]
    # unified: one KV buffer for all streams, the shared prefix in it once; ubatch as large as a prompt's chunk of ours
    shared = ["-pps", "-kvu"] if case.shared else []
    repack = [] if setting.repack else ["--no-repack"]
    more = ["-fa", "on" if setting.flash else "off", "--output-format", "jsonl"]
    command = tools.command("llama-batched-bench", *common, *sizes, *shared, *repack, *more)
    return next((float(line["speed_tg"]) for line in _lines(tools, command, setting)), 0.0)


def candidates(case: Case, threads: int, keep: int, scans: int) -> list[Setting]:
    """The `keep` fastest settings of a scan: one thing is turned at a time, the best of `scans` runs counts."""
    seen: dict[Setting, float] = {}

    def best(settings: list[Setting]) -> Setting:
        for setting in settings:
            if setting not in seen:
                progress(f"scan: {case.model.stem}, {setting}")
                seen[setting] = max(run(case, setting, threads) for _ in range(scans))
        return max(settings, key=lambda setting: seen[setting])

    variants = list(llama_cpp().variants)
    chosen = best([Setting(variant=variant) for variant in variants] + [Setting(variants[0], repack=False)])
    chosen = best([chosen, replace(chosen, flash=False), replace(chosen, kv="q8_0")])
    best([chosen, replace(chosen, huge_pages=True)])
    progress("")
    if not any(seen.values()):
        raise SystemExit(f"llama.cpp runs in no setting: {case}")
    return sorted(seen, key=lambda setting: -seen[setting])[:keep]


def peak_memory(case: Case, setting: Setting, threads: int) -> float:
    """MiB that one run takes at its peak, file pages included."""
    tools = llama_cpp()
    sizes = ["-p", "0", "-n", str(case.decode), "-r", "1", "-t", str(threads)]
    command = tools.command("llama-bench", "-m", str(case.model), *sizes)
    return peak_of(command, tools.environment(setting.variant, setting.huge_pages))


def peak_of(command: list[str], environment: dict[str, str]) -> float:
    """MiB at the peak of a process.

    A small program of its own starts it: what the kernel counts for a process begins with the size of the one that
    started it, which is here a model's.
    """
    started = [sys.executable, "-I", "-c", _PEAK, *command]
    done = subprocess.run(started, check=False, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}")
    return int(done.stdout) / 1024


def _lines(tools: LlamaCpp, command: list[str], setting: Setting) -> Iterator[dict[str, float]]:
    environment = tools.environment(setting.variant, setting.huge_pages)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    for line in (done.stdout + "\n" + done.stderr).splitlines():
        if line.startswith("{"):
            yield json.loads(line)
