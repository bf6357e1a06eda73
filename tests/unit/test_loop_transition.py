"""Are the next steps safe?  New workers are ready before old ones go, for whatever is wanted and whatever runs."""

from dataclasses import replace
from typing import Any

from berth_operator.api import CapacityType
from berth_operator.cluster.observe import Child
from berth_operator.cluster.resources import DEPLOYMENTS, SERVICES
from berth_operator.transition import Steps, next_steps
from hypothesis import given
from hypothesis import strategies as st

Manifest = dict[str, Any]


def _wanted(name: str, replicas: int) -> Manifest:
    return {
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas},
    }


def _service(name: str) -> Manifest:
    return {"kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": {}}


def _child(
    name: str, replicas: int = 0, ready: int | None = None, *, rolled_out: bool = True, kind: Any = DEPLOYMENTS
) -> Child:
    return Child(
        resource=kind,
        namespace="default",
        name=name,
        uid=f"uid-{name}",
        pool="agents",
        owner_uid="uid-agents",
        render_hash="",
        managed_fields="",
        replicas=replicas,
        ready_replicas=replicas if ready is None else ready,
        rolled_out=rolled_out,
    )


def _applied(steps: Steps) -> list[str]:
    return [manifest["metadata"]["name"] for manifest in steps.apply]


def _deleted(steps: Steps) -> list[str]:
    return [child.name for child in steps.delete]


def test_the_old_placement_serves_until_the_new_one_is_ready() -> None:
    steps = next_steps([_wanted("new", 2)], [_child("old", 3), _child("new", 2, 1)])
    assert (_applied(steps), _deleted(steps)) == (["new"], [])
    assert steps.waiting == ("Deployment default/old goes once new is ready",)


def test_the_old_placement_goes_once_every_new_replica_is_ready() -> None:
    steps = next_steps([_wanted("new", 2)], [_child("old", 3), _child("new", 2)])
    assert (_deleted(steps), steps.waiting) == (["old"], ())


def test_replicas_of_an_old_template_do_not_count_as_ready() -> None:
    steps = next_steps([_wanted("new", 2)], [_child("old", 3), _child("new", 2, rolled_out=False)])
    assert _deleted(steps) == []


def test_an_old_placement_that_serves_nothing_goes_at_once() -> None:
    assert _deleted(next_steps([_wanted("new", 2)], [_child("old", 3, 0)])) == ["old"]


def test_a_placement_shrinks_only_once_the_growing_one_is_ready() -> None:
    wanted = [_wanted("cpu", 1), _wanted("gpu", 2)]
    before = next_steps(wanted, [_child("cpu", 4), _child("gpu", 2, 0)])
    assert _applied(before) == ["gpu"]
    assert before.waiting == ("Deployment default/cpu shrinks from 4 to 1 once gpu is ready",)
    assert _applied(next_steps(wanted, [_child("cpu", 4), _child("gpu", 2)])) == ["cpu", "gpu"]


def test_a_placement_that_shrinks_alone_shrinks_at_once() -> None:
    assert _applied(next_steps([_wanted("cpu", 1)], [_child("cpu", 4)])) == ["cpu"]


def test_shrinking_to_what_is_ready_anyway_takes_nothing_away() -> None:
    wanted = [_wanted("cpu", 1), _wanted("gpu", 2)]
    assert _applied(next_steps(wanted, [_child("cpu", 4, 1), _child("gpu", 2, 0)])) == ["cpu", "gpu"]


def test_a_suspended_pool_loses_its_workers_at_once_and_keeps_its_services() -> None:
    live = [_child("old", 3), _child("agents", kind=SERVICES)]
    steps = next_steps([_service("agents")], live, suspended=True)
    assert (_applied(steps), _deleted(steps)) == (["agents"], ["old"])


def test_a_pool_without_any_hardware_to_go_to_keeps_what_serves() -> None:
    steps = next_steps([], [_child("old", 3)], hold="no capacity")
    assert _deleted(steps) == []
    assert steps.waiting == ("Deployment default/old stays: no capacity",)


def test_a_pool_with_too_little_hardware_to_go_to_keeps_what_serves_and_drops_what_only_waits() -> None:
    live = [_child("old", 3), _child("waiting", 2, 0), _child("new", 1)]
    steps = next_steps([_wanted("new", 1)], live, hold="not enough capacity")
    assert (_applied(steps), _deleted(steps)) == (["new"], ["waiting"])
    assert steps.waiting == ("Deployment default/old stays: not enough capacity",)


def test_what_a_pool_yields_goes_though_the_rest_is_held() -> None:
    spot, steady = CapacityType.SPOT, CapacityType.ON_DEMAND
    live = [
        replace(_child(name, 2), hardware_class="l4", capacity_type=kind) for name, kind in (("a", spot), ("b", steady))
    ]
    steps = next_steps([], live, hold="no capacity", yields={("l4", spot)})
    assert (_deleted(steps), steps.waiting) == (["a"], ("Deployment default/b stays: no capacity",))


def test_a_service_that_is_no_longer_wanted_goes() -> None:
    steps = next_steps([_wanted("new", 1)], [_child("route", kind=SERVICES), _child("new", 1, 0)])
    assert _deleted(steps) == ["route"]


_names = st.sampled_from(["a", "b", "c", "d"])
_wanted_replicas = st.dictionaries(_names, st.integers(1, 5))
_live_replicas = st.dictionaries(_names, st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()))


@given(_wanted_replicas, _live_replicas)
def test_nothing_that_serves_is_taken_away_while_another_wanted_placement_is_not_ready(
    wanted: dict[str, int], live: dict[str, tuple[int, int, bool]]
) -> None:
    children = [_child(n, replicas, min(ready, replicas), rolled_out=r) for n, (replicas, ready, r) in live.items()]
    steps = next_steps([_wanted(name, replicas) for name, replicas in wanted.items()], children)

    def unready(name: str) -> bool:
        replicas, ready, rolled_out = live.get(name, (0, 0, False))
        return not rolled_out or min(ready, replicas) < wanted[name]

    for child in steps.delete:
        assert child.ready_replicas == 0 or not any(unready(name) for name in wanted)
    for name in _applied(steps):
        replicas, ready, _ = live.get(name, (0, 0, False))
        if wanted[name] < min(ready, replicas):
            assert not any(unready(other) for other in wanted if other != name)


@given(_wanted_replicas, st.dictionaries(_names, st.integers(0, 5)))
def test_a_cluster_that_does_as_it_is_told_reaches_the_plan(wanted: dict[str, int], live: dict[str, int]) -> None:
    running = dict(live)
    for _ in range(4):  # bring up, shrink and remove, then nothing
        steps = next_steps([_wanted(n, r) for n, r in wanted.items()], [_child(n, r) for n, r in running.items()])
        for manifest in steps.apply:
            running[manifest["metadata"]["name"]] = manifest["spec"]["replicas"]
        for child in steps.delete:
            del running[child.name]
    assert running == wanted
