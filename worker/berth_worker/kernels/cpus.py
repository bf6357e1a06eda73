"""How many threads may a step use?  What the affinity mask and the cgroup's CPU quota leave, whichever is less."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["usable_cpus"]


def usable_cpus(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """At least 1.  A quota of 2.5 counts as 2: a third thread would stand still half of the time, and hold up all."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(proc, cgroup)
    return max(1, affinity if quota is None else min(affinity, math.floor(quota)))


def _quota(proc: Path, cgroup: Path) -> float | None:
    """CPUs that this process's cgroup, or one above it, allows: cgroup v2's cpu.max or v1's cfs quota."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            roots = [cgroup, cgroup / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [cgroup / controllers, cgroup / "cpu"]
        else:
            continue
        for root in roots:
            folder = root / path.lstrip("/")
            for level in (folder, *folder.parents):
                limits.append(_limit(level))
                if level == root:
                    break
    found = [limit for limit in limits if limit is not None]
    return min(found) if found else None


def _limit(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        return None if quota_us <= 0 else quota_us / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
