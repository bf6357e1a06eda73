"""How many turns decode in a replica, and how long do they take?  The birth-death chain of `station.py`, summed.

d turns decode beside prompts that are read one after the other; up to n turns are inside.
"""

from dataclasses import dataclass

import numpy as np

from berth_operator.planner.arrays import TINY, Array, accumulated


@dataclass(frozen=True, slots=True)
class Rates:
    """Beside d turns that decode, [pair, i]."""

    read: Array
    """Seconds for a prompt."""
    step: Array
    """Seconds of a step meanwhile."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Means over d for each n, [pair, i]; see Station."""

    took: Array
    reading: Array
    read: Array
    there: Array
    there_variance: Array

    @staticmethod
    def of(turns: Array, step: Array, rest: Rates, last: Rates, output: Array) -> "Chain":
        """`rest`: while other prompts wait; `last`: while none does.

        Between columns chances are taken as geometric.  They differ by hundreds of decades: sums are told as multiples
        of the greatest chance so far.
        """
        width = np.diff(turns, axis=1)
        here, beyond = (width + 1) / 2, (width - 1) / 2
        length = np.maximum(width, 1.0)
        up = -np.log(rest.read)
        down = np.log(np.maximum(turns, 0.5) / np.maximum(output - 1, 0.05)) - np.log(rest.step)
        rise = here * up[:, :-1] + beyond * up[:, 1:] - beyond * down[:, :-1] - here * down[:, 1:]
        chance = np.zeros_like(turns)
        chance[:, 1:] = accumulated(np.add, rise)
        # over the whole numbers from a column to below the next one: the sum, and the mean of these numbers
        slope = np.clip(rise, -500.0, 500.0) / length
        slope = np.where(np.abs(slope) < 1e-6, 1e-6, slope)
        grown, each = np.expm1(length * slope), np.expm1(slope)
        past = np.clip(length / grown + (length - 1) - 1 / each, 0.0, width)
        part = chance[:, :-1] + np.where(width > 0, np.log(grown / each), -np.inf)
        middle = turns[:, :-1] + past

        def before(values: Array) -> Array:
            """At n - 1."""
            found = values.copy(order="K")
            found[:, 1:] += (values[:, :-1] - values[:, 1:]) / length
            return found

        one = chance.copy(order="K")
        one[:, 1:] = np.maximum(chance[:, 1:] - slope, -1e300)
        scale = one.copy(order="K")
        scale[:, 1:] = accumulated(np.maximum, part)
        scale = accumulated(np.maximum, np.maximum(scale, one))
        fades, single = np.exp(scale[:, :-1] - scale[:, 1:]), np.exp(one - scale)
        part = np.exp(part - scale[:, 1:])

        faster = np.exp(up[:, :-1] + (up[:, 1:] - up[:, :-1]) * past / length)
        sums = np.zeros((turns.shape[1], 4, len(turns)))  # over all numbers below turns[i]
        sums[1:] = np.stack([x.T for x in (part, part * middle, part * middle**2, part * faster)], axis=1)
        for column, left in enumerate(fades.T, 1):
            sums[column] += sums[column - 1] * left
        at = turns - 1
        sums -= np.stack([x.T for x in (single, single * at, single * at**2, single * np.exp(before(up)))], axis=1)
        sums[:2] = 0.0
        several, first, second, pace = np.maximum(sums, 0.0).transpose(1, 2, 0)
        single *= before(last.step) / before(rest.step)
        alone = before(last.read)
        none = single / alone * np.maximum(output - 1, 0.05) * step / np.maximum(turns, 0.5)
        single[:, 0], none[:, 0] = 0.0, 1.0
        whole = several + single + none
        several, single, none, first, second = (x / whole for x in (several, single, none, first, second))
        first += single * at + none * turns
        second += single * at**2 + none * turns**2
        reading, rate = several + single, pace / whole + single / alone
        some, flow = np.maximum(reading, TINY), np.maximum(rate, TINY)
        there = np.maximum((turns - first) / some, 1.0)
        variance = np.maximum((turns**2 - 2 * turns * first + second) / some - there**2, 0.0)
        took, read = 1 / flow, reading / flow
        for values in (took, read):  # nobody leaves an empty replica
            values[:, 0] = values[:, 1]
        return Chain(took, reading, read, there, variance)
