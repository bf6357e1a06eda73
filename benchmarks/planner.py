"""How long does planning a fleet take, how far from the best can the plan be, and what memory does it need?

100, 1,000 and 5,000 pools on 20 classes, on demand and spot: more than ten shared rows tight, spot, survival and vendor
rules, minimums, budgets, a current plan in half of the pools (`planner_fleet`); and 100 and 1,000 pools with far too
few nodes.  Each in a process of its own, cold: from the snapshot to the plan with its reasons and counterfactual; in
seconds of the clock, and of the processor, which others on the machine disturb less.  Feasibility and gap are then
checked by other code (`planner_check`).  `--seed N` plans other fleets; `--case 5000 [N]` plans that one of them
here and prints its figures as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from berth_operator.api import InferencePool
from berth_operator.planner import Plan, Planned, Snapshot, planned, replanned
from berth_operator.planner.planning import pool_problems
from berth_operator.planner.program import PoolProblem, node_cost
from planner_check import lagrange_bound, limits_of, tight_rows, violations
from planner_fleet import fleet


def main() -> None:
    """Run all cases and write the figures."""
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(_case(sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1)))
        return
    from _common import Report, options  # noqa: PLC0415 - not in a case's process, whose memory is measured

    parser = options(__doc__)
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the fleets (default: 1)")
    arguments = parser.parse_args()
    report = Report(1)
    cases = ["100"] if arguments.quick else ["100", "100-short", "1000", "1000-short", "5000"]
    for case in cases:
        run = [sys.executable, __file__, "--case", case, str(arguments.seed)]
        figures = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        for name, value in figures.items():
            report.figure(name, value)
    report.figure("plan_memory_mb", max(v for k, v in report.figures.items() if k.endswith("_memory_mb")))
    report.write(arguments.json)


def _most_resident_mb() -> float:
    """Of this program alone: what getrusage says goes on counting from the process that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _case(case: str, seed: int) -> dict[str, float]:
    pools, short = int(case.partition("-")[0]), case.endswith("short")
    snapshot = fleet(pools, short=short, seed=seed)
    name = f"plan_{case.replace('-', '_')}"
    begin, cpu = time.perf_counter(), time.process_time()
    proven = planned(snapshot)
    made = proven.plan
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    memory = _most_resident_mb()
    broken = violations(snapshot, made)
    assert not broken, broken[:5]
    demand = sum(float(p.effective.requests_per_second) for p in made.pools.values())
    unserved = sum(p.unserved_requests_per_second for p in made.pools.values())
    figures = {
        f"{name}_seconds": seconds,
        f"{name}_cpu_seconds": cpu,
        f"{name}_gap_percent": made.gap * 100,
        f"{name}_memory_mb": memory,
        f"{name}_tight_rows": tight_rows(snapshot, made),
        f"{name}_unserved_percent": 100 * unserved / demand,
    }
    figures[f"{name}_checked_gap_percent"] = 100 * _checked_gap(snapshot, made)  # HiGHS: some 20 ms a pool
    if case == "1000":
        figures["replan_1000_seconds"] = _replan(proven)
    return figures


def _checked_gap(snapshot: Snapshot, made: Plan) -> float:
    """Of the plan's cost, against Lagrange's bound at its shadow prices of plans that serve each pool as well."""
    prices = {(p.hardware_class, p.capacity_type): float(p.usd_per_hour) for p in made.shadow_prices}
    problems = [_as_solved(problem, snapshot, made) for problem in pool_problems(snapshot).values()]
    bound = lagrange_bound(problems, limits_of(snapshot), prices, made)
    cost = sum(_objective(problem, made) for problem in problems)
    return (cost - bound) / cost


def _objective(problem: PoolProblem, made: Plan) -> float:
    placements = made.pools[problem.key].placements
    nodes = {(p.hardware_class, p.capacity_type, p.quantization): p.paid_nodes for p in placements}
    return sum(
        float(nodes.get((o.hardware_class, o.capacity_type, o.quantization), 0)) * node_cost(o, problem.effective)
        for o in problem.options
    )


def _as_solved(problem: PoolProblem, snapshot: Snapshot, made: Plan) -> PoolProblem:
    """A pool that stays on what it runs on was held to it: its bound is that of what it could do there."""
    running = {(r.hardware_class, r.capacity_type) for r in snapshot.running if r.pool == problem.key}
    placed = {(p.hardware_class, p.capacity_type) for p in made.pools[problem.key].placements}
    if not running or placed - running:
        return problem
    return replace(problem, options=tuple(o for o in problem.options if o.resource in running))


def _replan(last: Planned) -> float:
    """Seconds for the plan after one pool's demand has grown by a fifth."""
    snapshot = last.snapshot
    first = snapshot.pools[0]
    body = first.to_api()
    demand = body["spec"]["workload"]["demand"]
    demand["requestsPerSecond"] = f"{float(demand['requestsPerSecond']) * 1.2:.3f}"
    changed = replace(snapshot, pools=(InferencePool.model_validate(body), *snapshot.pools[1:]))
    begin = time.perf_counter()
    replanned(last, changed)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
