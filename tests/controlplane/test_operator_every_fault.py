"""Whatever call fails, whenever the operator dies, whatever its watches do: does it end where an undisturbed one ends?

After Sieve (Sun et al., OSDI 2022).  Each case is an operator of its own, on its own namespace and hardware classes of
one real cluster, behind a proxy that disturbs it; its story is a pool created, moved, and deleted.  Of every chapter
the children are compared with those of an undisturbed run.

The gate runs a fixed sample of the calls to disturb; BERTH_FAULTS=all runs all of them, and 1/5 to 5/5 a fifth each.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from berth_operator.cluster.cluster import Cluster
from berth_operator.cluster.kube import Kube
from berth_operator.cluster.kube import load_configuration as configuration_of
from berth_operator.cluster.resources import CHILDREN, HARDWARE_CLASSES, NAMESPACES, POOLS
from berth_operator.executor import Executor
from berth_operator.loop import Loop, LoopSettings
from berth_operator.planner import fleet as planned_fleet
from berth_operator.telemetry import Telemetry
from devcluster import ControlPlane, SimulatedNodePool, graviton4, on_demand
from devcluster.proxy import Call, Fault, Faults, FaultyProxy, Line, Lines, gone
from prometheus_client import CollectorRegistry

if TYPE_CHECKING:
    from conftest import Fleet

WANTED = os.environ.get("BERTH_FAULTS", "")
RECOVERY_SECONDS = 30.0
FAULT_SECONDS = 12.0
"""What a single fault can take by itself: retries of one request that is never answered."""
AT_ONCE = 12
NODES = 24
MODES = (Fault.REFUSED, Fault.CONFLICT, Fault.DELAYED, Fault.UNANSWERED, Fault.LOST)

Manifest = dict[str, Any]
Shape = dict[str, Any]
"""The children of a pool, without what differs between cases: names of the case, uids, times."""


@pytest.fixture(scope="module")
def cluster(fleet: Fleet) -> ControlPlane:
    """With nodes that only these tests use: one a case of each kind."""
    fleet.cluster.add_nodes(
        SimulatedNodePool("fault-cheap", NODES, "fault.cheap", "arm64", 16, "32Gi"),
        SimulatedNodePool("fault-dear", NODES, "fault.dear", "arm64", 16, "32Gi"),
    )
    return fleet.cluster


def _hardware(case: str, name: str, usd: str) -> Manifest:
    return graviton4(f"{case}-{name}", on_demand(usd, f"fault.{name}", maxNodes=NODES), labels={"case": case})


@dataclass
class Operator:
    """The operator's loop in this process, behind a proxy of its own; `kill` ends it as a crash would."""

    kubeconfig: Path
    folder: Path
    case: str
    faults: Faults
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    lives: int = 0

    async def start(self) -> None:
        self.lives += 1
        path = self.folder / f"{self.case}-{self.lives}.kubeconfig"
        self.faults.selectors = {"hardwareclasses": f"case={self.case}"}
        self._proxy = await FaultyProxy(self.kubeconfig, self.faults, path).__aenter__()
        self._proxy.calls = self.calls  # counted over all lives
        self.kube = Kube(await configuration_of(str(path)), attempts=3, request_seconds=2)
        self.cluster = Cluster(self.kube, self._wake, [self.case])
        telemetry = Telemetry(CollectorRegistry())
        executor = Executor(self.cluster, telemetry)
        self.loop = Loop(self.cluster, executor, telemetry, LoopSettings(debounce_s=0.05, interval_s=1.0))
        self._tasks = [asyncio.create_task(self.cluster.run()), asyncio.create_task(self.loop.run())]

    def _wake(self) -> None:
        self.loop.mark_dirty()

    async def kill(self) -> None:
        """Nothing that it began goes on; what the API server was told stays."""
        self.faults.cut = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.kube.close()
        await self._proxy.__aexit__()
        self.faults.cut = False

    async def restart(self) -> None:
        await self.kill()
        await self.start()


