"""Does the worker use the CPUs that it was given, and not those that the machine has?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from berth_worker.kernels.cpus import usable_cpus

AFFINITY = len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def tree(root: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    proc, cgroup = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(membership)
    for name, content in files.items():
        (cgroup / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroup / name).write_text(content)
    return proc, cgroup


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, 8),
        # a quota of any group above counts too
        ("0::/pod/worker\n", {"pod/cpu.max": "200000 100000\n", "pod/worker/cpu.max": "max 100000\n"}, 2),
        ("3:cpu,cpuacct:/pod\n", {"cpu/pod/cpu.cfs_quota_us": "400000", "cpu/pod/cpu.cfs_period_us": "100000"}, 4),
        ("3:cpu:/pod\n", {"cpu/pod/cpu.cfs_quota_us": "-1", "cpu/pod/cpu.cfs_period_us": "100000"}, 8),
        ("0::/\n", {"cpu.max": "garbage"}, 8),
    ],
)
def test_the_quota_of_the_cgroup_bounds_the_threads(
    tmp_path: Path, membership: str, files: dict[str, str], expected: int
) -> None:
    assert usable_cpus(*tree(tmp_path, membership, files)) == expected


def test_affinity_bounds_the_threads_without_cgroups(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path / "none", tmp_path / "none") == 8
