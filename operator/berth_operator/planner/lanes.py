"""What can a pool be given?  Pools and their options as arrays, and what a given number of nodes of each serves.

A lane is a pool in one quantization: what a pool of quantization Any could serve in several formats becomes several
lanes, of which one is taken.  A pattern is a number of nodes of each option of a lane; where a replica spans nodes,
those of one replica count as one here, at the price of all of them.  With C_k the share of demand
that the nodes of option k carry, spot share s, loss share a = 1 - surviveLossPercent and vendor share m, patterns serve
the greatest S for which

    sum over vendors of o_v + min(s S, sum over vendors of min(p_v, m S - o_v)) >= S
    o_v = min(C of the vendor's steady options, m S),   p_v = sum over the vendor's spot classes of min(C_k, a f_k S)

with f_k the spread of the nodes of k over their zones (`zones`; 1 for one zone), which is the maximum flow of
`program`'s share rules: steady nodes first, since only the vendor's rule holds them back.
"""

import ctypes
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from berth_operator.planner.candidates import Option, Resource
from berth_operator.planner.native import FLAGS, FLOATS, INTS, LENGTH, function
from berth_operator.planner.program import Limits, PoolProblem, most_replicas, node_cost
from berth_operator.planner.zones import spreads

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
MOST_UNITS: Final = 5_040
"""Of a node: every whole number to 10 divides it, and replicasPerNode is no more than 1,000."""


@dataclass(frozen=True)
class Lanes:
    """Arrays by lane (and option, padded with options of no nodes)."""

    problems: tuple[PoolProblem, ...]
    limits: Limits
    pool: Ints
    """[lane] index of the pool."""
    options: tuple[tuple[Option, ...], ...]
    """[lane][option]"""
    share: Floats
    """[lane, option] of demand that a node carries."""
    per_node: Ints
    """[lane, option] replicas of a node."""
    price: Floats
    """[lane, option] USD/h of a node in the cost stage's objective."""
    usd: Floats
    """[lane, option] USD/h of a whole node on the bill."""
    most: Ints
    """[lane, option] nodes that can be of use."""
    row: Ints
    """[lane, option] the shared limit it takes nodes of; `len(rows)` for none."""
    parts: Ints
    """[lane, option] of the node on the bill that one here is: more than 1 where pools share them (`sharing`)."""
    weight: Ints
    """[lane, option] what a node takes of its shared limit, in the limit's units."""
    vendor: Ints
    """[lane, option]"""
    spot: Flags
    """[lane, option]"""
    spot_share: Floats
    loss_share: Floats
    """[lane] that one zone of a spot class may carry."""
    zones: Ints
    """[lane, option] that spot nodes lie in."""
    spread: Ints
    """[lane, option] row of `spreads`."""
    spreads: Floats
    """[kind, nodes] times that one zone's share fits into so many nodes; row 0 is of one zone."""
    vendor_share: Floats
    floor: Ints
    """[lane] replicas that are not spot beside spot."""
    least: Ints
    """[lane] minReplicas."""
    most_replicas: Ints
    """[lane] maxReplicas, or a number beyond reach."""
    budget: Floats
    """[lane] USD/h that may be spent, infinite where nothing bounds it."""
    odd: Flags
    """[lane] has a rule that the dynamic program does not know: traffic has a cost of its own."""
    rows: tuple[Resource, ...]
    unit: Floats
    """[row] units of a node: 1 unless pools share nodes."""
    caps: Floats
    """[row] units."""
    span: Ints
    """[lane, option] nodes that count as one: those of a replica that spans several."""

    @property
    def count(self) -> int:
        """Lanes."""
        return len(self.pool)

    @cached_property
    def arrays(self) -> "_Arrays":
        """All of this for compiled loops."""
        found = _Arrays(
            options=self.share.shape[1], vendors=int(self.vendor.max(initial=0)) + 1, most_nodes=self.spreads.shape[1]
        )
        widest = self.spreads.max(1)
        found.kept = [widest if n == "widest" else np.ascontiguousarray(getattr(self, n)) for n in _ARRAYS]
        for name, array in zip(_ARRAYS, found.kept, strict=True):
            setattr(found, name, array.ctypes.data)
        return found