class Story:
    """One case: a pool created, moved, deleted."""

    def __init__(self, admin: Kube, operator: Operator) -> None:
        self.admin, self.operator, self.case = admin, operator, operator.case
        self.chapters: list[Shape] = []

    async def told(self) -> list[Shape]:
        """Tell it, and return the children at the end of each chapter."""
        await self.begin()
        await self.operator.start()
        try:
            await self.chapter("created", "cheap")
            await self.chapter("moved", "dear")
            await self._delete()
        finally:
            await self.operator.kill()
            await self.end()
        return self.chapters

    async def begin(self) -> None:
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.case}}
        await self.admin.request("POST", NAMESPACES.path(), body=namespace)
        for name, usd in (("cheap", "0.5"), ("dear", "0.9")):
            await self.admin.request("POST", HARDWARE_CLASSES.path(), body=_hardware(self.case, name, usd))

    async def end(self) -> None:
        for hardware in (await self.admin.list(HARDWARE_CLASSES, labels=f"case={self.case}")).items:
            await self.admin.request("DELETE", HARDWARE_CLASSES.path(None, hardware["metadata"]["name"]))
        await self.admin.request("DELETE", NAMESPACES.path(None, self.case))

    async def chapter(self, what: str, hardware: str) -> None:
        pool = {
            "apiVersion": "berth.dev/v1alpha1",
            "kind": "InferencePool",
            "metadata": {"name": "agents", "namespace": self.case},
            "spec": {
                "model": {"name": "smollm2-135m-instruct"},
                "workload": {"class": "Agentic", "demand": {"requestsPerSecond": "2"}},
                "placement": {
                    "hardware": {"allow": {"names": [f"{self.case}-{hardware}"]}},
                    "spot": {"maxTrafficPercent": 0},
                    "disruption": {"minSavingsUsdPerHour": "0.00", "minSavingsPercent": 0, "cooldown": "0s"},
                },
            },
        }
        made = await self.admin.apply(POOLS, pool)

        async def settled() -> bool:
            seen = await self.admin.get(POOLS, self.case, "agents")
            status = (seen or {}).get("status", {})
            ready = {c["type"]: c["reason"] for c in status.get("conditions", ())}.get("Ready")
            current = status.get("observedGeneration") == made["metadata"]["generation"]
            shape = await self.shape()
            placed = [d for d in shape if d.startswith("Deployment")]
            return current and ready == "Ready" and len(shape) == 4 and len(placed) == 1 and hardware in placed[0]

        await self.until(f"the pool is {what}", settled)
        self.chapters.append(await self.shape())

    async def _delete(self) -> None:
        await self.admin.request("DELETE", POOLS.path(self.case, "agents"))

        async def nothing() -> bool:
            return await self.shape() == {} and not self.operator.cluster.pools

        await self.until("nothing is left of the pool", nothing)
        await asyncio.sleep(0.5)  # two passes more: no ghost is made again
        self.chapters.append(await self.shape())

    async def until(self, what: str, condition: Callable[[], Awaitable[bool]]) -> None:
        try:
            async with asyncio.timeout(RECOVERY_SECONDS + FAULT_SECONDS):
                while not await condition():  # noqa: ASYNC110 - another process's doing
                    await asyncio.sleep(0.2)
        except TimeoutError:
            shape = json.dumps(await self.shape(), indent=1)[:1500]
            raise AssertionError(f"{self.case}: {what}: not so in time; children now: {shape}") from None

    async def shape(self) -> Shape:
        """Every object of the kinds that we make, whoever made it."""
        out = {}
        for resource in CHILDREN:
            for item in (await self.admin.list(resource, self.case)).items:
                metadata = item["metadata"]
                where = metadata.get("labels", {}).get("berth.dev/hardware-class", metadata["name"])
                text = json.dumps([metadata.get("labels"), _ours(item["spec"])], sort_keys=True)
                suffix = metadata["labels"].get("berth.dev/placement", "-")
                key = f"{item['kind']} {where}".replace(self.case, "CASE")
                out[key] = text.replace(self.case, "CASE").replace(suffix, "PLACEMENT")
        return out


