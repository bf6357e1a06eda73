"""Does a worker carry what the planner says, and are its p99s those that the planner predicts?

The worker is profiled by `berth bench`; `planner.capacity` says from the profile what it carries within objectives, in
three cases: bound by the first token, by the gap between tokens (which bounds the slots), and by the whole turn.  Then
agents come at 50, 75 and 95 % of that, and at more until an objective breaks.  First token and turn are promised so
that both should break at the same rate: one load then answers for both.  The worker has one thread, so that the agents
have a processor of their own, and does not speculate, so that a step is a token.  It records its steps and requests,
so that beside each p99 stand the parts that it is predicted from.

Machines drift, from one minute to the next, and not in all alike: each step reads the weights from memory, which
neighbours use too, and the rest is arithmetic.  So p99s are predicted for the profile slowed by two figures that are
seen in the load itself: seconds that steps which only decoded took beyond the profile's of as many streams, and what a
turn's new tokens added to a step, over the profile's.  Beside them stands what the profile as it is would predict.
Probing the worker before and after a load does not do: they differed from it by a third.

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
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from _common import Report, options, p99, progress
from berth_operator.api import ServingProfile
from berth_operator.planner import ReplicaCapacity
from berth_operator.planner.capacity import Latencies, Load, latencies, replica_capacity
from berth_operator.planner.speed import Speed, profile_speed
from capacity_load import Agents, Seen, offer, p99_interval
from capacity_trace import Drift, Trace, parts_predicted

MODEL = "smollm2-135m-instruct"
SLOTS = (1, 2, 4, 8, 16)
AT = (0.5, 0.75, 0.95)
BEYOND = (1.1, 1.25, 1.4)
"""Of the predicted capacity, until an objective breaks."""
AGENTS = Agents(system=32, new=16, output=8)
OBJECTIVES = ("first_token", "gap", "turn")
LONGER = (2, 8, 24)
"""Times the agents' answers, of those that profile the worker."""
_LOOSE = 20.0
_NEAR = 0.05
"""Capacities that differ by less are tried by the same loads."""
_READY = re.compile(r"berth-worker ready grpc=(\S+) http=(\S+)")


def _cases(load: Load, speed: Speed) -> dict[str, Load]:
    """Objectives such that one binds; the others are loose, but for the first token where the gap bounds the slots."""
    step = dict(zip(speed.concurrency, speed.step_seconds, strict=True))
    gap = dict(zip(speed.concurrency, speed.gap_p99_seconds, strict=True))
    alone = load.prompt_tokens * (1 - load.cached_share) / speed.prefill_tokens_per_second + step[1]
    turn = alone + (load.output_tokens - 1) * step[1]
    by_turn = replace(load, turn=2.5 * turn)
    carried = _carried(speed, by_turn)
    there = latencies(speed, load, carried.turns_per_second, carried.concurrency)
    assert there is not None
    return {
        "turn": by_turn,
        "first_token": replace(load, first_token=there.first_token),
        "gap": replace(load, gap=1.25 * max(gap[b] for b in (1, 2, 4, 8)), first_token=20 * alone),
    }


def _groups(cases: dict[str, Load], speed: Speed) -> list[dict[str, Load]]:
    """Cases that one worker and one load answer together: the same gap, and nearly the same capacity."""
    groups: list[dict[str, Load]] = []
    for name, load in cases.items():
        carried = _carried(speed, load)
        for group in groups:
            other = next(iter(group.values()))
            same = _carried(speed, other)
            near = abs(same.turns_per_second / carried.turns_per_second - 1) < _NEAR
            if near and other.gap == load.gap:
                group[name] = load
                break
        else:
            groups.append({name: load})
    return groups


@dataclass(frozen=True)
class Point:
    """A load and what came of it."""

    nominal: float
    """Share of the capacity predicted from the profile."""
    drift: Drift
    now: Speed
    """The profile, slowed by that."""
    predicted: Latencies | None
    """For that."""
    by_profile: Latencies | None
    """For the profile as it is."""
    seen: Seen
    parts: dict[str, tuple[float, float]]
    """Predicted (NaN: not predicted) and seen, of what latencies are made of."""

    def used(self, load: Load, name: str) -> float:
        """p99 over an objective; 1: just kept."""
        return p99(getattr(self.seen, name)) / float(getattr(load, name))

    def broken(self, load: Load) -> bool:
        """Whether any objective is."""
        return any(self.used(load, name) > 1 for name in OBJECTIVES)


@dataclass(frozen=True)
class Bench:
    """What is the same for all loads."""

    speed: Speed
    agents: Agents
    turns: int
    """At each load."""
    at: tuple[float, ...]
    report: Report
    json: Path | None
    keep: Path | None
    """Where records stay."""


