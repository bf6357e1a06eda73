"""Is hardware called short exactly when it is, for a growing while, and is everything else called what it is?"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from berth_operator.api import CapacityType, Condition, ConstrainedCapacity, HardwareClass, format_time
from berth_operator.api.meta import Toleration
from berth_operator.api.quantities import parse_duration
from berth_operator.catalog.matching import NodesThere, tolerates
from berth_operator.cluster.observe import Child, Worker
from berth_operator.cluster.pod_troubles import Blocked, Obstacle
from berth_operator.cluster.resources import DEPLOYMENTS, SERVICES
from berth_operator.planner.candidates import api_time
from berth_operator.shortage import Refusal, ShortagePolicy, Shortages, shortages
from berth_operator.status import Trouble
from berth_operator.troubles import trouble_of, unwritten
from devcluster.hardware import graviton4
from hypothesis import given
from hypothesis import strategies as st

POLICY = ShortagePolicy(grace=timedelta(minutes=3), back_off=timedelta(minutes=5), most=timedelta(hours=1))
CLASS = "graviton4-4xl"
OD, SPOT = CapacityType.ON_DEMAND, CapacityType.SPOT
NOW = datetime.fromisoformat("2026-11-21T12:00:00+00:00")


def _child(replicas: int, kind: CapacityType = OD, **changes: Any) -> Child:
    fields: dict[str, Any] = {
        "resource": DEPLOYMENTS,
        "namespace": "default",
        "name": f"agents-{kind.value.lower()}",
        "uid": "u",
        "pool": "agents",
        "owner_uid": "p",
        "render_hash": "",
        "managed_fields": "",
        "hardware_class": CLASS,
        "capacity_type": kind,
        "replicas": replicas,
    }
    return Child(**(fields | changes))


def _worker(
    waiting_since: datetime | None = None,
    *,
    kind: CapacityType = OD,
    obstacle: Obstacle = Obstacle.FULL,
    deleting: bool = False,
    scheduled_at: datetime | None = None,
) -> Worker:
    blocked = Blocked(obstacle, waiting_since, "Insufficient cpu") if waiting_since else None
    return Worker(
        pool="default/agents",
        hardware_class=CLASS,
        capacity_type=kind,
        node=None if blocked else "n",
        ready=not blocked,
        unschedulable=bool(blocked),
        deleting=deleting,
        blocked=blocked,
        scheduled_at=scheduled_at,
    )


def _entry(until: datetime, back_off: str = "5m", kind: CapacityType = OD) -> dict[str, str]:
    since = format_time(until - parse_duration(back_off))
    return {"type": kind.value, "since": since, "until": format_time(until), "backOff": back_off}


@pytest.fixture
def hardware(make_class: Callable[..., HardwareClass]) -> Callable[..., HardwareClass]:
    return lambda *constrained: _class_with(make_class(), constrained)


def _class_with(item: HardwareClass, constrained: Sequence[Any]) -> HardwareClass:
    return HardwareClass.model_validate(item.to_api() | {"status": {"constrained": list(constrained)}})


def _judge(
    item: HardwareClass,
    children: Sequence[Child],
    workers: Sequence[Worker],
    now: datetime = NOW,
    *,
    refusals: Sequence[Refusal] = (),
    nodes: NodesThere | None = None,
) -> Shortages:
    return shortages([item], children, workers, refusals, nodes or NodesThere(), now, POLICY)


def _only(found: Shortages) -> ConstrainedCapacity:
    (entry,) = found.constrained[CLASS]
    return entry


# --- When ------------------------------------------------------------------------------------------------------------


def test_a_pod_that_waits_beyond_the_grace_period_makes_its_capacity_type_constrained(hardware: Any) -> None:
    entry = _only(_judge(hardware(), [_child(1)], [_worker(NOW - POLICY.grace)]))
    assert (entry.type, entry.since, entry.until, entry.back_off) == (
        OD,
        "2026-11-21T12:00:00Z",
        "2026-11-21T12:05:00Z",
        "5m",
    )
    assert entry.message == "pods of default/agents got no node: Insufficient cpu"


def test_within_the_grace_period_nothing_is_constrained_and_its_end_is_due(hardware: Any) -> None:
    since = NOW - POLICY.grace + timedelta(seconds=1)
    found = _judge(hardware(), [_child(1)], [_worker(since)])
    assert found.constrained == {}
    assert found.due == NOW + timedelta(seconds=1)


def test_an_autoscaler_that_refuses_is_believed_at_once(hardware: Any) -> None:
    waiting = [_worker(NOW - timedelta(seconds=10))]
    said = Refusal(CLASS, OD, NOW - timedelta(seconds=5), "Karpenter: no capacity")
    assert _only(_judge(hardware(), [_child(1)], waiting, refusals=[said])).message == "Karpenter: no capacity"
    before = Refusal(CLASS, OD, NOW - timedelta(seconds=11), "of an earlier pod")
    assert _judge(hardware(), [_child(1)], waiting, refusals=[before]).constrained == {}
    assert _judge(hardware(), [_child(1)], [_worker()], refusals=[said]).constrained == {}


@pytest.mark.parametrize(
    ("replicas", "workers"),
    [
        (1, [_worker(), _worker(NOW - POLICY.most)]),  # a surge pod: no replica is missing
        (1, [_worker(deleting=True), _worker(NOW - POLICY.most)]),  # the node is about to be free
        (1, [_worker(NOW - POLICY.most, obstacle=Obstacle.VOLUME)]),
        (3, [_worker()]),  # a quota: there is no pod that waits
        (0, [_worker(NOW - POLICY.most)]),
    ],
)
def test_what_is_no_shortage_is_not_called_one(hardware: Any, replicas: int, workers: list[Worker]) -> None:
    assert _judge(hardware(), [_child(replicas)], workers).constrained == {}


@pytest.mark.parametrize(
    ("said", "tolerated", "possible", "truth"),
    [
        (Obstacle.SELECTOR, None, False, Obstacle.SELECTOR),
        (Obstacle.SELECTOR, None, True, Obstacle.FULL),  # an autoscaler could make one
        (Obstacle.SELECTOR, None, None, Obstacle.FULL),  # nodes may not be read
        (Obstacle.TAINT, False, True, Obstacle.TAINT),
        (Obstacle.TAINT, True, True, Obstacle.FULL),  # its nodes are cordoned or going
        (Obstacle.TAINT, None, True, Obstacle.FULL),  # it is other classes' nodes that are tainted
        (Obstacle.TAINT, None, False, Obstacle.SELECTOR),
        (Obstacle.TAINT, None, None, Obstacle.FULL),
        (Obstacle.FULL, False, True, Obstacle.FULL),  # some of its nodes are tainted, others have no room
    ],
)
def test_a_wrong_selector_and_a_wrong_taint_are_told_from_a_shortage(
    hardware: Any, said: Obstacle, tolerated: bool | None, possible: bool | None, truth: Obstacle
) -> None:
    where = (CLASS, OD)
    nodes = NodesThere(
        possible={} if possible is None else {where: possible},
        tolerated={} if tolerated is None else {where: tolerated},
    )
    found = _judge(hardware(), [_child(1)], [_worker(NOW - POLICY.grace, obstacle=said)], nodes=nodes)
    (lack,) = found.lacks["default/agents"]
    assert lack.obstacle is truth
    assert bool(found.constrained) == (truth is Obstacle.FULL)


def test_nothing_is_said_of_a_selector_while_it_is_being_asked_whether_nodes_match(hardware: Any) -> None:
    waiting = [_worker(NOW - POLICY.most, obstacle=Obstacle.SELECTOR)]
    found = _judge(hardware(), [_child(1)], waiting, nodes=NodesThere(asking=True))
    assert (found.lacks, found.constrained) == ({}, {})


@pytest.mark.parametrize(
    ("taint", "toleration", "fits"),
    [
        ({"key": "gpu", "value": "yes", "effect": "NoSchedule"}, None, False),
        ({"key": "gpu", "value": "yes", "effect": "NoSchedule"}, {"key": "gpu", "operator": "Exists"}, True),
        ({"key": "gpu", "value": "yes", "effect": "NoSchedule"}, {"key": "gpu", "value": "yes"}, True),
        ({"key": "gpu", "value": "yes", "effect": "NoSchedule"}, {"key": "gpu", "value": "no"}, False),
        ({"key": "gpu", "effect": "NoExecute"}, {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}, False),
        ({"key": "gpu", "effect": "NoSchedule"}, {"operator": "Exists"}, True),
        ({"key": "gpu", "effect": "PreferNoSchedule"}, None, True),
        ({"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}, None, True),
    ],
)
def test_tolerations_are_read_as_the_scheduler_does(taint: Any, toleration: Any, fits: bool) -> None:
    tolerations = [Toleration.model_validate(toleration)] if toleration else []
    assert tolerates(tolerations, [taint]) is fits


def test_a_class_whose_nodes_are_all_gone_is_short_and_not_misspelt(hardware: Any) -> None:
    said = {"type": "NodesMatch", "status": "True", "reason": "Matched", "lastTransitionTime": "2026-11-21T11:00:00Z"}
    nowhere = NodesThere(possible={(CLASS, OD): False})
    waiting = [_worker(NOW - POLICY.grace, obstacle=Obstacle.SELECTOR)]

    def known(generation: int) -> HardwareClass:
        condition = Condition.model_validate(said | {"observedGeneration": generation})
        item = hardware()
        return HardwareClass.model_validate(item.to_api() | {"status": {"conditions": [condition.to_api()]}})

    assert _judge(known(1), [_child(1)], waiting, nodes=nowhere).constrained
    assert not _judge(known(0), [_child(1)], waiting, nodes=nowhere).constrained  # matched as it was written before


def test_capacity_types_of_a_class_are_judged_apart(hardware: Any) -> None:
    children = [_child(1), _child(1, SPOT)]
    entry = _only(_judge(hardware(), children, [_worker(), _worker(NOW - POLICY.grace, kind=SPOT)]))
    assert entry.type is SPOT


# --- Written wrongly -------------------------------------------------------------------------------------------------


def _avoided(item: HardwareClass, until: datetime, reason: str, back_off: str = "5m") -> HardwareClass:
    entry = _entry(until, back_off) | {"reason": reason, "message": "so"}
    status = {"avoided": [entry], "observedGeneration": item.metadata.generation}
    return HardwareClass.model_validate(item.to_api() | {"status": status})


@pytest.mark.parametrize(
    ("said", "nodes", "reason"),
    [
        (Obstacle.SELECTOR, NodesThere(possible={(CLASS, OD): False}), "NoMatchingNode"),
        (Obstacle.TAINT, NodesThere(possible={(CLASS, OD): True}, tolerated={(CLASS, OD): False}), "UntoleratedTaint"),
    ],
)
def test_a_class_that_no_node_takes_pods_of_is_avoided_until_it_is_mended(
    hardware: Any, said: Obstacle, nodes: NodesThere, reason: str
) -> None:
    waiting = [_worker(NOW - POLICY.grace, obstacle=said)]
    found = _judge(hardware(), [_child(1)], waiting, nodes=nodes)
    (entry,) = found.avoided[CLASS]
    assert (entry.reason, entry.until, entry.back_off, found.constrained) == (reason, "2026-11-21T12:05:00Z", "5m", {})
    assert found.due == NOW + timedelta(minutes=5)
    (item,) = found.applied([hardware()])
    item = _avoided(item, NOW + timedelta(minutes=5), reason)
    assert _judge(item, [], [], nodes=nodes).avoided  # it stands though nobody waits for it any more
    mended = NodesThere(possible={(CLASS, OD): True}, tolerated={(CLASS, OD): True})
    assert _judge(item, [], [], nodes=mended).avoided == {}
    edited = item.model_copy(update={"metadata": item.metadata.model_copy(update={"generation": 9})})
    assert _judge(edited, [], [], nodes=nodes).avoided == {}
    again = _avoided(hardware(), NOW, reason)
    assert _judge(again, [_child(1)], waiting, nodes=nodes).avoided[CLASS][0].back_off == "10m"


def test_a_class_that_is_written_wrongly_is_tried_within_the_grace_period(hardware: Any) -> None:
    nowhere = NodesThere(possible={(CLASS, OD): False})
    since = NOW - POLICY.grace + timedelta(seconds=1)  # an autoscaler that we cannot see may be making a node
    found = _judge(hardware(), [_child(1)], [_worker(since, obstacle=Obstacle.SELECTOR)], nodes=nowhere)
    assert (found.avoided, found.due) == ({}, NOW + timedelta(seconds=1))


# --- For how long ----------------------------------------------------------------------------------------------------


def test_a_back_off_in_force_stands_whatever_waits(hardware: Any) -> None:
    item = hardware(_entry(NOW + timedelta(minutes=1)))
    found = _judge(item, [_child(1)], [_worker(NOW - POLICY.most)])
    assert found.applied([item]) == (item,)
    assert found.due == NOW + timedelta(minutes=1)


@pytest.mark.parametrize(("before", "after"), [("5m", "10m"), ("40m", "1h"), ("1h", "1h"), ("nonsense", "10m")])
def test_the_back_off_doubles_to_its_cap(hardware: Any, before: str, after: str) -> None:
    item = hardware(_entry(NOW, "5m") | {"backOff": before})
    entry = _only(_judge(item, [_child(1)], [_worker(NOW - POLICY.grace)]))
    assert (entry.back_off, entry.until) == (after, format_time(NOW + parse_duration(after)))
    assert entry.since == _entry(NOW)["since"]


def test_a_retry_has_a_grace_period_of_its_own(hardware: Any) -> None:
    item = hardware(_entry(NOW - timedelta(minutes=1)))
    assert _judge(item, [_child(1)], [_worker(NOW - timedelta(minutes=1))]).applied([item]) == (item,)


def test_a_pod_that_gets_a_node_ends_the_back_off(hardware: Any) -> None:
    until = NOW + timedelta(minutes=2)
    began = until - timedelta(minutes=5)
    early = [_worker(scheduled_at=began + timedelta(seconds=1))]
    assert _only(_judge(hardware(_entry(until)), [_child(3)], early)).until == format_time(NOW)
    old = [_worker(scheduled_at=began - timedelta(seconds=1))]
    assert _only(_judge(hardware(_entry(until)), [_child(3)], old)).until == format_time(until)


def test_a_class_that_has_held_is_forgotten(hardware: Any) -> None:
    assert _only(_judge(hardware(_entry(NOW - POLICY.most + timedelta(seconds=1))), [], []))
    assert _judge(hardware(_entry(NOW - POLICY.most)), [], []).constrained == {}


@given(data=st.data(), minutes=st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_any_story_keeps_the_back_off_in_bounds_and_never_shortens_it(data: st.DataObject, minutes: list[int]) -> None:
    item = HardwareClass.model_validate(graviton4(CLASS, {"type": "OnDemand", "usdPerHour": "0.638"}))
    now, last = NOW, None
    for step in minutes:
        now += timedelta(minutes=step)
        waits = data.draw(st.none() | st.integers(0, 60))
        workers = [] if waits is None else [_worker(now - timedelta(minutes=waits))]
        found = _judge(item, [_child(1)], workers, now)
        assert found == _judge(item, [_child(1)], workers, now)
        assert found.due is None or found.due > now
        (item,) = found.applied([item])
        (again,) = _judge(item, [_child(1)], workers, now).applied([item])
        assert again is item  # a second look at the same moment changes nothing
        entry = next(iter(item.status.constrained or ()), None)
        if entry is not None:
            back_off = parse_duration(entry.back_off)
            until = api_time(entry.until)
            assert until
            assert POLICY.back_off <= back_off <= POLICY.most
            assert until <= now + back_off
            if last is not None:
                assert back_off in (last, min(2 * last, POLICY.most))
            last = back_off
        else:
            last = None


# --- In words --------------------------------------------------------------------------------------------------------


def _trouble(child: Child, workers: Sequence[Worker], item: HardwareClass, nodes: NodesThere | None = None) -> Any:
    lacks = _judge(item, [child], workers, nodes=nodes).lacks.get("default/agents", ())
    return trouble_of({(CLASS, OD)}, [child], workers, lacks, NOW)


def test_each_trouble_is_named_as_what_it_is(hardware: Any) -> None:
    old = NOW - timedelta(minutes=1)
    nowhere = NodesThere(possible={(CLASS, OD): False})
    cases = {
        "WaitingForNode": _trouble(_child(1), [_worker(old)], hardware()),
        "SurgePending": _trouble(_child(1), [_worker(), _worker(old)], hardware()),
        "NoMatchingNode": _trouble(_child(1), [_worker(old, obstacle=Obstacle.SELECTOR)], hardware(), nowhere),
        "VolumeUnbound": _trouble(_child(1), [_worker(old, obstacle=Obstacle.VOLUME)], hardware()),
        "QuotaExceeded": _trouble(_child(1, create_error="exceeded quota: small"), [], hardware()),
        "PodsRefused": _trouble(_child(1, create_error="violates PodSecurity"), [], hardware()),
        "DeadlineExceeded": _trouble(_child(1, deadline_exceeded=True), [], hardware()),
    }
    assert {reason: trouble.reason for reason, trouble in cases.items()} == {reason: reason for reason in cases}
    assert [reason for reason, trouble in cases.items() if not trouble.stuck] == ["WaitingForNode", "SurgePending"]
    assert all(f"{CLASS} OnDemand: " in trouble.message for trouble in cases.values())


def test_a_wait_of_seconds_is_not_worth_a_word(hardware: Any) -> None:
    assert _trouble(_child(1), [_worker(NOW - timedelta(seconds=5))], hardware()) is None


def test_workers_that_the_api_server_refuses_are_a_trouble_and_so_is_a_service_that_cannot_be_made() -> None:
    rendered = {
        f"{namespace}/agents": [
            {"kind": kind, "metadata": {"namespace": namespace, "name": "agents"}}
            for kind in ("Service", "PodDisruptionBudget", "Deployment")
        ]
        for namespace in "abcd"
    }
    refused = {
        ("Deployment", "a", "agents"): ("Refused", "exceeded quota: z"),
        ("Service", "a", "agents"): ("NameTaken", "not ours"),
        ("Service", "b", "agents"): ("NameTaken", "not ours"),
        ("Service", "c", "agents"): ("Refused", "by a webhook"),
        ("PodDisruptionBudget", "d", "agents"): ("NameTaken", "not ours"),
    }
    there = [replace(_child(0), resource=SERVICES, namespace="c", name="agents")]
    assert unwritten(rendered | {"e/broken": None}, there, refused) == {
        "a/agents": Trouble("Refused", "Deployment agents: exceeded quota: z", stuck=True),
        "b/agents": Trouble("NameTaken", "Service agents: not ours", stuck=True, unreachable=True),
    }
