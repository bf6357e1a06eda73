"""Which pools may share nodes, and how does a solve know of it?

Replicas share nodes where they say what they take of one (a profile's `resources`) and leave room (`replicasPerNode`
above 1), with those of pools of the same objective on the same class and capacity type: a group.

Flat, a group's nodes are one integer column, at least the sum of the parts that replicas take.  Decomposed, parts of
nodes are priced and counted as such, which is a relaxation: a node's price is at best shared in full.  Either way the
replicas found are packed (`packing`); where that takes more nodes than there are, the solve is done again with fewer.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from berth_operator.api import CapacityType, Effective
from berth_operator.planner.candidates import Option, Resource
from berth_operator.planner.packing import Piece, charged, charges, dollars, pack
from berth_operator.planner.program import Limits, PoolColumns, PoolProblem, Program, Terms, node_cost
from berth_operator.planner.solution import PoolSolution

Group = tuple[str, CapacityType, str]
"""Class, capacity type and objective of pools whose replicas may share nodes."""
Standing = Mapping[Group, Sequence[Piece]]
"""Replicas of pools that are not solved for, beside which there may be room."""
NOTHING: Final[Standing] = MappingProxyType({})


def group_of(option: Option, effective: Effective) -> Group:
    """What an option's replicas would share nodes within."""
    return option.hardware_class, option.capacity_type, effective.objective


def groups_open_to(problem: PoolProblem) -> set[Group]:
    """Groups that a pool may be of."""
    return {group_of(o, problem.effective) for o in problem.options if o.shareable}


def groups_of(problems: Iterable[PoolProblem], standing: Standing = NOTHING) -> frozenset[Group]:
    """Groups that at least two pools may be of, or one beside replicas that stand."""
    once: set[Group] = set(standing)
    twice: set[Group] = set()
    for problem in problems:
        mine = groups_open_to(problem)
        twice |= mine & once
        once |= mine
    return frozenset(twice)


# --- In the flat program --------------------------------------------------------------------------------------------


def join_nodes(
    program: Program,
    problems: Sequence[PoolProblem],
    columns: Sequence[PoolColumns],
    groups: frozenset[Group],
    more: Mapping[Group, Fraction],
) -> dict[int, int]:
    """A column of nodes for each group, at least what its replicas take of nodes; pools' own columns -> theirs.

    `more`: nodes taken beyond that, by replicas that stand already, or because packing was seen to take more.
    """
    parts: dict[Group, Terms] = {}
    own: dict[Group, list[int]] = {}
    for problem, at in zip(problems, columns, strict=True):
        for k, option in enumerate(problem.options):
            group = group_of(option, problem.effective)
            if option.shareable and group in groups:
                parts.setdefault(group, {})[at.replicas[k]] = -1.0 / option.replicas_per_node
                own.setdefault(group, []).append(at.nodes[k])
    joined = {}
    for group in sorted(parts):
        beyond = more.get(group, Fraction(0))
        nodes = program.column(sum(program.upper[j] for j in own[group]) + math.ceil(beyond), integer=True)
        program.row({nodes: 1.0, **parts[group]}, at_least=float(beyond))
        joined.update(dict.fromkeys(own[group], nodes))
    return joined


def regrouped(terms: Terms, joined: Mapping[int, int]) -> Terms:
    """Terms over nodes with those of a group in its own column, once."""
    return {joined.get(column, column): value for column, value in terms.items()}


# --- In the decomposition -------------------------------------------------------------------------------------------


def in_parts(problem: PoolProblem, groups: frozenset[Group] | None = None) -> PoolProblem:
    """The pool with parts of nodes where it may share them (`groups`; None: wherever it may)."""
    effective = problem.effective
    if not any(o.shareable for o in problem.options):
        return problem
    options = tuple(
        replace(o, replicas_per_node=1, parts=o.replicas_per_node)
        if o.shareable and (groups is None or group_of(o, effective) in groups)
        else o
        for o in problem.options
    )
    return replace(problem, options=options)


def as_whole(option: Option) -> Option:
    """An option as it was before `in_parts`."""
    return replace(option, replicas_per_node=option.parts, parts=1) if option.parts > 1 else option


# --- After either ---------------------------------------------------------------------------------------------------