def main() -> None:
    """Profile, predict, measure, compare."""
    parser = options(__doc__)
    parser.add_argument("--turns", type=int, help="at each load (default: 5000, --quick: 300)")
    parser.add_argument("--case", action="append", choices=["first_token", "gap", "turn"], help="only this one")
    parser.add_argument("--at", type=float, action="append", help="only this share of the capacity, such as 0.5")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the profile and all records there")
    chosen = parser.parse_args()
    agents = AGENTS
    report = Report(1)
    with worker(max(SLOTS)) as running:
        profile = bench(running, agents, SLOTS, 16 if chosen.quick else 256)  # p99s are of some 200 steps, not of 50
    load = Load(
        prompt_tokens=agents.prompt,
        output_tokens=agents.output,
        cached_share=1 - agents.uncached / agents.prompt,
        turns_per_session=agents.turns,
        think_seconds=agents.think,
        first_token=_LOOSE,
        gap=_LOOSE,
        turn=_LOOSE,
    )
    if chosen.keep:
        chosen.keep.mkdir(parents=True, exist_ok=True)
        (chosen.keep / "profile.json").write_text(profile.model_dump_json(by_alias=True, exclude_none=True))
    speed = profile_speed(profile, load.mean_context_tokens)
    report.figure("prefill_tokens_per_second", speed.prefill_tokens_per_second)
    for slots in sorted({point.concurrency for point in profile.spec.points}):
        at = speed.concurrency.index(slots)
        report.figure(f"step_{slots}_ms", 1000 * speed.step_seconds[at])
        report.figure(f"step_{slots}_p99_ms", 1000 * speed.gap_p99_seconds[at])
    turns = chosen.turns or (300 if chosen.quick else 5000)
    whole = Bench(speed, agents, turns, tuple(chosen.at or (*AT, *BEYOND)), report, chosen.json, chosen.keep)
    errors: dict[str, list[float]] = {"50": [], "75": [], "capacity": []}
    cases = {name: case for name, case in _cases(load, speed).items() if not chosen.case or name in chosen.case}
    for group in _groups(cases, speed):
        _run(group, whole, errors)
        for key, name in (
            ("50", "p99_error_percent_50"),
            ("75", "p99_error_percent_75"),
            ("capacity", "capacity_error_percent"),
        ):
            if errors[key]:
                report.figure(name, 100 * max(errors[key]))
        report.write(chosen.json)


def _run(group: dict[str, Load], whole: Bench, errors: dict[str, list[float]]) -> None:
    """All loads of cases that share them; the rates are shares of the first case's capacity."""
    first = next(iter(group.values()))
    slots = max(_carried(whole.speed, load).concurrency for load in group.values())
    for name, load in group.items():
        whole.report.figure(f"{name}_predicted_turns_per_second", _carried(whole.speed, load).turns_per_second)
        whole.report.figure(f"{name}_slots", slots)
    points: list[Point] = []
    with worker(slots, first.gap, whole.keep and whole.keep / "_".join(group)) as running:
        for number, share in enumerate(whole.at):
            if share in BEYOND and all(points and points[-1].broken(load) for load in group.values()):
                break
            points.append(_point(running, first, whole, slots, share, number))
            _show("_".join(group), points[-1], group, whole.report)
            whole.report.write(whole.json)
    progress("")
    for share, key in ((0.5, "50"), (0.75, "75")):
        for at in points:
            if at.nominal == share and at.predicted:
                errors[key] += [abs(v / p99(getattr(at.seen, k)) - 1) for k, v in asdict(at.predicted).items()]
    for name, load in group.items():
        if (breaks := _breaking_share(points, load)) is not None:
            whole.report.figure(f"{name}_breaks_at_share", breaks)
            errors["capacity"].append(abs(1 / breaks - 1))


def _point(running: Running, load: Load, whole: Bench, slots: int, share: float, seed: int) -> Point:
    """A share of the predicted capacity, offered, and what is predicted for the machine as it was meanwhile."""
    rate = share * _carried(whole.speed, load).turns_per_second
    progress(f"capacity: {share:.0%}: {whole.turns} turns at {rate:.2f}/s")
    seen = asyncio.run(offer(running.grpc, whole.agents, rate, whole.turns, seed=seed))
    trace = Trace.read(running.record, seen.began, seen.ended)
    drift = trace.drift(whole.speed, whole.agents.new)
    now = drift.slowed(whole.speed)
    was, said = trace.parts(), parts_predicted(now, load, seen.rate, slots)
    parts = {name: (said.get(name, math.nan), was.get(name, math.nan)) for name in said | was}
    return Point(share, drift, now, *(latencies(s, load, seen.rate, slots) for s in (now, whole.speed)), seen, parts)


def _carried(speed: Speed, load: Load) -> ReplicaCapacity:
    capacity = replica_capacity(speed, load)
    if not isinstance(capacity, ReplicaCapacity):
        raise SystemExit(f"capacity: {capacity.reason}: this machine is too busy to measure anything")
    return capacity


