"""Does a worker carry what the planner says, and are its p99s those that the planner predicts?

The worker is profiled by `berth bench`; `planner.capacity` says from the profile what it carries within objectives, in
three cases: bound by the first token, by the gap between tokens (which bounds the slots), and by the whole turn.  Then
agents come at 50, 75 and 95 % of that, and at more until an objective breaks.  The worker has one thread, so that the
agents have a processor of their own, and does not speculate, so that a step is a token.

Machines drift: right before and after each load the worker is probed (how long a step of a few streams takes), the
prediction is that for the profile scaled to these probes, and a load during which they moved by more than a tenth is
offered once more.

Turns are short, so that 5,000 of them take minutes: by its rates a case of five loads takes about 13 minutes where a
replica carries 35 turns/s.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from _common import Report, options, p99, progress
from berth_operator.api import ServingProfile
from berth_operator.planner import ReplicaCapacity
from berth_operator.planner.capacity import Latencies, Load, latencies, replica_capacity
from berth_operator.planner.speed import Speed, profile_speed
from capacity_load import Agents, Seen, offer, p99_interval

MODEL = "smollm2-135m-instruct"
SLOTS = (1, 2, 4, 8, 16)
AT = (0.5, 0.75, 0.95)
BEYOND = (1.1, 1.25, 1.4)
"""Of the predicted capacity, until an objective breaks."""
AGENTS = Agents(system=32, new=16, output=8)
DRIFT = 0.1
"""Between the probes before and after a load; more, and it is offered again."""
_PROBED = 4
_LOOSE = 20.0
_READY = re.compile(r"berth-worker ready grpc=(\S+) http=(\S+)")


def _cases(load: Load, speed: Speed) -> dict[str, Load]:
    """Objectives such that one binds; the others are loose, but for the first token where the gap bounds the slots."""
    step = dict(zip(speed.concurrency, speed.step_seconds, strict=True))
    gap = dict(zip(speed.concurrency, speed.gap_p99_seconds, strict=True))
    alone = load.prompt_tokens * (1 - load.cached_share) / speed.prefill_tokens_per_second + step[1]
    turn = alone + (load.output_tokens - 1) * step[1]
    return {
        "first_token": replace(load, first_token=8 * alone),
        "gap": replace(load, gap=1.25 * max(gap[b] for b in (1, 2, 4, 8)), first_token=20 * alone),
        "turn": replace(load, turn=2.5 * turn),
    }


@dataclass(frozen=True)
class Point:
    """A load and what came of it."""

    share: float
    """Of the capacity predicted for the machine as it was meanwhile."""
    nominal: float
    drift: float
    """A step's time over that of the profile."""
    predicted: Latencies | None
    seen: Seen

    def broken(self, load: Load) -> float:
        """How far the worst p99 is above its objective; 1: just kept."""
        return max(p99(getattr(self.seen, name)) / getattr(load, name) for name in ("first_token", "gap", "turn"))


def main() -> None:
    """Profile, predict, measure, compare."""
    parser = options(__doc__)
    parser.add_argument("--turns", type=int, help="at each load (default: 5000, --quick: 300)")
    parser.add_argument("--case", action="append", choices=["first_token", "gap", "turn"], help="only this one")
    chosen = parser.parse_args()
    turns = chosen.turns or (300 if chosen.quick else 5000)
    agents = AGENTS
    report = Report(1)
    with worker(max(SLOTS)) as (grpc, http):
        profile = bench(grpc, http, agents, SLOTS, 4 if chosen.quick else 16)
    load = Load(
        prompt_tokens=agents.prompt,
        output_tokens=agents.output,
        cached_share=1 - agents.new / agents.prompt,
        turns_per_session=agents.turns,
        think_seconds=agents.think,
        first_token=_LOOSE,
        gap=_LOOSE,
        turn=_LOOSE,
    )
    speed = profile_speed(profile, load.mean_context_tokens)
    report.figure("prefill_tokens_per_second", speed.prefill_tokens_per_second)
    for slots in SLOTS:
        report.figure(f"step_{slots}_ms", 1000 * speed.step_seconds[speed.concurrency.index(slots)])
    errors: dict[str, list[float]] = {"50": [], "75": [], "capacity": []}
    for name, case in _cases(load, speed).items():
        if not chosen.case or name in chosen.case:
            _run(name, speed, case, agents, turns, report, errors)
    for key in ("50", "75"):
        report.figure(f"p99_error_percent_{key}", 100 * max(errors[key]))
    if errors["capacity"]:
        report.figure("capacity_error_percent", 100 * max(errors["capacity"]))
    report.write(chosen.json)


def _run(
    name: str, speed: Speed, load: Load, agents: Agents, turns: int, report: Report, errors: dict[str, list[float]]
) -> None:
    capacity = replica_capacity(speed, load)
    if not isinstance(capacity, ReplicaCapacity):
        raise SystemExit(f"capacity: case {name}: {capacity.reason}: this machine is too busy to measure anything")
    report.figure(f"{name}_predicted_turns_per_second", capacity.turns_per_second)
    report.figure(f"{name}_slots", capacity.concurrency)
    points: list[Point] = []
    with worker(capacity.concurrency, load.gap) as (grpc, http):
        for number, share in enumerate((*AT, *BEYOND)):
            if share in BEYOND and points[-1].broken(load) > 1 and len(points) > len(AT):
                break
            points.append(_point(grpc, http, speed, load, agents, capacity.concurrency, turns, share, number))
            _show(name, points[-1], load, report)
    progress("")
    for share, key in ((0.5, "50"), (0.75, "75")):
        at = next(p for p in points if p.nominal == share)
        if at.predicted:
            errors[key] += [abs(v / p99(getattr(at.seen, k)) - 1) for k, v in asdict(at.predicted).items()]
    breaks = _breaking_share(points, load)
    if breaks is not None:
        report.figure(f"{name}_breaks_at_turns_per_second", breaks * capacity.turns_per_second)
        errors["capacity"].append(abs(1 / breaks - 1))


