"""What will a step cost, and how many rows fit into a given time?  Fitted to the steps that ran; no torch, no clock.

A step's time is a convex, piecewise linear function of what it computes: reading the weights is a fixed cost, under
which a few rows are free, and past some number of rows arithmetic is what takes the time (the roofline). The
coefficients are the non-negative least squares fit to past steps, older ones forgotten exponentially, each weighed by
its own duration, so that what counts is the relative error and a large step says no more than a small one.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import mul

__all__ = ["Load", "Pace", "StepCost"]

KNEES = (4, 16)
"""Rows past which a further row may cost more."""
FORGET = 0.99
"""Weight of the step before the last, beside the last: a memory of about a hundred steps."""
SWEEPS = 3
"""Of coordinate descent a step; each starts from the last one's result."""
LATE = 0.005
"""Share of steps that may take longer than a pace allows."""
EXACT = 1.05
"""No prediction is taken to be nearer than so."""
NOISY = 1.25
"""Nor farther: where steps vary more, somebody else uses the processor, and streams are late without prompts too."""
LEARNING = 0.05
"""How far one step moves the estimate of how late steps are."""
OUTLIER = 3.0
"""A step this many times slower than predicted counts as so many times only: somebody else had the processor."""
_FORGOTTEN = 1e-100
_LARGE = 1e100


@dataclass(slots=True)
class Load:
    """What one step computes."""

    rows: int = 0
    """Tokens that go through the layers."""
    outputs: int = 0
    """Rows of logits."""
    attended: int = 0
    """Sum over the rows of the tokens that each attends to."""

    def add(self, start: int, rows: int, outputs: int) -> None:
        """Add rows of one sequence at the positions start ... start + rows - 1."""
        self.rows += rows
        self.outputs += outputs
        self.attended += rows * start + rows * (rows + 1) // 2

    def plus(self, start: int, rows: int, outputs: int) -> Load:
        """This load and such rows."""
        return Load(self.rows + rows, self.outputs + outputs, self.attended + rows * start + rows * (rows + 1) // 2)


class StepCost:
    """Seconds of a step, learned from steps. Until the first is observed, every prediction is 0."""

    def __init__(self) -> None:
        size = 4 + len(KNEES)
        self._coefficients = [0.0] * size
        """Seconds a step, a row, a row past each knee, a row of logits, a token attended to."""
        self._gram = [[0.0] * size for _ in range(size)]
        self._moment = [0.0] * size
        self._newest = 1.0
        """Weight of the last step that was observed."""
        self.lateness = 1.15
        """Measured over predicted seconds, exceeded by a share LATE of the steps; at first a guess."""

    def predict(self, load: Load) -> float:
        """Expected seconds of a step."""
        fixed, row, first, second, output, attended = self._coefficients
        rows = load.rows
        seconds = fixed + row * rows + output * load.outputs + attended * load.attended
        if rows > KNEES[0]:
            seconds += first * (rows - KNEES[0])
            if rows > KNEES[1]:
                seconds += second * (rows - KNEES[1])
        return seconds

    def observe(self, load: Load, seconds: float) -> None:
        """Learn from a step that ran."""
        predicted = self.predict(load)
        if predicted > 0:
            late = seconds > predicted * self.lateness
            self.lateness = min(max(self.lateness + LEARNING * (late - LATE), EXACT), NOISY)
            seconds = min(seconds, OUTLIER * predicted)
        # what is learned now weighs more and more, instead of all before it less and less: zeros cost nothing
        self._newest /= FORGET
        weight = self._newest / max(seconds, 1e-6) ** 2
        rows = load.rows
        features = [1, rows, max(0, rows - KNEES[0]), max(0, rows - KNEES[1]), load.outputs, load.attended]
        gram, moment, coefficients = self._gram, self._moment, self._coefficients
        present = [(i, x) for i, x in enumerate(features) if x]
        for i, x in present:
            weighted, row = weight * x, gram[i]
            moment[i] += weighted * seconds
            for j, y in present:
                row[j] += weighted * y
        for _ in range(SWEEPS):
            for i, row in enumerate(gram):
                if (own := row[i]) > _FORGOTTEN * self._newest:
                    coefficient = coefficients[i] + (moment[i] - sum(map(mul, row, coefficients))) / own
                    coefficients[i] = coefficient if coefficient > 0.0 else 0.0
        if self._newest > _LARGE:
            self._gram = [[value / self._newest for value in row] for row in gram]
            self._moment = [value / self._newest for value in moment]
            self._newest = 1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Steps that are not to take longer than so many seconds, as far as a cost can tell."""

    cost: StepCost
    seconds: float

    def room(self, load: Load, start: int, most: int) -> int:
        """Rows of a prompt, from position start on and at most so many, that a step with this load has time for."""
        allowed = self.seconds / self.cost.lateness
        if self.cost.predict(load.plus(start, most, 0)) <= allowed:
            return most
        fits, too_many = 0, most
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self.cost.predict(load.plus(start, middle, 0)) <= allowed:
                fits = middle
            else:
                too_many = middle
        return fits
