"""How long does simulating a week of a large fleet take, and how much of that is planning?

The scenario `week` with as many copies of its pools, each with demand of its own, and so much demand that the fleet has
about 10,000 nodes; Berth's policy alone, a plan every quarter of an hour.  `--hours` simulates the first hours only and
says what the week would take if all of it went at that pace (the first plan, made from nothing, counted once).
"""

from __future__ import annotations

import time
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from _common import Report, options, progress
from berth_operator.cli.objects import read_bodies
from berth_operator.simulate import policies
from berth_operator.simulate.engine import Simulation, simulate
from berth_operator.simulate.load import catalog_classes, find, pools_of, read_scenario

if TYPE_CHECKING:
    from berth_operator.api import HardwareClass
    from berth_operator.simulate.policies import Pool
    from berth_operator.simulate.scenario import Scenario

POOLS = 1000
TIMES = 32
"""The demand of `week`, at which 1,000 pools have about 10,000 nodes."""
DAYS = 7


def main() -> None:
    """Run the days and write the figures."""
    parser = options(__doc__)
    parser.add_argument("--pools", type=int, default=POOLS)
    parser.add_argument("--hours", type=float, default=DAYS * 24, help="of the week (default: all of it)")
    arguments = parser.parse_args()
    pools, hours = (60, 6.0) if arguments.quick else (arguments.pools, arguments.hours)
    report = Report(1)
    name = f"simulate_{pools}_{hours / 24:.0f}d" if hours % 24 == 0 else f"simulate_{pools}_{hours:g}h"
    scenario, classes, chosen = world(pools, hours)
    found, each, planning = run(scenario, classes, chosen)
    seconds = sum(each)
    report.figure(f"{name}_seconds", seconds)
    report.figure(f"{name}_planning_percent", 100 * sum(planning) / seconds)
    report.figure(f"{name}_slowest_step_seconds", max(each))
    report.figure(f"{name}_mean_nodes", float(np.mean(found.outcomes[0].nodes)))
    report.figure(f"{name}_most_nodes", float(np.max(found.outcomes[0].nodes)))
    report.figure(f"{name}_within_percent", 100 * found.outcomes[0].share)
    if hours < DAYS * 24 and len(each) > 1:
        steps = timedelta(days=DAYS) / scenario.step
        whole = each[0] + sum(each[1:]) / (len(each) - 1) * (steps - 1)
        report.figure(f"simulate_{pools}_{DAYS}d_seconds_estimated", whole)
    report.write(arguments.json)


def world(pools: int, hours: float) -> tuple[Scenario, list[HardwareClass], list[Pool]]:
    """So many pools and hours of `week`."""
    whole = read_scenario(find("week"))
    copies = -(-pools // len(whole.objects))
    scenario = whole.model_copy(update={"days": hours / 24, "copies": copies, "times": whole.times * TIMES})
    objects, problems = read_bodies([], [("week: objects", body) for body in scenario.objects])
    assert not problems, problems
    classes = catalog_classes(scenario)
    return scenario, classes, pools_of(objects.pools, classes, (), {}, scenario)[:pools]


def run(
    scenario: Scenario, classes: list[HardwareClass], pools: list[Pool]
) -> tuple[Simulation, list[float], list[float]]:
    """The simulation, seconds of each step, and seconds of them in the planner."""
    planning: list[float] = []
    decide = policies.decide

    def timed(*arguments: object) -> object:
        begin = time.perf_counter()
        try:
            return decide(*arguments)  # type: ignore[arg-type]
        finally:
            planning.append(time.perf_counter() - begin)

    policies.decide = timed  # type: ignore[assignment]
    ends = [time.perf_counter()]

    def stepped() -> None:
        ends.append(time.perf_counter())
        progress(f"step {len(ends) - 1} of {scenario.steps}")

    try:
        found = simulate(scenario, pools, classes, only=("berth",), on_step=stepped)
    finally:
        policies.decide = decide
        progress("")
    return found, [after - before for before, after in pairwise(ends)], planning


if __name__ == "__main__":
    main()