def _ours(spec: Manifest) -> Manifest:
    return {k: v for k, v in spec.items() if k not in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy")}


# --- The cases ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disturbance:
    """A name for reports, and how to set it up."""

    name: str
    set_up: Callable[[Operator], None]


def at_call(k: int, fault: Fault) -> Disturbance:
    """The k-th call of the operator, watches included, goes wrong in one way."""

    def set_up(operator: Operator) -> None:
        operator.faults.of = lambda call: fault if call.number == k else Fault.NONE

    return Disturbance(f"{fault.value} {k}", set_up)


def killed_after_write(k: int) -> Disturbance:
    """The operator dies when the API server has carried out its k-th write, and another one starts."""

    def set_up(operator: Operator) -> None:
        writes = 0

        def after(call: Call) -> None:
            nonlocal writes
            writes += call.is_write
            if call.is_write and writes == k + 1:
                operator.faults.cut = True
                restarts.add(asyncio.get_running_loop().create_task(operator.restart()))

        restarts: set[asyncio.Task[None]] = set()
        operator.faults.after = after

    return Disturbance(f"killed after write {k}", set_up)


def watches(name: str, change: Callable[[Lines], Lines]) -> Disturbance:
    """Every watch of the operator goes through `change`."""

    def set_up(operator: Operator) -> None:
        operator.faults.watch = change

    return Disturbance(name, set_up)


async def _twice(lines: Lines) -> Lines:
    before: list[Line] = []
    async for line in lines:
        for again in (line, line, *before[-3:]):
            yield again
        before.append(line)


async def _late(lines: Lines) -> Lines:
    async for line in lines:
        await asyncio.sleep(1.0)
        yield line


async def _ends_after_one(lines: Lines) -> Lines:
    async for line in lines:
        yield line
        return


async def _loses_what_it_has(lines: Lines) -> Lines:
    """Now and then an event is read from the API server and lost with the connection."""
    async for line in lines:
        if random.random() < 0.3:  # noqa: S311 - any will do
            return
        yield line


async def _too_old(lines: Lines) -> Lines:
    async for line in lines:
        if random.random() < 0.5:  # noqa: S311 - any will do
            yield gone()
            return
        yield line


def storm() -> Disturbance:
    """For a while each write is refused as a conflict."""

    def set_up(operator: Operator) -> None:
        loop = asyncio.get_running_loop()
        since: list[float] = []

        def of(call: Call) -> Fault:
            if call.is_write:
                since.append(loop.time())
            return Fault.CONFLICT if call.is_write and loop.time() - since[0] < 5 else Fault.NONE

        operator.faults.of = of

    return Disturbance("conflicts for 5 s", set_up)


WATCHES = [
    watches("events twice and out of order", _twice),
    watches("events late", _late),
    watches("a connection an event", _ends_after_one),
    watches("events lost with their connection", _loses_what_it_has),
    watches("410 Gone again and again", _too_old),
    storm(),
]


async def _run(cluster: ControlPlane, folder: Path, cases: dict[str, Disturbance | None]) -> dict[str, Any]:
    """Chapters by case, or the exception that it ended with; a few cases at once."""
    slots = asyncio.Semaphore(AT_ONCE)
    operators = {}
    async with await Kube.connect(str(cluster.kubeconfig)) as admin:

        async def one(case: str, disturbance: Disturbance | None) -> list[Shape]:
            async with slots:
                operator = operators[case] = Operator(cluster.kubeconfig, folder, case, Faults())
                if disturbance:
                    disturbance.set_up(operator)
                return await Story(admin, operator).told()

        names = list(cases)
        told = await asyncio.gather(*(one(c, cases[c]) for c in names), return_exceptions=True)
    return dict(zip(names, told, strict=True)) | {"operators": operators}


def _failures(told: dict[str, Any], cases: dict[str, Disturbance], usual: list[Shape]) -> list[str]:
    out = []
    for case, disturbance in cases.items():
        found = told[case]
        if isinstance(found, BaseException):
            out.append(f"{disturbance.name}: {type(found).__name__}: {found}")
        elif found != usual:
            out.append(f"{disturbance.name}: ended otherwise: {found} instead of {usual}")
    return out


def _wanted(every: list[Disturbance]) -> list[Disturbance]:
    """What BERTH_FAULTS asks for; nothing where it asks for nothing."""
    if not WANTED or WANTED == "all":
        return every if WANTED else []
    part, _, parts = WANTED.partition("/")
    return every[int(part) - 1 :: int(parts)]


@pytest.mark.timeout(3600 if WANTED else 300)
@pytest.mark.parametrize("large", [False, True], ids=["small fleet", "large fleet"])
async def test_after_any_fault_the_objects_are_those_of_an_undisturbed_run(
    cluster: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, large: bool
) -> None:
    """In a large fleet the plan in force is amended, and an edit is carried out before the pass that it makes due."""
    if large:
        monkeypatch.setattr(planned_fleet, "FLAT", 0)
    size = "large" if large else "small"
    alone = f"{size}-undisturbed"
    told = await _run(cluster, tmp_path, {alone: None})
    usual = told[alone]
    if isinstance(usual, BaseException):
        raise usual
    assert [len(chapter) for chapter in usual] == [4, 4, 0]
    calls = told["operators"][alone].calls
    writes = sum(call.is_write for call in calls)
    assert writes > 10
    every = [at_call(k, mode) for k in range(len(calls)) for mode in MODES]
    kills = [killed_after_write(k) for k in range(writes)]
    chosen = _wanted([*every, *kills, *WATCHES]) or [*every[3 :: len(every) // 13], *kills[1::5], *WATCHES]
    cases = {f"{size}-{n}": disturbance for n, disturbance in enumerate(chosen)}
    told = await _run(cluster, tmp_path, dict(cases))
    failures = _failures(told, cases, usual)
    print(f"{len(calls)} calls, {writes} writes, {len(cases)} cases")
    assert not failures, "\n".join(failures)


async def test_what_was_deleted_while_history_was_lost_leaves_no_ghost(cluster: ControlPlane, tmp_path: Path) -> None:
    async with await Kube.connect(str(cluster.kubeconfig)) as admin:
        operator = Operator(cluster.kubeconfig, tmp_path, "ghost", Faults())
        story = Story(admin, operator)
        await story.begin()
        await operator.start()
        try:
            await story.chapter("created", "cheap")
            operator.faults.cut = True
            await admin.request("DELETE", POOLS.path("ghost", "agents"))
            await admin.request("DELETE", HARDWARE_CLASSES.path(None, "ghost-dear"))
            cluster.forget_history()  # on this thread: what it starts ends with the thread that started it
            calls = len(operator.calls)
            operator.faults.cut = False

            async def gone_from_view() -> bool:
                classes = set(operator.cluster.hardware_classes)
                return not operator.cluster.pools and classes == {("", "ghost-cheap")} and await story.shape() == {}

            await story.until("the operator knows of no pool", gone_from_view)
            assert any(
                c.path.endswith("/inferencepools") and not c.watch for c in operator.calls[calls:]
            )  # listed again
            await asyncio.sleep(1.0)
            calls = len(operator.calls)
            await asyncio.sleep(1.5)  # a pass more, by the clock
            assert not [c.path for c in operator.calls[calls:] if c.is_write]
            assert await story.shape() == {}
        finally:
            await operator.kill()
            await story.end()