def lanes_of(problems: Sequence[PoolProblem], limits: Limits) -> Lanes:
    """Arrays of `problems` in their order; shared rows are the limits that all pools together could exceed."""
    members: list[tuple[int, tuple[Option, ...]]] = []
    for index, problem in enumerate(problems):
        formats = sorted({o.quantization for o in problem.options})
        members.extend((index, tuple(o for o in problem.options if o.quantization is name)) for name in formats)
    flat = [o for _, options in members for o in options]
    counts = np.array([len(options) for _, options in members], dtype=np.int64)
    of = np.repeat(np.array([index for index, _ in members], dtype=np.int64), counts)
    lane = np.repeat(np.arange(len(members)), counts)
    at = lane, np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = (len(members), max(int(counts.max(initial=0)), 1))
    vendors = {v: i for i, v in enumerate(sorted({o.vendor for o in flat}))}

    def ints(values: Iterable[int], padding: int) -> Ints:
        """[lane, option] of values by option, one lane after the other."""
        found = np.full(shape, padding, dtype=np.int64)
        found[at] = np.fromiter(values, dtype=np.int64, count=len(flat))
        return found

    def floats(values: Iterable[float]) -> Floats:
        found = np.zeros(shape)
        found[at] = np.fromiter(values, dtype=np.float64, count=len(flat))
        return found

    per_node, span = ints((o.replicas_per_node for o in flat), 1), ints((o.nodes_per_replica for o in flat), 1)
    zones, parts = ints((o.zones for o in flat), 1), ints((o.parts for o in flat), 1)
    vendor, spot = ints((vendors[o.vendor] for o in flat), 0), ints((o.spot for o in flat), 0) > 0
    owners = [problems[index] for index in of.tolist()]
    demand = np.array([problems[index].demand for index, _ in members]).reshape(-1, 1)
    share = per_node * floats(o.capacity.turns_per_second for o in flat) / demand
    price = floats(node_cost(o, p.effective) for p, o in zip(owners, flat, strict=True)) * span
    usd = floats(float(o.node_usd_per_hour) for o in flat) * span
    most = -(-ints((most_replicas(p, o, limits) for p, o in zip(owners, flat, strict=True)), 0) // per_node)
    spread, spread_table = _spreads(members, problems, most)
    resources, row = _rows(flat, of, at, -(-most // parts) * span, limits)
    unit = _units(len(resources), row, parts)
    rules = [problems[index].effective for index, _ in members]
    return Lanes(
        problems=tuple(problems),
        limits=limits,
        pool=np.array([index for index, _ in members], dtype=np.int64),
        options=tuple(options for _, options in members),
        share=share,
        per_node=per_node,
        price=price,
        usd=usd,
        most=most,
        row=row,
        parts=parts,
        weight=np.where(row < len(resources), np.append(unit, 1)[row] * span // parts, 1),
        vendor=vendor,
        spot=spot,
        spot_share=np.array([e.spot_max_traffic_percent / 100 for e in rules]),
        loss_share=np.array([1 - e.survive_loss_percent / 100 for e in rules]),
        zones=zones,
        spread=spread,
        spreads=spread_table,
        vendor_share=np.array([e.max_traffic_percent_per_vendor / 100 for e in rules]),
        floor=np.array([e.min_on_demand_replicas for e in rules], dtype=np.int64),
        least=np.array([e.min_replicas for e in rules], dtype=np.int64),
        most_replicas=np.array([10**9 if e.max_replicas is None else e.max_replicas for e in rules], dtype=np.int64),
        budget=np.array(
            [
                float(e.max_usd_per_hour) if e.max_usd_per_hour is not None and e.on_exceeded == "Shed" else np.inf
                for e in rules
            ]
        ),
        odd=np.array([e.objective == "Latency" for e in rules], dtype=np.bool_),
        rows=resources,
        unit=unit.astype(np.float64),
        caps=np.array([float(limits[r]) for r in resources]) * unit,
        span=span,
    )


def _spreads(
    members: Sequence[tuple[int, tuple[Option, ...]]], problems: Sequence[PoolProblem], most: Ints
) -> tuple[Ints, Floats]:
    """Which options lie in several zones, where that matters, and how their nodes spread."""
    kinds: dict[tuple[int, int], int] = {(1, 1): 0}
    spread = np.zeros(most.shape, dtype=np.int64)
    for lane, (index, options) in enumerate(members):
        if problems[index].effective.survive_loss_percent > 0:
            for k, o in enumerate(options):
                if o.zones > 1:
                    spread[lane, k] = kinds.setdefault((o.zones, o.replicas_per_node), len(kinds))
    width = int(most[spread > 0].max(initial=0))
    return spread, np.stack([spreads(width, zones, per_node) for zones, per_node in kinds])


def _rows(
    options: Sequence[Option], pool: Ints, at: tuple[Ints, Ints], nodes: Ints, limits: Limits
) -> tuple[tuple[Resource, ...], Ints]:
    """Limits that the pools together could exceed, and which of them each option belongs to.

    `pool` [option] whose it is, `at` its place in arrays by lane and option; `nodes` [lane, option].
    """
    names = sorted(limits)
    number: Mapping[Resource, int] = {r: i for i, r in enumerate(names)}
    limit = np.array([number.get(o.resource, len(names)) for o in options], dtype=np.int64)
    wanted = np.zeros((len(names) + 1, int(pool.max(initial=-1)) + 1), dtype=np.int64)
    np.maximum.at(wanted, (limit, pool), nodes[at])  # of a pool's formats it has one
    tight = wanted.sum(1) > np.array([*(limits[r] for r in names), np.iinfo(np.int64).max])
    row = np.full(nodes.shape, int(tight.sum()), dtype=np.int64)
    row[at] = np.where(tight, np.cumsum(tight) - 1, tight.sum())[limit]
    return tuple(r for r, over in zip(names, tight.tolist(), strict=False) if over), row


def _units(rows: int, row: Ints, parts: Ints) -> Ints:
    """[row] parts of a node of which each option takes a whole number, or nearly (a hair less is still a bound)."""
    found = [math.lcm(*map(int, np.unique(parts[row == r]))) for r in range(rows)]
    return np.array([min(n, MOST_UNITS) for n in found], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Served:
    """What patterns serve."""

    unserved: Floats
    """[pattern] share of demand."""
    missing: Ints
    """[pattern] replicas to minReplicas."""
    allowed: Flags
    """[pattern] within budget and maxReplicas."""


def served_by(lanes: Lanes, lane: Ints, nodes: Ints) -> Served:
    """What `nodes` [pattern, option] of `lane` [pattern] serve, exactly, with as many replicas as they hold."""
    count = len(lane)
    unserved, missing, allowed = np.zeros(count), np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.bool_)
    _served(compiled(lanes, lane, nodes), lane, nodes, count, unserved, missing, allowed)
    return Served(unserved, missing, allowed)


def most_replicas_on(lanes: Lanes, lane: Ints, nodes: Ints) -> Ints:
    """[pattern, option] replicas: all that nodes hold.

    Above maxReplicas the least able ones are left out, as long as the same nodes are needed.
    """
    replicas = np.zeros(nodes.shape, dtype=np.int64)
    _most_replicas(compiled(lanes, lane, nodes), lane, nodes, len(lane), replicas)
    return replicas


def unserved_by(lanes: Lanes, lane: Ints, replicas: Ints) -> Floats:
    """[pattern] share of demand that `replicas` [pattern, option] leave unserved."""
    unserved = np.zeros(len(lane))
    _unserved(compiled(lanes, lane, replicas), lane, replicas, len(lane), unserved)
    return unserved


# --- For compiled loops ---------------------------------------------------------------------------------------------


_ARRAYS: Final = (
    *("share", "usd", "per_node", "most", "parts", "vendor", "zones", "spread", "spot", "spreads", "widest"),
    *("spot_share", "loss_share", "vendor_share", "budget", "floor", "least", "most_replicas"),
)


class _Arrays(ctypes.Structure):
    """`Lanes` of native/csrc/lanes.hpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("options", "vendors", "most_nodes")),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
    )
    kept: list[npt.NDArray[Any]]
    """What it points into."""


LANES: Final = ctypes.POINTER(_Arrays)


def compiled(lanes: Lanes, lane: Ints, *tables: Floats | Ints) -> _Arrays:
    """The arrays of `lanes` for a compiled loop over `lane` [any] of them and `tables` [any, option].

    Raises ValueError for a lane that there is not, or another shape.
    """
    count, options = lanes.share.shape
    if len(lane) and not 0 <= int(lane.min()) <= int(lane.max()) < count:
        raise ValueError(f"lanes are 0 to {count - 1}, not {lane.min()} to {lane.max()}")
    for table in tables:
        if table.shape != (len(lane), options):
            raise ValueError(f"a table of {len(lane)} lanes has shape {(len(lane), options)}, not {table.shape}")
    return lanes.arrays


_served: Final = function("berth_served", LANES, INTS, INTS, LENGTH, FLOATS, INTS, FLAGS)
_most_replicas: Final = function("berth_most_replicas", LANES, INTS, INTS, LENGTH, INTS)
_unserved: Final = function("berth_unserved", LANES, INTS, INTS, LENGTH, FLOATS)
