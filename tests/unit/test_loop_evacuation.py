"""Are the right workers released, held and restored when nodes go away, and is what is promised kept standing?"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from berth_operator.api import CapacityType, InferencePool
from berth_operator.cluster.nodes import GONE, Fate, Notice
from berth_operator.cluster.observe import Child, Worker
from berth_operator.cluster.resources import DEPLOYMENTS
from berth_operator.evacuation import (
    PATIENCE,
    SPOT_NOTICE,
    Evacuation,
    evacuate,
    evacuations,
    unequal,
    with_stand_ins,
    without_stand_ins,
)
from berth_operator.render import render_hash
from berth_operator.transition import Steps, next_steps
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ON_DEMAND, SPOT = CapacityType.ON_DEMAND, CapacityType.SPOT
INTERRUPTED = Notice(Fate.INTERRUPTED, "taint aws-node-termination-handler/spot-itn")
DELETED = Notice(Fate.DELETED, "the node is being deleted", NOW)
EMPTIED = Notice(Fate.EMPTIED, "cordoned")
UNREACHABLE = Notice(Fate.UNREACHABLE, "condition Ready: Unknown")


def _pool(
    survive: int = 70, *placements: tuple[CapacityType, int, int], **spec: Any
) -> InferencePool:  # (type, replicas, traffic percent)
    status = {
        "placements": [
            {
                "hardwareClass": "g4",
                "capacityType": kind.value,
                "replicas": replicas,
                "usdPerHour": "1",
                "trafficPercent": percent,
            }
            for kind, replicas, percent in placements
        ]
    }
    body: dict[str, Any] = {
        "model": {"name": "m"},
        "workload": {"class": "Agentic", "demand": {"requestsPerSecond": "4"}},
        "objectives": {"turnLatencyP99": "15s"},
        "placement": {"spot": {"surviveLossPercent": survive}},
    }
    metadata = {"name": "agents", "namespace": "default", "uid": "u"}
    return InferencePool.model_validate({"metadata": metadata, "spec": body | spec, "status": status})


def _worker(name: str, kind: CapacityType = SPOT, notice: Notice | None = None, **changes: Any) -> Worker:
    worker = Worker(
        pool="default/agents",
        hardware_class="g4",
        capacity_type=kind,
        node=f"node-of-{name}",
        ready=True,
        unschedulable=False,
        deleting=False,
        name=name,
        uid=f"uid-{name}",
        placement=kind.value.lower(),
        notice=notice,
    )
    return replace(worker, **changes)


def _names(workers: tuple[Worker, ...]) -> list[str]:
    return sorted(worker.name for worker in workers)


def test_interrupted_workers_are_released_at_once_while_the_rest_keeps_the_floor() -> None:
    pool = _pool(70, (ON_DEMAND, 7, 70), (SPOT, 3, 30))
    stay = [_worker(f"a{i}", ON_DEMAND) for i in range(7)]
    found = evacuate(pool, [*stay, *(_worker(f"s{i}", SPOT, INTERRUPTED) for i in range(3))], NOW)
    assert (_names(found.release), found.hold, found.surge) == (["s0", "s1", "s2"], (), {})


def test_when_more_goes_than_was_planned_for_the_floor_is_held_by_those_that_go() -> None:
    pool = _pool(70, (ON_DEMAND, 5, 50), (SPOT, 5, 50))
    stay = [_worker(f"a{i}", ON_DEMAND) for i in range(5)]
    found = evacuate(pool, [*stay, *(_worker(f"s{i}", SPOT, INTERRUPTED) for i in range(5))], NOW)
    assert len(found.hold) == 2  # 50 % stand; two more workers of 10 % each make 70
    assert len(found.release) == 3
    assert found.surge == {"spot": 2}


def test_held_workers_are_released_in_time_to_finish_what_they_have_accepted() -> None:
    pool = _pool(70, (SPOT, 1, 100))
    worker = _worker("s", SPOT, INTERRUPTED, noticed_at=NOW)
    found = evacuate(pool, [worker], NOW + timedelta(seconds=5))
    assert (_names(found.hold), found.next_s) == (["s"], 120 - 10 - 15 - 5)  # lag, and a turn
    assert _names(evacuate(pool, [worker], NOW + timedelta(seconds=95)).release) == ["s"]


def test_a_held_worker_is_released_once_another_one_stands_in() -> None:
    pool = _pool(70, (SPOT, 1, 100))
    workers = [_worker("s", SPOT, INTERRUPTED, noticed_at=NOW), _worker("new", SPOT)]
    assert _names(evacuate(pool, workers, NOW).release) == ["s"]
    starting = [workers[0], replace(workers[1], ready=False)]
    assert _names(evacuate(pool, starting, NOW).hold) == ["s"]


def test_somebody_who_empties_a_node_waits_until_every_worker_is_replaced() -> None:
    pool = _pool(0, (ON_DEMAND, 2, 100))
    workers = [_worker("stays", ON_DEMAND), _worker("goes", ON_DEMAND, EMPTIED)]
    found = evacuate(pool, workers, NOW)
    assert (_names(found.hold), found.surge, found.release) == (["goes"], {"ondemand": 1}, ())
    replaced = evacuate(pool, [*workers, _worker("new", ON_DEMAND)], NOW)
    assert (_names(replaced.release), replaced.surge) == (["goes"], {})


def test_but_not_for_ever() -> None:
    pool = _pool(0, (ON_DEMAND, 1, 100))
    worker = _worker("goes", ON_DEMAND, EMPTIED, noticed_at=NOW)
    assert _names(evacuate(pool, [worker], NOW + PATIENCE - timedelta(seconds=1)).hold) == ["goes"]
    assert _names(evacuate(pool, [worker], NOW + PATIENCE).release) == ["goes"]


@pytest.mark.parametrize(("kind", "held"), [(SPOT, False), (ON_DEMAND, True)])
def test_a_deleted_node_is_taken_back_soon_if_it_is_spot(kind: CapacityType, held: bool) -> None:
    pool = _pool(50, (kind, 2, 100))
    found = evacuate(pool, [_worker("stays", kind), _worker("goes", kind, DELETED)], NOW)
    assert bool(found.hold) is held


def test_a_worker_that_does_not_serve_is_not_held() -> None:
    pool = _pool(70, (SPOT, 1, 100))
    assert _names(evacuate(pool, [_worker("s", SPOT, EMPTIED, ready=False)], NOW).release) == ["s"]
    assert _names(evacuate(pool, [_worker("s", SPOT, GONE)], NOW).release) == ["s"]


def test_a_worker_on_an_unreachable_node_is_left_alone_and_replaced() -> None:
    pool = _pool(70, (ON_DEMAND, 2, 100))
    workers = [_worker("lost", ON_DEMAND, UNREACHABLE, ready=False), _worker("stays", ON_DEMAND)]
    found = evacuate(pool, workers, NOW + timedelta(hours=1))
    assert (_names(found.hold), found.release, found.surge) == (["lost"], (), {"ondemand": 1})


def test_a_notice_that_is_taken_back_restores_the_worker() -> None:
    pool = _pool(70, (ON_DEMAND, 3, 100))
    workers = [
        _worker("a", ON_DEMAND, traffic=False),
        _worker("b", ON_DEMAND, noticed_at=NOW),
        _worker("c", ON_DEMAND),
        _worker("d", ON_DEMAND, traffic=False, deleting=True),
    ]
    assert _names(evacuate(pool, workers, NOW).restore) == ["a", "b"]


@pytest.mark.parametrize("spec", [{"suspend": True}, {"placement": {"mode": "Recommend"}}])
def test_workers_that_are_not_ours_to_keep_are_left_alone(spec: dict[str, Any]) -> None:
    pool = _pool(70, (SPOT, 1, 100), **spec)
    found = evacuate(pool, [_worker("s", SPOT, INTERRUPTED)], NOW)
    assert (found.release, found.hold) == ((), ())


def test_pools_with_nothing_to_do_cost_nothing() -> None:
    pool = _pool(70, (SPOT, 1, 100))
    assert evacuations([pool], [_worker("s")], NOW) == {}
    assert evacuations([], [_worker("s", SPOT, EMPTIED)], NOW) == {}
    assert list(evacuations([pool], [_worker("s", SPOT, EMPTIED)], NOW)) == ["default/agents"]


_fates = st.sampled_from([None, INTERRUPTED, DELETED, EMPTIED, UNREACHABLE, GONE])
_workers = st.lists(
    st.builds(
        lambda kind, notice, ready, age, deleting: _worker(
            "w", kind, notice, ready=ready, deleting=deleting, noticed_at=NOW - timedelta(seconds=age) if age else None
        ),
        st.sampled_from([SPOT, ON_DEMAND]),
        _fates,
        st.booleans(),
        st.integers(0, 1200),
        st.booleans(),
    ),
    max_size=12,
).map(lambda found: [replace(w, name=f"w{i:02}", uid=f"u{i}") for i, w in enumerate(found)])


@given(_workers, st.integers(0, 100), st.integers(1, 8), st.integers(0, 8), st.integers(0, 100))
def test_what_is_promised_stands_for_as_long_as_it_can(
    workers: list[Worker], survive: int, spot: int, on_demand: int, spot_percent: int
) -> None:
    pool = _pool(survive, (SPOT, spot, spot_percent), (ON_DEMAND, on_demand, 100 - spot_percent))
    found = evacuate(pool, workers, NOW)
    leaving = [w for w in workers if w.notice and not w.deleting]
    assert sorted(_names(found.release) + _names(found.hold)) == sorted(w.name for w in leaving)
    each = {SPOT: spot_percent / spot, ON_DEMAND: (100 - spot_percent) / on_demand if on_demand else 100 / spot}
    serving = [w for w in workers if w.ready and not w.deleting and (not w.notice or w in found.hold)]
    serving = [w for w in serving if w.notice is not UNREACHABLE]
    for worker in found.release:
        late = worker.noticed_at is not None and NOW - worker.noticed_at >= SPOT_NOTICE - timedelta(seconds=25)
        if worker.ready and worker.notice is not GONE and not late:
            assert serving  # somebody serves
            assert sum(each[w.capacity_type] for w in serving) >= survive - 0.001
    for worker in found.hold:
        if worker.noticed_at and worker.notice is not UNREACHABLE:
            assert NOW - worker.noticed_at < (SPOT_NOTICE if worker.capacity_type == SPOT else PATIENCE)


# Stand-ins


def _deployment(replicas: int, placement: str = "spot") -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": f"agents-{placement}",
            "namespace": "default",
            "labels": {"berth.dev/placement": placement},
            "annotations": {"berth.dev/render-hash": "h"},
        },
        "spec": {"replicas": replicas},
    }


def _child(replicas: int, ready: int, surge: int = 0, placement: str = "spot") -> Child:
    return Child(
        resource=DEPLOYMENTS,
        namespace="default",
        name=f"agents-{placement}",
        uid="u",
        pool="agents",
        owner_uid="o",
        render_hash="",
        managed_fields="",
        replicas=replicas,
        ready_replicas=ready,
        placement=placement,
        surge=surge,
    )


def test_a_stand_in_is_one_more_replica_that_the_plan_does_not_count() -> None:
    base = _deployment(2)
    (manifest,) = with_stand_ins(Steps(apply=(base,)), {"spot": 1}).apply
    assert manifest["spec"]["replicas"] == 3
    assert manifest["metadata"]["annotations"]["berth.dev/surge"] == "1"
    assert manifest["metadata"]["annotations"]["berth.dev/render-hash"] == render_hash(manifest)
    assert base == _deployment(2)  # what was rendered stays as it was
    (child,) = without_stand_ins([_child(3, 3, surge=1)], [_worker("s", SPOT, EMPTIED)], [base])
    assert (child.replicas, child.ready_replicas) == (2, 2)


def test_an_old_placement_stays_while_workers_of_the_new_one_are_on_leaving_nodes() -> None:
    new, old = _deployment(2), _child(3, 3, placement="old")
    live = without_stand_ins([_child(2, 2), old], [_worker("s", SPOT, INTERRUPTED)], [new])
    assert next_steps([new], live).delete == ()
    live = without_stand_ins([_child(2, 2), old], [], [new])
    assert [child.name for child in next_steps([new], live).delete] == ["agents-old"]


def test_an_old_placement_whose_nodes_leave_still_serves() -> None:
    leaving = _worker("o", ON_DEMAND, EMPTIED, placement="old")
    live = without_stand_ins([_child(2, 0), _child(1, 1, placement="old")], [leaving], [_deployment(2)])
    assert next_steps([_deployment(2)], live).delete == ()


def test_pools_are_rendered_again_only_where_stand_ins_differ() -> None:
    held = {"default/agents": Evacuation(hold=(_worker("s", SPOT, EMPTIED),))}
    assert unequal(held, [_child(2, 2)]) == {"default/agents"}
    assert unequal(held, [_child(3, 3, surge=1)]) == set()
    released = {"default/agents": Evacuation(release=(_worker("s", SPOT, EMPTIED),))}
    assert unequal(released, [_child(3, 3, surge=1)]) == {"default/agents"}
    assert unequal(released, [_child(2, 2)]) == set()


def test_a_stand_in_is_given_up_only_once_the_released_worker_has_been_ended() -> None:
    released = Evacuation(release=(_worker("s", SPOT, EMPTIED),))
    assert released.surge_meanwhile([_child(3, 3, surge=1)]) == {"spot": 1}
    assert released.surge_meanwhile([_child(2, 2)]) == {"spot": 0}  # it never had one
    assert Evacuation().surge_meanwhile([_child(3, 3, surge=1)]) == {}
    held = Evacuation(hold=(_worker("s", SPOT, EMPTIED),))
    assert held.surge_meanwhile([_child(2, 2)]) == {"spot": 1}
