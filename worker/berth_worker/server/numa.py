"""On which NUMA node does this worker run?  Memory of another chip is read at about half the speed.

Decoding reads all weights for every token, so a replica belongs on one node with its threads and its memory, and a
machine of two chips wants two replicas.  Binding is by affinity alone, set before the model is loaded: every later
thread inherits it, and the kernel gives memory from the node of the thread that first writes it, or from another if
that is full.  No numactl is needed, and no privilege.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Binding", "Node", "bind", "choose", "free_bytes", "parse_list", "read_nodes"]

NODES = Path("/sys/devices/system/node")
STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Node:
    """One NUMA node."""

    id: int
    cpus: frozenset[int]
    """Empty for memory without a processor, such as CXL's."""
    free_bytes: int
    """Memory that is free or holds pages of files that nobody needs."""


@dataclass(frozen=True, slots=True)
class Binding:
    """Where a worker is to run."""

    node: int | None = None
    """None: it stays where the system puts it."""
    cpus: frozenset[int] = frozenset()
    advice: str = ""
    """What would be better, if something would."""


def read_nodes(folder: Path = NODES) -> list[Node]:
    """The nodes of this machine, in order; none where the system does not say."""
    nodes = []
    for path in folder.glob("node[0-9]*"):
        try:
            cpus = parse_list((path / "cpulist").read_text())
            nodes.append(Node(int(path.name.removeprefix("node")), frozenset(cpus), _free(path / "meminfo")))
        except (OSError, ValueError):
            continue  # taken out while it was read
    return sorted(nodes, key=lambda node: node.id)


def choose(
    nodes: Sequence[Node], cpus: Iterable[int], memory: Iterable[int] | None, threads: int, wanted: str = "auto"
) -> Binding:
    """The node for a worker of so many threads.

    cpus: those that it may run on; memory: the nodes that it may have memory of, None for all; wanted: a node's number,
    "auto" for the one with the most free memory of those that have a processor for each thread, or "off".
    Raises ValueError for a node that is not there, or not this worker's to use.
    """
    allowed, banks = frozenset(cpus), None if memory is None else frozenset(memory)
    usable = [
        Node(node.id, node.cpus & allowed, node.free_bytes)
        for node in nodes
        if node.cpus & allowed and (banks is None or node.id in banks)
    ]
    if wanted == "off":
        return Binding()
    if wanted != "auto":
        found = next((node for node in usable if node.id == int(wanted)), None)
        if found is None:
            ids = ", ".join(str(node.id) for node in usable) or "none"
            raise ValueError(f"--numa-node: found {wanted}; this worker may use {ids}")
        return Binding(found.id, found.cpus)
    if len(nodes) < 2:
        return Binding()
    fitting = [node for node in usable if len(node.cpus) >= threads]
    if fitting:
        best = max(fitting, key=lambda node: (node.free_bytes, -node.id))
        return Binding(best.id, best.cpus)
    most = max((len(node.cpus) for node in usable), default=0)
    return Binding(
        advice=f"{threads} threads on {len(usable)} NUMA nodes of at most {most} usable CPUs: much of what is read "
        "comes from another chip; run a replica on each node (--numa-node), or give each fewer CPUs"
        if most
        else ""
    )


def bind(wanted: str, threads: int | None, usable: int, nodes: Path = NODES, status: Path = STATUS) -> Binding:
    """Choose a node, and keep all threads of this process on its processors; those that they start stay there too.

    threads: asked for, or None for the `usable` ones.  Call before the model is loaded.  Raises ValueError as `choose`
    does.
    """
    if not hasattr(os, "sched_getaffinity"):
        return Binding()
    binding = choose(read_nodes(nodes), os.sched_getaffinity(0), _memory_nodes(status), threads or usable, wanted)
    if binding.node is not None:
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(task.name), binding.cpus)
    return binding


def free_bytes(node: int, folder: Path = NODES) -> int | None:
    """Bytes that the node has free now; None if it does not say."""
    return next((found.free_bytes for found in read_nodes(folder) if found.id == node), None)


def parse_list(text: str) -> list[int]:
    """Numbers as the kernel lists them, such as "0-3,8"."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _free(path: Path) -> int:
    """Of a node's meminfo, whose lines read "Node 0 MemFree:  123 kB"."""
    fields = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        fields[name.split()[-1]] = int(value.split()[0]) * 1024
    return fields["MemFree"] + fields.get("Inactive(file)", 0) + fields.get("Active(file)", 0)


def _memory_nodes(status: Path) -> list[int] | None:
    """The nodes whose memory a cpuset leaves to this process; None if the system does not say."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None
    return next((parse_list(line.partition(":")[2]) for line in lines if line.startswith("Mems_allowed_list:")), None)
