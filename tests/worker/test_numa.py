"""Does a worker run where its memory is?  On trees of sysfs as machines of several chips show them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
from berth_worker.server.numa import Binding, Node, choose, parse_list, read_nodes
from hypothesis import given

GIB = 1 << 30
XEON_2S = {0: ("0-23,48-71", 180, 20), 1: ("24-47,72-95", 90, 30)}  # two chips of 24 cores, hyper-threads beside them
EPYC_NPS4 = {0: ("0-15", 20, 0), 1: ("16-31", 50, 0), 2: ("32-47", 40, 9), 3: ("48-63", 10, 0)}
GRAVITON = {0: ("0-63", 100, 10)}
WITH_CXL = {0: ("0-31", 60, 0), 1: ("32-63", 70, 0), 2: ("", 500, 0)}  # node 2 has memory alone


def tree(folder: Path, machine: dict[int, tuple[str, int, int]]) -> Path:
    """/sys/devices/system/node: each node's CPUs, and GiB that are free and that hold pages of files."""
    folder.mkdir(exist_ok=True)
    for node, (cpus, free, files) in machine.items():
        path = folder / f"node{node}"
        path.mkdir(parents=True)
        (path / "cpulist").write_text(cpus + "\n")
        fields = {"MemTotal": 192, "MemFree": free, "MemUsed": 1, "Active(file)": files - 1 if files else 0}
        fields["Inactive(file)"] = 1 if files else 0
        lines = [f"Node {node} {name + ':':15} {size << 20:8} kB" for name, size in fields.items()]
        (path / "meminfo").write_text("\n".join([*lines, f"Node {node} HugePages_Total:     0"]) + "\n")
    for name in ("online", "possible", "has_cpu"):
        (folder / name).write_text("0\n")
    return folder


def every_cpu(machine: dict[int, tuple[str, int, int]]) -> list[int]:
    return [cpu for cpus, _, _ in machine.values() for cpu in parse_list(cpus)]


def test_a_tree_is_read_as_the_kernel_writes_it(tmp_path: Path) -> None:
    first, second = read_nodes(tree(tmp_path, XEON_2S))
    assert first == Node(0, frozenset([*range(24), *range(48, 72)]), 200 * GIB)
    assert (second.id, len(second.cpus), second.free_bytes) == (1, 48, 120 * GIB)
    assert read_nodes(tmp_path / "no such folder") == []


@pytest.mark.parametrize(
    ("machine", "cpus", "memory", "threads", "wanted", "expected"),
    [
        (XEON_2S, None, None, 48, "auto", 0),  # 200 GiB against 120
        (XEON_2S, None, None, 96, "auto", None),  # one replica over both chips: nothing to gain by binding
        (XEON_2S, None, None, 96, "1", 1),
        (XEON_2S, range(24, 48), [1], 24, "auto", 1),  # the static CPU manager has chosen
        (XEON_2S, range(20, 30), None, 8, "auto", None),  # a mask over both chips that fits in neither
        (XEON_2S, range(20, 30), None, 6, "auto", 1),
        (XEON_2S, None, [1], 8, "auto", 1),  # memory of node 0 is not ours
        (XEON_2S, None, None, 8, "off", None),
        (EPYC_NPS4, None, None, 16, "auto", 1),
        (EPYC_NPS4, range(32), None, 16, "auto", 1),
        (EPYC_NPS4, None, None, 17, "auto", None),
        (WITH_CXL, None, None, 32, "auto", 1),
        (GRAVITON, None, None, 8, "auto", None),  # one node: there is no choice
        (GRAVITON, range(8), None, 8, "0", 0),
        ({}, range(4), None, 4, "auto", None),
    ],
)
def test_a_replica_gets_the_node_with_the_most_free_memory_of_those_that_have_its_threads(
    tmp_path: Path,
    machine: dict[int, tuple[str, int, int]],
    cpus: range | None,
    memory: list[int] | None,
    threads: int,
    wanted: str,
    expected: int | None,
) -> None:
    allowed = every_cpu(machine) if cpus is None else cpus
    binding = choose(read_nodes(tree(tmp_path / "node", machine)), allowed, memory, threads, wanted)
    assert binding.node == expected
    assert binding.cpus <= set(allowed)
    if expected is not None:
        assert binding.cpus == set(parse_list(machine[expected][0])) & set(allowed)


def test_a_replica_over_two_chips_is_told_what_would_be_better(tmp_path: Path) -> None:
    binding = choose(read_nodes(tree(tmp_path, XEON_2S)), every_cpu(XEON_2S), None, 96)
    assert binding.advice.startswith("96 threads on 2 NUMA nodes of at most 48 usable CPUs")
    assert choose(read_nodes(tmp_path), every_cpu(XEON_2S), None, 96, "off") == Binding()


@pytest.mark.parametrize(("wanted", "says"), [("2", "0, 1"), ("7", "0, 1")])
def test_a_node_that_is_not_ours_is_refused_with_those_that_are(tmp_path: Path, wanted: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"--numa-node: found {wanted}; this worker may use {says}$"):
        choose(read_nodes(tree(tmp_path, WITH_CXL)), range(64), None, 8, wanted)


@given(st.sets(st.integers(0, 200)))
def test_lists_are_parsed_however_they_are_cut(numbers: set[int]) -> None:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    assert parse_list(text + "\n") == sorted(numbers)


BIND = """
import os, sys, threading
from pathlib import Path
from berth_worker.server.numa import bind

seen, bound = [], threading.Event()
def look():
    bound.wait()
    seen.append(sorted(os.sched_getaffinity(0)))
before = threading.Thread(target=look)
before.start()
binding = bind("auto", 1, 2, Path(sys.argv[1]), Path(sys.argv[2]))
bound.set()
after = threading.Thread(target=look)
after.start()
before.join()
after.join()
print(binding.node, sorted(os.sched_getaffinity(0)), *seen)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor leaves no choice")
def test_every_thread_stays_on_the_node_those_before_and_those_after(tmp_path: Path) -> None:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    machine = {0: (str(first), 5, 0), 1: (str(second), 10, 0)}
    (tmp_path / "status").write_text("Name:\tpython\nMems_allowed_list:\t0-1\n")
    command = [sys.executable, "-c", BIND, str(tree(tmp_path / "node", machine)), str(tmp_path / "status")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == f"1 [{second}] [{second}] [{second}]\n"
