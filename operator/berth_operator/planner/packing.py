"""Which nodes do replicas of several pools stand on together, and what does each pool pay of them?

A replica takes 1/m of a node, where m (`replicasPerNode`) of its kind fit one: in processor, memory and devices alike.
So any mix of kinds whose parts add up to no more than a node fits it in each of these,

    sum of n_i a_i <= sum of n_i C / m_i <= C        (a_i: what a replica requests; C: what a node has)

and one number packs them all.  It is also what a measured speed stands for: m of its kind side by side.  Other replicas
in the place of some of them are taken to disturb it no more than those would.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

_MICRO: Final = Decimal("0.000001")


@dataclass(frozen=True, slots=True)
class Piece:
    """Replicas of one pool on one class and capacity type."""

    pool: str
    replicas: int
    per_node: int
    """Of its kind that fit a node."""

    @property
    def whole(self) -> int:
        """Nodes that it fills by itself."""
        return self.replicas // self.per_node

    @property
    def rest(self) -> int:
        """Replicas beyond those."""
        return self.replicas % self.per_node


@dataclass(frozen=True, slots=True)
class Packing:
    """Nodes of one class and capacity type under several pools."""

    whole: int
    """Nodes that one pool fills."""
    mixed: tuple[Mapping[str, int], ...]
    """The others: pool -> replicas."""
    per_node: Mapping[str, int]

    @property
    def nodes(self) -> int:
        """All of them."""
        return self.whole + len(self.mixed)

    def beside(self, pool: str) -> int:
        """Other pools on the nodes that a pool stands on."""
        return len({other for node in self.mixed if pool in node for other in node} - {pool})

    def room(self, per_node: int) -> int:
        """Replicas, of a kind of which `per_node` fit a node, that still fit beside those that are there."""
        loads = (sum(Fraction(n, self.per_node[pool]) for pool, n in node.items()) for node in self.mixed)
        return sum(math.floor((1 - load) * per_node) for load in loads)


def pack(pieces: Iterable[Piece]) -> Packing:
    """The fewest nodes found, never more than each pool would take by itself.

    Each pool fills nodes of its own; what is left is packed, first fit and largest parts first: a pool's rest as a
    whole, or where that takes more nodes, replica by replica.  Where each m divides the next (1, 2, 4, 8), the latter
    is optimal (Coffman, Garey and Johnson 1987); it then takes the parts' sum, rounded up.
    """
    ordered = sorted(pieces, key=lambda p: (p.per_node, p.pool))
    rests = [p for p in ordered if p.rest]
    unit = math.lcm(*(p.per_node for p in rests)) if rests else 1
    together = _first_fit(sorted(rests, key=lambda p: -Fraction(p.rest, p.per_node)), unit, whole=True)
    if len(together) > math.ceil(sum(Fraction(p.rest, p.per_node) for p in rests)):
        apart = _first_fit(rests, unit, whole=False)
        together = apart if len(apart) < len(together) else together
    return Packing(sum(p.whole for p in ordered), tuple(together), {p.pool: p.per_node for p in ordered})


def _first_fit(rests: Sequence[Piece], unit: int, *, whole: bool) -> list[dict[str, int]]:
    nodes: list[dict[str, int]] = []
    free: list[int] = []
    for piece in rests:
        size, left = unit // piece.per_node, piece.rest
        least = left * size if whole else size
        for at in range(len(nodes)):
            if left and free[at] >= least:
                placed = min(left, free[at] // size)
                nodes[at][piece.pool] = placed
                free[at] -= placed * size
                left -= placed
        if left:
            nodes.append({piece.pool: left})
            free.append(unit - left * size)
    return nodes


def charges(pieces: Iterable[Piece], packing: Packing) -> dict[str, Fraction]:
    """Nodes that each pool pays, by pool; they add up to those of the packing.

    A pool pays the nodes that it fills.  What the others cost is paid in proportion to the parts of nodes that pools
    take of them, but nobody pays more than the node that it would need without the others.
    """
    rests = {p.pool: Fraction(p.rest, p.per_node) for p in pieces}
    paid = {p.pool: Fraction(p.whole) for p in pieces}
    nodes, taken = Fraction(len(packing.mixed)), sum(rests.values(), Fraction(0))
    for pool in sorted((k for k, part in rests.items() if part), key=lambda k: (-rests[k], k)):
        share = min(Fraction(1), nodes * rests[pool] / taken)
        paid[pool] += share
        nodes -= share
        taken -= rests[pool]
    return paid


def charged(pieces: Iterable[Piece]) -> dict[str, Fraction]:
    """Nodes that each pool pays, by pool, where these stand together and nothing else is known of them."""
    every = sorted(pieces, key=lambda p: p.pool)
    return charges(every, pack(every))


def dollars(usd_per_hour: Decimal, paid: Sequence[Fraction]) -> list[Decimal]:
    """USD/h of parts of nodes at a node's price, to a millionth; they add up to what all of them cost."""
    out, before, sum_ = [], Decimal(0), Fraction(0)
    whole = all(part.denominator == 1 for part in paid)
    for part in paid:
        sum_ += part
        exact = usd_per_hour * sum_.numerator / sum_.denominator
        upto = exact if whole or sum_.denominator == 1 else exact.quantize(_MICRO)
        out.append(upto - before)
        before = upto
    return out
