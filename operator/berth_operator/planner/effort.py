"""How closely is a fleet searched?  It depends on what for, and on how many pools one may make up for another."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final


class Effort(Enum):
    """What a solve is for."""

    COMPARE = auto()
    """A figure beside another plan: likely patterns, priced once."""
    SEARCH = auto()
    """A plan without a bound."""
    PROVE = auto()
    """A plan, and how far from the best it can be."""


@dataclass(frozen=True, slots=True)
class Depth:
    """How closely a fleet is searched."""

    rough: float
    """Relative difference of patterns and bounds that is left alone before the last pricings."""
    again: int
    """Times that loose lanes are priced again before them."""
    guesses: int
    """Rounds of rough pricings, whose duals run ahead, before the others."""
    rounds: Mapping[Effort, int]
    """Pricings before the last ones."""
    warm_rounds: int
    """The same where columns and duals of an earlier solve are there."""
    amending: int
    """The same where the proof of that one is amended."""


SMALL: Final = 300
"""Pools up to which rounds are cheap, and the pools too few for one to make up for another."""
CLOSELY: Final = Depth(1e-3, again=2, guesses=6, rounds={Effort.SEARCH: 4, Effort.PROVE: 4}, warm_rounds=2, amending=2)
WIDELY: Final = Depth(1e-2, again=1, guesses=4, rounds={Effort.SEARCH: 4, Effort.PROVE: 4}, warm_rounds=0, amending=0)

ANSWERS: Final = {Effort.COMPARE: 0, Effort.SEARCH: 1, Effort.PROVE: 4}
"""Times that pools answer the whole choice of the others, at most."""