def _show(name: str, point: Point, group: dict[str, Load], report: Report) -> None:
    drift = f"steps take {1000 * point.drift.steps:+.2f} ms and prompts {point.drift.prompts:.2f} times the profile's"
    offered = f"{len(point.seen.turn)} turns at {point.seen.rate:.2f}/s; {drift}"
    report.note(f"{name} {point.nominal:.0%}", offered)
    key = f"{name}_{point.nominal * 100:.0f}"
    report.figures |= {
        f"{key}_turns_per_second": point.seen.rate,
        f"{key}_drift_steps_ms": 1000 * point.drift.steps,
        f"{key}_drift_prompts": point.drift.prompts,
        f"{key}_began": point.seen.began,
        f"{key}_ended": point.seen.ended,
    }
    for what in OBJECTIVES:
        values = getattr(point.seen, what)
        low, high = p99_interval(values)
        predicted, by_profile = (getattr(p, what) if p else math.inf for p in (point.predicted, point.by_profile))
        objectives = ", ".join(f"{1000 * getattr(load, what):.0f} ({case})" for case, load in group.items())
        text = (
            f"p99 {1000 * p99(values):.1f} ms ({1000 * low:.1f} to {1000 * high:.1f}), predicted {1000 * predicted:.1f}"
            f" ({100 * (predicted / p99(values) - 1):+.0f} %; as profiled {1000 * by_profile:.1f}), objective"
            f" {objectives}; p50 {1000 * median(values):.1f}"
        )
        report.note(f"  {what}", text)
        report.figures |= {
            f"{key}_{what}_p99_ms": 1000 * p99(values),
            f"{key}_{what}_p50_ms": 1000 * median(values),
            f"{key}_{what}_p99_predicted_ms": 1000 * predicted,
            f"{key}_{what}_p99_by_profile_ms": 1000 * by_profile,
        }
    for part, (said, was) in point.parts.items():
        report.note(f"  {part}", f"{was:.4g}, predicted {said:.4g}" if not math.isnan(said) else f"{was:.4g}")
        for suffix, value in (("", was), ("_predicted", said)):
            if not math.isnan(value):
                report.figures[f"{key}_{part}{suffix}"] = float(f"{value:.4g}")


def _breaking_share(points: list[Point], load: Load) -> float | None:
    """Share of the predicted capacity, of the machine as it was meanwhile, at which the first objective breaks; each
    p99 log-linear between two loads."""
    shares = [p.seen.rate / _carried(p.now, load).turns_per_second for p in points]
    found = [_crossing(shares, [p.used(load, name) for p in points]) for name in OBJECTIVES]
    return min((share for share in found if share is not None), default=None)


def _crossing(shares: Sequence[float], used: Sequence[float]) -> float | None:
    seen = sorted(zip(shares, used, strict=True))
    for (low, a), (high, b) in itertools.pairwise(seen):
        if a <= 1 < b:
            return low + (high - low) * math.log(1 / a) / math.log(b / a)
    return seen[0][0] / seen[0][1] if seen[0][1] > 1 else None


# --- The worker and its profile -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    """A worker: addresses, and where its steps are recorded."""

    grpc: str
    http: str
    record: Path


@contextmanager
def worker(slots: int, gap: float = _LOOSE, keep: Path | None = None) -> Iterator[Running]:
    """A berth-worker process that knows the promise between tokens, seconds, and is recorded (`keep`: for good)."""
    folder = tempfile.TemporaryDirectory()
    record = keep or Path(folder.name) / "worker"
    command = [sys.executable, str(Path(__file__).with_name("capacity_worker.py")), str(record)]
    command += ["--model", MODEL, "--host", "127.0.0.1"]
    command += ["--grpc-port", "0", "--http-port", "0", "--threads", "1", "--speculation", "off"]
    command += ["--max-concurrency", str(slots), "--max-queue", "4096", "--max-context-tokens", "2048"]
    command += ["--kv-cache-tokens", "65536", "--inter-token-latency-p99-seconds", str(gap)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        found = next((match for line in process.stdout if (match := _READY.search(line))), None)
        if found is None:
            raise RuntimeError(f"berth-worker ended with code {process.wait()}")
        yield Running(found[1], found[2], record)
    finally:
        process.kill()
        process.wait()
        folder.cleanup()


def bench(running: Running, agents: Agents, streams: Sequence[int], requests: int) -> ServingProfile:
    """What `berth bench` prints of a worker, at turns like those of these agents.

    Streams whose prompts are read one after the other have to decode together for a while: where some hardly do, as
    prompts are read slowly, all answer longer.  Raises SystemExit where they do not even so.
    """
    command = [str(Path(sys.executable).with_name("berth")), "bench", running.grpc]
    command += ["--http-address", running.http, "--model", MODEL, "--hardware-class", "here", "-o", "json"]
    command += ["--concurrency", ",".join(map(str, streams)), "--requests", str(requests), "--machine", "this one"]
    command += ["--prompt-tokens", str(agents.prompt - agents.new), "--new-tokens", str(agents.new)]
    for longer in LONGER:
        output = ["--output-tokens", str(longer * agents.output)]
        done = subprocess.run([*command, *output], capture_output=True, text=True, check=True)
        profile = ServingProfile.model_validate(json.loads(done.stdout))
        if {point.concurrency for point in profile.spec.points} == set(streams):
            return profile
    raise SystemExit(f"berth bench measured too few concurrencies:\n{done.stderr}")


if __name__ == "__main__":
    main()
