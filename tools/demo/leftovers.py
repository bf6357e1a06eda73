"""Is anything of ours still there?  Every process that descends from this one, straight from /proc."""

from __future__ import annotations

import os
from pathlib import Path


def children(of: int | None = None) -> dict[int, str]:
    """Process id -> command line of every living descendant of a process (default: this one)."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # "PID (name) state PPID ...": the name may hold spaces and parentheses
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue  # it ended meanwhile
        if state != "Z":
            parents.setdefault(int(parent), []).append(int(stat.parent.name))
    found: dict[int, str] = {}
    waiting = [of or os.getpid()]
    while waiting:
        for pid in parents.get(waiting.pop(), ()):
            found[pid] = _command(pid)
            waiting.append(pid)
    return found


def living(pids: list[int]) -> list[int]:
    """Those of these processes that still run, whoever their parent is by now."""
    return [pid for pid in pids if _state(pid) not in ("", "Z")]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