def consolidated(
    problems: Iterable[PoolProblem], pools: Mapping[str, PoolSolution], standing: Standing = NOTHING
) -> dict[str, PoolSolution]:
    """The same replicas with nodes shared: what each pool pays of them, and beside how many others it stands.

    `standing`: replicas of pools that are not solved for, and stay.
    """
    effective = {p.key: p.effective for p in problems}
    out = dict(pools)
    for group, pieces in pieces_of(effective, pools).items():
        every = sorted([*pieces, *standing.get(group, ())], key=lambda p: p.pool)
        if len(every) < 2:
            continue
        packing = pack(every)
        paid = charges(every, packing)
        at = {p.pool: _index(pools[p.pool], group) for p in pieces}
        price = pools[pieces[0].pool].assignments[at[pieces[0].pool]].option.node_usd_per_hour
        usd = dollars(price, [paid[p.pool] for p in pieces])
        for piece, mine in zip(pieces, usd, strict=True):
            key = piece.pool
            assignments = list(out[key].assignments)
            one = assignments[at[key]]
            assignments[at[key]] = replace(one, paid=paid[key], usd=mine, beside=packing.beside(key))
            saved = (one.nodes - paid[key]) * Fraction(node_cost(one.option, effective[key]))
            objective = out[key].objective - float(saved)
            out[key] = replace(out[key], assignments=tuple(assignments), objective=objective)
    return out


def paid_by(standing: Standing, problems: Iterable[PoolProblem], pools: Mapping[str, PoolSolution]) -> float:
    """What `standing` pays of the nodes in groups that the pools may be of, in the cost stage's unit."""
    options = {group_of(o, p.effective): (o, p.effective) for p in problems for o in p.options if o.shareable}
    pieces = pieces_of({p.key: p.effective for p in problems}, pools)
    paid = 0.0
    for group in sorted(standing.keys() & options.keys()):  # floats, which add up to the same in one order alone
        each = charged([*pieces.get(group, ()), *standing[group]])
        option, effective = options[group]
        paid += float(sum(each[p.pool] for p in standing[group])) * node_cost(option, effective)
    return paid


def pieces_of(effective: Mapping[str, Effective], pools: Mapping[str, PoolSolution]) -> dict[Group, list[Piece]]:
    """What pools have on nodes that they may share, in canonical order."""
    found: dict[Group, list[Piece]] = {}
    for key in sorted(pools):
        for a in pools[key].assignments:
            if a.option.shareable:
                piece = Piece(key, a.replicas, a.option.replicas_per_node)
                found.setdefault(group_of(a.option, effective[key]), []).append(piece)
    return {group: found[group] for group in sorted(found)}


def _index(pool: PoolSolution, group: Group) -> int:
    return next(
        i for i, a in enumerate(pool.assignments) if a.option.shareable and a.option.resource == (group[0], group[1])
    )


def taken(pieces: Iterable[Piece]) -> Fraction:
    """Nodes, in parts, that replicas take."""
    return sum((Fraction(p.replicas, p.per_node) for p in pieces), Fraction(0))


def nodes_beyond(
    problems: Iterable[PoolProblem], limits: Limits, pools: Mapping[str, PoolSolution], standing: Standing
) -> dict[Resource, int]:
    """Nodes that pools, packed with replicas that stand, take beyond the limits."""
    used: dict[Resource, int] = {}
    for pool in pools.values():
        for a in pool.assignments:
            if not a.option.shareable:
                used[a.option.resource] = used.get(a.option.resource, 0) + a.nodes
    pieces = pieces_of({p.key: p.effective for p in problems}, pools)
    for group in {**pieces, **standing}:
        name, kind, _ = group
        nodes = pack([*pieces.get(group, ()), *standing.get(group, ())]).nodes
        used[name, kind] = used.get((name, kind), 0) + nodes
    return {r: used[r] - most for r, most in limits.items() if used.get(r, 0) > most}


def less(limits: Limits, groups: Iterable[Group], standing: Standing) -> dict[Resource, int]:
    """Limits without the nodes of replicas that stand."""
    left = dict(limits)
    for name, kind, shared_for in groups:
        nodes = pack(standing.get((name, kind, shared_for), ())).nodes
        if (name, kind) in left:
            left[name, kind] = max(0, left[name, kind] - nodes)
    return left
