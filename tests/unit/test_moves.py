"""Do moves wait their turn, one placement of a pool and so many pools of the fleet, and nothing else ever waits?"""

from typing import Any

from berth_operator.api.names import RENDER_HASH_ANNOTATION, TEMPLATE_HASH_ANNOTATION
from berth_operator.cluster.observe import Child
from berth_operator.cluster.resources import DEPLOYMENTS
from berth_operator.moves import Turns, in_turn
from berth_operator.render import render_hash
from berth_operator.transition import next_steps
from hypothesis import given
from hypothesis import strategies as st

Manifest = dict[str, Any]


def _wanted(name: str, template: str, replicas: int = 2) -> Manifest:
    manifest: Manifest = {
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "ns", "annotations": {TEMPLATE_HASH_ANNOTATION: template}},
        "spec": {"replicas": replicas, "template": {"of": template}},
    }
    manifest["metadata"]["annotations"][RENDER_HASH_ANNOTATION] = render_hash(manifest)
    return manifest


def _child(pool: str, name: str, template: str, replicas: int = 2, ready: int | None = None, old: int = 0) -> Child:
    return Child(
        resource=DEPLOYMENTS,
        namespace="ns",
        name=name,
        uid=name,
        pool=pool,
        owner_uid=pool,
        render_hash="",
        managed_fields="",
        replicas=replicas,
        ready_replicas=replicas if ready is None else ready,
        rolled_out=not old,
        template_hash=template,
        old_replicas=old,
    )


def _turns(
    wanted: dict[str, list[Manifest]], live: dict[str, list[Child]], most: int, failed: tuple[str, ...] = ()
) -> Turns:
    steps = {f"ns/{pool}": next_steps(manifests, live.get(pool, [])) for pool, manifests in wanted.items()}
    return in_turn(steps, [child for own in live.values() for child in own], [f"ns/{f}" for f in failed], most)


def _rolled(turns: Turns) -> set[str]:
    """Deployments that are given the new template."""
    return {
        m["metadata"]["name"]
        for steps in turns.steps.values()
        for m in steps.apply
        if m["spec"].get("template") == {"of": "new"}
    }


def test_an_upgrade_rolls_as_many_pools_as_may_move_and_the_others_wait() -> None:
    names = ["a", "b", "c", "d"]
    turns = _turns({n: [_wanted(n, "new")] for n in names}, {n: [_child(n, n, "old")] for n in names}, 2)
    assert _rolled(turns) == {"a", "b"}
    assert set(turns.waiting) == {"ns/c", "ns/d"}
    assert turns.steps["ns/c"].waiting == ("Deployment ns/c keeps its pod template until it is its turn",)


def test_a_pool_that_waits_is_scaled_all_the_same_on_the_template_that_it_has() -> None:
    turns = _turns({"a": [_wanted("a", "new", 5)]}, {"a": [_child("a", "a", "old")]}, 0)
    (held,) = turns.steps["ns/a"].apply
    assert held["spec"] == {"replicas": 5}
    assert held["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION] == "old"
    assert held["metadata"]["annotations"][RENDER_HASH_ANNOTATION] == render_hash(held)


def test_one_placement_of_a_pool_rolls_at_a_time() -> None:
    wanted = {"p": [_wanted("p-1", "new"), _wanted("p-2", "new")]}
    first = _turns(wanted, {"p": [_child("p", "p-1", "old"), _child("p", "p-2", "old")]}, 5)
    assert _rolled(first) == {"p-1"}
    under_way = _turns(wanted, {"p": [_child("p", "p-1", "new", old=1), _child("p", "p-2", "old")]}, 5)
    assert _rolled(under_way) == {"p-1"}
    done = _turns(wanted, {"p": [_child("p", "p-1", "new"), _child("p", "p-2", "old")]}, 5)
    assert _rolled(done) == {"p-1", "p-2"}


def test_a_rollout_under_way_takes_a_new_target_at_once() -> None:
    live = {n: [_child(n, n, "bad", old=1)] for n in ("a", "b")}
    turns = _turns({n: [_wanted(n, "new")] for n in ("a", "b")}, live, 1, failed=("a", "b"))
    assert _rolled(turns) == {"a", "b"}


def test_failed_rollouts_keep_their_turns_but_never_the_last() -> None:
    failing = {n: [_child(n, n, "new", old=1)] for n in ("a", "b", "c")}
    live = failing | {n: [_child(n, n, "old")] for n in ("d", "e")}
    turns = _turns({n: [_wanted(n, "new")] for n in live}, live, 3, failed=("a", "b", "c"))
    assert set(turns.waiting) == {"ns/e"}


def test_what_serves_nobody_rolls_at_once() -> None:
    live = {n: [_child(n, n, "old", ready=0)] for n in ("a", "b")}
    assert _rolled(_turns({n: [_wanted(n, "new")] for n in live}, live, 0)) == {"a", "b"}


def test_other_hardware_waits_its_turn_unless_the_old_loses_workers() -> None:
    def moved(ready: int, most: int) -> Turns:
        return _turns({"p": [_wanted("gpu", "new")]}, {"p": [_child("p", "cpu", "old", ready=ready)]}, most)

    assert _rolled(moved(2, 0)) == set()
    assert moved(2, 0).waiting
    assert moved(2, 0).steps["ns/p"].delete == ()
    assert _rolled(moved(2, 1)) == {"gpu"}
    assert _rolled(moved(1, 0)) == {"gpu"}


def test_first_placements_and_more_hardware_never_wait() -> None:
    assert _rolled(_turns({"p": [_wanted("cpu", "new")]}, {}, 0)) == {"cpu"}
    both = {"p": [_wanted("cpu", "same"), _wanted("gpu", "new")]}
    assert _rolled(_turns(both, {"p": [_child("p", "cpu", "same")]}, 0)) == {"gpu"}


_pools = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=3),
    min_size=1,
)


@given(_pools, st.integers(1, 4), st.sets(st.sampled_from("abcdefgh")))
def test_no_more_pools_move_than_may_and_all_come_to_their_turn(
    pools: dict[str, list[tuple[bool, int, int]]], most: int, failed: set[str]
) -> None:
    wanted = {p: [_wanted(f"{p}-{n}", "new") for n in range(len(own))] for p, own in pools.items()}
    live = {
        p: [_child(p, f"{p}-{n}", "new" if new else "old", 2, ready, old) for n, (new, ready, old) in enumerate(own)]
        for p, own in pools.items()
    }
    for _ in range(40):
        before = {c.name: c for own in live.values() for c in own}
        moving = {p for p, own in live.items() if any(c.old_replicas and c.ready_replicas for c in own)}
        turns = _turns(wanted, live, most, tuple(failed))
        begun = {n for n in _rolled(turns) if before[n].template_hash != "new" and before[n].ready_replicas}
        fresh = {n for n in begun if not before[n].old_replicas}
        assert len({n.split("-")[0] for n in fresh}) <= max(0, most - len(moving - failed))
        for p in live:
            assert len([n for n in fresh if n.startswith(p)]) <= 1
        # A cluster that does as it is told, in one step; what failed is put right meanwhile.
        failed = set()
        live = {
            p: [_child(p, c.name, "new" if c.name in _rolled(turns) else c.template_hash, 2, 2, 0) for c in own]
            for p, own in live.items()
        }
        if all(c.template_hash == "new" for own in live.values() for c in own):
            return
    raise AssertionError("some never had their turn")