def _point(
    grpc: str,
    http: str,
    speed: Speed,
    load: Load,
    agents: Agents,
    slots: int,
    turns: int,
    share: float,
    seed: int,
) -> Point:
    """A share of what the machine carries now, offered; again, at most twice, while the machine drifts."""
    for attempt in range(3):
        before = _drift(grpc, http, agents, speed, slots)
        rate = share * _carried(_scaled(speed, before), load)
        progress(f"capacity: {share:.0%}: {turns} turns at {rate:.2f}/s, steps at {before:.2f} of the profile's")
        seen = asyncio.run(offer(grpc, agents, rate, turns, seed=10 * seed + attempt))
        after = _drift(grpc, http, agents, speed, slots)
        if abs(after / before - 1) <= DRIFT:
            break
    meanwhile = (before + after) / 2
    now = _scaled(speed, meanwhile)
    return Point(seen.rate / _carried(now, load), share, meanwhile, latencies(now, load, seen.rate, slots), seen)


def _drift(grpc: str, http: str, agents: Agents, speed: Speed, slots: int) -> float:
    """How long a step takes, over what it took when the profile was made."""
    streams = min(_PROBED, slots)
    probe = bench(grpc, http, agents, (streams,), 2 * streams)
    step = streams / float(probe.spec.points[0].decode_tokens_per_second)
    return step / speed.step_seconds[speed.concurrency.index(streams)]


def _scaled(speed: Speed, factor: float) -> Speed:
    """The same machine, slower by a factor."""
    return replace(
        speed,
        step_seconds=tuple(factor * s for s in speed.step_seconds),
        gap_p99_seconds=tuple(factor * s for s in speed.gap_p99_seconds),
        prefill_tokens_per_second=speed.prefill_tokens_per_second / factor,
        attention_seconds=speed.attention_seconds * factor,
    )


def _carried(speed: Speed, load: Load) -> float:
    capacity = replica_capacity(speed, load)
    if not isinstance(capacity, ReplicaCapacity):
        raise SystemExit(f"capacity: {capacity.reason}: this machine has become too slow to measure anything")
    return capacity.turns_per_second


def _show(name: str, point: Point, load: Load, report: Report) -> None:
    offered = (
        f"{len(point.seen.turn)} turns at {point.seen.rate:.2f}/s, {point.share:.0%} of what it carries as it is now"
    )
    report.note(f"{name} {point.nominal:.0%}", f"{offered} (steps at {point.drift:.2f} of the profile's)")
    cached = sum(point.seen.cached) / len(point.seen.cached)
    report.figure(f"{name}_{point.nominal * 100:.0f}_cached_percent", 100 * cached)
    for what in ("first_token", "gap", "turn"):
        values = getattr(point.seen, what)
        low, high = p99_interval(values)
        predicted = getattr(point.predicted, what) if point.predicted else math.inf
        text = (
            f"p99 {1000 * p99(values):.1f} ms ({1000 * low:.1f} to {1000 * high:.1f}), predicted {1000 * predicted:.1f}"
            f" ({100 * (predicted / p99(values) - 1):+.0f} %), objective {1000 * getattr(load, what):.0f}"
        )
        report.note(f"  {what}", text)


def _breaking_share(points: list[Point], load: Load) -> float | None:
    """Share of the predicted capacity at which the worst p99 passes its objective; log-linear between two loads."""
    for before, after in itertools.pairwise(points):
        a, b = before.broken(load), after.broken(load)
        if a <= 1 < b:
            return before.share + (after.share - before.share) * math.log(1 / a) / math.log(b / a)
    return points[0].share / points[0].broken(load) if points[0].broken(load) > 1 else None


# --- The worker and its profile -------------------------------------------------------------------------------------


@contextmanager
def worker(slots: int, gap: float = _LOOSE) -> Iterator[tuple[str, str]]:
    """A berth-worker process that knows the promise between tokens, seconds; its gRPC and HTTP addresses."""
    command = [str(Path(sys.executable).with_name("berth-worker")), "--model", MODEL, "--host", "127.0.0.1"]
    command += ["--grpc-port", "0", "--http-port", "0", "--threads", "1", "--speculation", "off"]
    command += ["--max-concurrency", str(slots), "--max-queue", "4096", "--max-context-tokens", "2048"]
    command += ["--kv-cache-tokens", "65536", "--inter-token-latency-p99-seconds", str(gap)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        found = next((match for line in process.stdout if (match := _READY.search(line))), None)
        if found is None:
            raise RuntimeError(f"berth-worker ended with code {process.wait()}")
        yield found[1], found[2]
    finally:
        process.kill()
        process.wait()


def bench(grpc: str, http: str, agents: Agents, streams: Sequence[int], requests: int) -> ServingProfile:
    """What `berth bench` prints of a worker, at the context of these agents."""
    context = agents.prompt + agents.output // 2
    output = 64
    command = [str(Path(sys.executable).with_name("berth")), "bench", grpc, "--http-address", http, "--model", MODEL]
    command += ["--hardware-class", "here", "--concurrency", ",".join(map(str, streams)), "-o", "json"]
    command += ["--prompt-tokens", str(max(context - output // 2, 2)), "--output-tokens", str(output)]
    command += ["--requests", str(requests), "--machine", "this one"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return ServingProfile.model_validate(json.loads(done.stdout))


if __name__ == "__main__":
    main()
