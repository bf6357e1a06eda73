"""What can be said of every pool before any is solved: what could serve it, and what is wrong with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from berth_operator.api import InferencePool, ServingProfile, resolve
from berth_operator.planner import fleet
from berth_operator.planner.acceptance import may_carry_alone, placement_problem, spec_problem
from berth_operator.planner.candidates import Candidates, PoolContext, Resource, api_time, candidates_among, offers_of
from berth_operator.planner.churn import Decision, Incumbent, decide
from berth_operator.planner.counterfactual import judges_again
from berth_operator.planner.faulty import avoided_of, avoiding, with_faulty
from berth_operator.planner.judging import judge_all
from berth_operator.planner.program import PoolProblem
from berth_operator.planner.sharing import NOTHING, Standing
from berth_operator.planner.types import Problem, RunningPlacement, Snapshot


@dataclass(frozen=True, slots=True)
class JudgedPool:
    """A pool with everything that can be said before solving."""

    key: str
    context: PoolContext
    candidates: Candidates
    problem: Problem | None
    incumbent: Incumbent | None

    @property
    def shadow(self) -> bool:
        """Planned with what is left, because nothing of it will run: suspended or only a recommendation."""
        return self.context.effective.suspend or self.context.effective.mode == "Recommend"

    @property
    def program(self) -> PoolProblem:
        """What is solved: only options that may carry traffic, or idle spot nodes would count as minReplicas."""
        effective = self.context.effective
        idle = effective.spot_max_traffic_percent == 0 or effective.survive_loss_percent == 100
        options = self.candidates.options
        runs = bool(self.incumbent and self.incumbent.resources)
        return PoolProblem(self.key, effective, tuple(o for o in options if not o.spot) if idle else options, runs)


def is_large(accepted: Sequence[JudgedPool]) -> bool:
    """Whether pools that would run are too many for the flat program."""
    return sum(len(j.candidates.options) for j in accepted if not j.shadow) > fleet.FLAT


def limits_of(snapshot: Snapshot) -> dict[Resource, int]:
    """Nodes that there are, where there is a limit."""
    return {
        (c.metadata.name, capacity.type): capacity.max_nodes
        for c in snapshot.hardware_classes
        for capacity in c.spec.capacity
        if capacity.max_nodes is not None
    }


def judge_pools(snapshot: Snapshot) -> list[JudgedPool]:
    """Every pool with its candidates, in canonical order."""
    pools = sorted(snapshot.pools, key=lambda p: p.key)
    profiles: dict[str, list[ServingProfile]] = {}
    for profile in snapshot.serving_profiles:
        profiles.setdefault(profile.spec.model, []).append(profile)
    running: dict[str, list[RunningPlacement]] = {}
    for one in snapshot.running:
        running.setdefault(one.pool, []).append(one)
    for placements in running.values():
        placements.sort(key=lambda r: (r.hardware_class, r.capacity_type.value))
    contexts = [_context(p, snapshot, profiles, running.get(p.key, ())) for p in pools]
    classes, at_fault = sorted(snapshot.hardware_classes, key=lambda c: c.metadata.name), snapshot.at_fault
    problems = [spec_problem(c.effective, classes, c.profiles, at_fault) for c in contexts]
    sound = [i for i, problem in enumerate(problems) if problem is None]
    known = dict(zip(sound, judge_all([contexts[i] for i in sound], snapshot.hardware_classes), strict=True))
    judged, avoided, offers = [], avoided_of(classes, snapshot.now), offers_of(classes, snapshot.now)
    for i, (pool, context, problem) in enumerate(zip(pools, contexts, problems, strict=True)):
        with_known = replace(context, judged=known.pop(i, {}))
        candidates = Candidates()
        if problem is None:
            alone = partial(may_carry_alone, context.effective)
            candidates = avoiding(candidates_among(offers, with_known), avoided, context, alone)
            candidates = with_faulty(candidates, at_fault, context)
        found = problem or placement_problem(context.effective, candidates)
        own = tuple(running.get(pool.key, ()))
        incumbent = Incumbent(own, api_time(pool.status.last_move_time)) if own else None
        kept = with_known if judges_again(context.effective, classes) else context
        judged.append(JudgedPool(pool.key, kept, candidates, found, incumbent))
    return judged


def _context(
    pool: InferencePool,
    snapshot: Snapshot,
    profiles: Mapping[str, Sequence[ServingProfile]],
    running: Sequence[RunningPlacement],
) -> PoolContext:
    effective, namespace = resolve(pool.spec), pool.metadata.namespace or "default"
    return PoolContext(
        effective=effective,
        namespace=namespace,
        namespace_labels=snapshot.namespace_labels.get(namespace, {}),
        profiles=tuple(profiles.get(effective.model, ())),
        now=snapshot.now,
        scheduled={
            (r.hardware_class, r.capacity_type): r.ready_replicas
            if r.scheduled_replicas is None
            else r.scheduled_replicas
            for r in running
        },
        spanning=snapshot.spanning,
        running_nodes={r.hardware_class: r.nodes_per_replica for r in running},
    )


def solver_of(
    pools: Sequence[JudgedPool], limits: Mapping[Resource, int], standing: Standing = NOTHING
) -> fleet.FleetSolver:
    """What solves for pools.  `standing`: replicas of others, whose nodes `limits` count, too."""
    return fleet.FleetSolver([j.program for j in pools], limits, standing=standing)


def decide_pools(pools: Sequence[JudgedPool], solver: fleet.FleetSolver, now: datetime) -> Decision:
    """Solve for pools and weigh their moves."""
    incumbents = {j.key: j.incumbent for j in pools if j.incumbent}
    return decide([j.program for j in pools], incumbents, solver, now)
