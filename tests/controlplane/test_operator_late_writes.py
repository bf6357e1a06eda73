"""A leader that is stopped in the middle of a write, and goes on when another one leads: does it do any harm?

Two replicas, each behind a proxy.  The k-th write of a story (a pool is created, then moved) is held back; its sender
is stopped as by SIGSTOP, a suspended machine, or a long pause of its process.  The other replica takes over and brings
the pool where it should be.  Then the held write reaches the API server, and the stopped replica goes on.

The gate runs every third k, BERTH_FAULTS=all every one.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from devcluster import SimulatedNodePool, graviton4, on_demand
from devcluster.proxy import Call, Fault, Faults, FaultyProxy

if TYPE_CHECKING:
    from conftest import Fleet, OperatorProcess

Manifest = dict[str, Any]

NAMESPACE = "late"
STEP = 1 if os.environ.get("BERTH_FAULTS") else 3
TAKEOVER_SECONDS = 15.0
LEAST_WRITES = 9  # two Services, a budget, a Deployment, a status; another Deployment, the first one's end, statuses


@dataclass
class Holding:
    """Holds back the k-th write since it was armed, Leases aside, of whichever replica sends it."""

    k: int = 0
    writes: int = 0
    sender: Replica | None = None
    what: str = ""

    def arm(self, k: int) -> None:
        self.k, self.writes, self.sender, self.what = k, 0, None, ""


@dataclass
class Replica:
    """One operator process and what its proxy does."""

    process: OperatorProcess
    faults: Faults
    holding: Holding

    def of(self, call: Call) -> Fault:
        if not call.is_write or "/leases" in call.path:
            return Fault.NONE
        self.holding.writes += 1
        if self.holding.writes != self.holding.k:
            return Fault.NONE
        self.faults.let_go = False
        self.holding.sender, self.holding.what = self, f"{call.method} {call.path}"
        return Fault.HELD


@contextmanager
def _proxies(kubeconfig: Path, written_to: Path, every: list[Faults]) -> Iterator[list[Path]]:
    """Proxies in a thread of their own, because operators are started and awaited in this one."""
    ready, paths, ends = threading.Event(), [], []

    async def serve() -> None:
        end = asyncio.Event()
        ends.append(partial(asyncio.get_running_loop().call_soon_threadsafe, end.set))
        async with AsyncExitStack() as stack:
            for number, faults in enumerate(every):
                proxy = FaultyProxy(kubeconfig, faults, written_to / f"{number}.kubeconfig")
                paths.append((await stack.enter_async_context(proxy)).kubeconfig)
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    yield paths
    ends[0]()
    thread.join(10)


def _hardware(name: str, usd: str) -> Manifest:
    return graviton4(f"late-{name}", on_demand(usd, f"late.{name}", maxNodes=2), labels={"case": "late"})


@dataclass
class Story:
    """A pool, as its user sees it."""

    fleet: Fleet

    def place(self, hardware: str) -> None:
        placement = {"hardware": {"allow": {"names": [f"late-{hardware}"]}}, "disruption": {"cooldown": "0s"}}
        self.fleet.pool(NAMESPACE, "agents", placement=placement)

    def is_on(self, hardware: str) -> bool:
        """Whether the pool is there and nowhere else: one Deployment, one worker, no more."""
        if set(self.fleet.deployments(NAMESPACE)) != {f"late-{hardware}/OnDemand"}:
            return False
        return self.fleet.ready(NAMESPACE, "agents") and self.fleet.nodes(NAMESPACE, ready=False) == [
            f"late-{hardware}"
        ]

    def shape(self) -> dict[tuple[str, str], Any]:
        """Specs of all children, and the status, less times."""
        children = {key: child["spec"] | {"clusterIP": "", "clusterIPs": ""} for key, child in self._children()}
        status = self.fleet.status(NAMESPACE, "agents")
        facts = {c["type"]: (c["status"], c["reason"], c["message"]) for c in status["conditions"]}
        return children | {("status", "agents"): (status["placements"], facts)}

    def _children(self) -> list[tuple[tuple[str, str], Manifest]]:
        return list(self.fleet.children(NAMESPACE).items())

    def end(self) -> None:
        self.fleet.cluster.kubectl("delete", "bpool", "agents", f"--namespace={NAMESPACE}")


@pytest.fixture
def story(fleet: Fleet) -> Iterator[Story]:
    fleet.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    fleet.cluster.apply(_hardware("cheap", "0.5"), _hardware("dear", "0.9"))
    pools = [SimulatedNodePool(f"late-{name}", 2, f"late.{name}", "arm64", 16, "32Gi") for name in ("cheap", "dear")]
    fleet.cluster.add_nodes(*pools)
    yield Story(fleet)
    fleet.cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    fleet.cluster.kubectl("delete", "hardwareclasses", "--selector=case=late", "--wait=false")
    fleet.cluster.kubectl("delete", "nodes", "--selector=berth.dev/simulated-pool in (late-cheap,late-dear)")


@pytest.fixture
def replicas(
    make_operator: Callable[..., OperatorProcess], operator_kubeconfig: Path, tmp_path: Path, story: Story
) -> Iterator[list[Replica]]:
    """Two, with a Lease of two seconds; the first one leads to begin with."""
    holding = Holding()
    selectors = {"hardwareclasses": "case=late"}
    flags = (f"--watch-namespaces={NAMESPACE}", "--debounce=50ms", "--interval=500ms", "--lease-duration=2s")
    made = [
        Replica(make_operator(*flags, f"--identity={name}"), Faults(selectors=selectors), holding)
        for name in ("first", "second")
    ]
    with _proxies(operator_kubeconfig, tmp_path, [replica.faults for replica in made]) as kubeconfigs:
        for replica, kubeconfig in zip(made, kubeconfigs, strict=True):
            replica.process.kubeconfig = kubeconfig
            replica.faults.of = replica.of
            replica.process.start()
        yield made
        for replica in made:
            replica.process.signal(signal.SIGCONT)
            replica.process.end()


@pytest.mark.timeout(600)
def test_a_write_of_a_leader_that_was_stopped_does_no_harm_when_it_comes_late(
    story: Story, replicas: list[Replica]
) -> None:
    holding, usual, told = replicas[0].holding, _undisturbed(story, replicas), []
    for k in itertools.count(1, STEP):
        holding.arm(k)
        story.place("cheap")
        _until(story, f"write {k}, or the pool", lambda: holding.sender or story.is_on("cheap"))
        story.place("dear")  # what a stopped leader cannot know
        _until(story, f"write {k}, or the move", lambda: holding.sender or story.is_on("dear"))
        if holding.sender is None:
            break
        (other,) = [replica.process for replica in replicas if replica is not holding.sender]
        told.append(f"{k}: {_late(story, holding.sender, other)}")
        _until(story, f"all as it should be after {told[-1]}", lambda: story.is_on("dear") and story.shape() == usual)
        _ended(story)
    print(*told, sep="\n")
    assert len(told) * STEP >= LEAST_WRITES


def _late(story: Story, stopped: Replica, other: OperatorProcess) -> str:
    """Stop the sender of the held write, let the other replica take over, then let the write and its sender go on."""
    what = stopped.holding.what
    stopped.process.signal(signal.SIGSTOP)
    began, passes = time.monotonic(), other.passes
    _until(story, f"stopped at {what}: the other leads", lambda: other.passes > passes)
    took = time.monotonic() - began
    assert took < TAKEOVER_SECONDS
    _until(story, f"stopped at {what}: the pool is where it should be", lambda: story.is_on("dear"))
    mark = story.fleet.cluster.audit_mark()
    stopped.faults.let_go = True
    code = _until(story, f"{what}: has come late", lambda: _answer(story, mark, what))
    stopped.process.signal(signal.SIGCONT)
    stopped.holding.arm(0)
    passes = other.passes
    _until(story, f"{what}: came late, and the new leader has looked again", lambda: other.passes >= passes + 2)
    return f"{what}: the other led after {took:.1f} s, the late write was answered {code}"


def _until(story: Story, what: str, condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    return story.fleet.cluster.wait_for(what, condition, seconds)


def _ended(story: Story) -> None:
    story.end()
    # The garbage collector looks for new kinds every 30 s, and may have to find ours.
    _until(story, "nothing is left", lambda: not story.fleet.children(NAMESPACE), 90)


def _undisturbed(story: Story, replicas: list[Replica]) -> dict[tuple[str, str], Any]:
    _until(story, "one leads", lambda: any(replica.process.passes for replica in replicas))
    for hardware in ("cheap", "dear"):
        story.place(hardware)
        _until(story, f"the pool is on {hardware} nodes", lambda: story.is_on("cheap") or story.is_on("dear"))
    _until(story, "the pool has moved", lambda: story.is_on("dear"))
    usual = story.shape()
    _ended(story)
    return usual


def _answer(story: Story, mark: int, what: str) -> int:
    """What the API server has answered to a write since a mark, by its audit log; 0 while nothing."""
    method, path = what.split(" ", 1)
    verb = {"PATCH": "patch", "DELETE": "delete", "POST": "create", "PUT": "update"}[method]
    events = story.fleet.cluster.audit_events(since=mark, verbs=[verb])
    found = [e.code for e in events if e.raw["requestURI"].split("?")[0] == path and e.stage == "ResponseComplete"]
    return found[0] if found else 0
