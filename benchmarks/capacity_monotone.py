"""What is easier carries no less: in how many random pairs does the capacity model break that, and by how much?

Pairs of a speed and a load, their ranges spread evenly (in the logarithm where they span decades), each with one field
made easier by a random factor, and with all of them.  A pair counts that carries anything.  Counts alone, no timings:
the same seed finds the same pairs on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from _common import Report, options
from berth_operator.api import Runtime, RuntimeName
from berth_operator.planner import ReplicaCapacity
from berth_operator.planner.capacity import Load, as_replicas, solve
from berth_operator.planner.speed import Speed, concurrency_grid, token_budgets

PAIRS = 4000
AT_ONCE = 512
"""Pairs in one batch."""
WORSE = 1e-6
"""Relative: what carries less by more than that breaks the rule."""

Pair = tuple[Speed, Load]
Dice = np.random.Generator


@dataclass(frozen=True, slots=True)
class Drawn:
    """A pair and its easier versions."""

    pair: Pair
    easier: Mapping[str, Pair]


def main() -> None:
    """Draw, solve, count."""
    parser = options(__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--field", action="append", help="only this one, to be given several times (default: all)")
    parser.add_argument("--worst", type=int, default=2, help="examples to print of each field (default: 2)")
    arguments = parser.parse_args()
    dice, pairs = np.random.default_rng(arguments.seed), AT_ONCE if arguments.quick else arguments.pairs
    report = Report(1)
    found: dict[str, list[tuple[float, Drawn]]] = {}
    carrying = 0
    for start in range(0, pairs, AT_ONCE):
        drawn = [draw(dice) for _ in range(min(AT_ONCE, pairs - start))]
        some = [d for d, rate in zip(drawn, rates([d.pair for d in drawn]), strict=True) if rate > 0]
        carrying += len(some)
        for name, falls in fallen(some, arguments.field).items():
            found.setdefault(name, []).extend(zip(falls, some, strict=True))
    print(f"{carrying} of {pairs} pairs carry anything")
    report.figures["monotone_pairs"] = carrying
    for name, falls in found.items():
        worse = sorted((f for f in falls if f[0] > WORSE), key=lambda f: -f[0])
        print(f"{name:>14}: {len(worse):4d} carry less, {sum(f > 0.01 for f, _ in worse):4d} by more than 1 %", end="")
        print(f", worst {100 * worse[0][0]:.1f} %" if worse else "")
        key = f"monotone_{name.replace(' ', '_')}"
        report.figures |= {f"{key}_worse": len(worse), f"{key}_worst_percent": 100 * worse[0][0] if worse else 0.0}
        for fall, d in worse[: arguments.worst]:
            print(f"    {100 * fall:.2f} %: {_shown(d.pair)}\n        {_differences(d.pair, d.easier[name])}")
    report.write(arguments.json)


def fallen(drawn: Sequence[Drawn], names: Sequence[str] | None = None) -> dict[str, list[float]]:
    """By what is easier: [pair] by how much less it carries, relative; 0 or less where it carries no less."""
    chosen = names or list(drawn[0].easier)
    base = np.array(rates([d.pair for d in drawn]))
    return {name: (1 - np.array(rates([d.easier[name] for d in drawn])) / base).tolist() for name in chosen}


def rates(pairs: Sequence[Pair]) -> list[float]:
    """Turns/s that each carries; 0 for nothing."""
    solved = solve(as_replicas(pairs), [load for _, load in pairs], [False] * len(pairs))
    return [one.turns_per_second if isinstance(one, ReplicaCapacity) else 0.0 for one, _ in solved]


def draw(dice: Dice) -> Drawn:
    """A random pair that memory has room for, and what is easier."""
    while True:
        load = _load(dice)
        speed = _speed(dice, load.mean_context_tokens)
        if load.context_tokens <= speed.kv_cache_tokens:
            factors = np.exp(dice.uniform(0.01, math.log(4), len(EASIER)))
            easier = {name: make((speed, load), f) for (name, make), f in zip(EASIER.items(), factors, strict=True)}
            together = speed, load
            for make, factor in zip(EASIER.values(), factors, strict=True):
                together = make(together, factor)
            return Drawn((speed, load), easier | {"all together": together})


def _speed(dice: Dice, context: float) -> Speed:
    """Up to 0.7 of what reading a token takes behind so many others is attention to these.

    Half of them are dense profiles of up to 64 streams, the others on the planner's own grid; of these half are
    estimates of a roofline, in whose steps a part of a prompt rides along for free.  Half of all are vLLM's, whose
    steps have token budgets."""
    kind = dice.integers(4)
    grid = list(range(1, int(dice.integers(1, 64)) + 1)) if kind < 2 else concurrency_grid(int(dice.integers(1, 512)))
    count = np.array(grid, dtype=np.float64)
    prefill = _even_log(dice, 100, 50_000)
    if kind < 3:
        idle = np.zeros(len(grid))
        step = dice.uniform(0.002, 0.08) + dice.uniform(0.0, 0.01) * count
    else:
        arithmetic = count / prefill
        memory = dice.uniform(0.002, 0.08) + _even_log(dice, 1e-6, 1e-3) * count
        idle = np.maximum(memory - arithmetic, 0.0)
        step = np.maximum(memory, arithmetic) + dice.uniform(0.0, 0.005) + 50e-6 * count
    gap = step * dice.uniform(1.02, 1.5)
    kv = int(_even_log(dice, 2_000, 500_000))
    attention = float(dice.uniform(0, 0.7)) / prefill / context
    columns = tuple(grid), tuple(step.tolist()), tuple(gap.tolist()), tuple(idle.tolist())
    name = RuntimeName.VLLM if dice.integers(2) else RuntimeName.BERTH
    return Speed(*columns, prefill, kv, False, attention, token_budgets(Runtime(name=name)))


def _load(dice: Dice) -> Load:
    return Load(
        prompt_tokens=int(_even_log(dice, 1, 8000)),
        output_tokens=int(_even_log(dice, 1, 1000)),
        cached_share=float(dice.uniform(0, 1)),
        turns_per_session=int(dice.choice([1, 4, 12])),
        think_seconds=float(dice.uniform(0, 60)),
        first_token=_even_log(dice, 0.05, 60),
        gap=_even_log(dice, 0.01, 1),
        turn=_even_log(dice, 1, 500),
    )


def _even_log(dice: Dice, low: float, high: float) -> float:
    return float(np.exp(dice.uniform(math.log(low), math.log(high))))


def _first_token(pair: Pair, factor: float) -> Pair:
    return pair[0], replace(pair[1], first_token=pair[1].first_token * factor)


def _gap(pair: Pair, factor: float) -> Pair:
    return pair[0], replace(pair[1], gap=pair[1].gap * factor)


def _turn(pair: Pair, factor: float) -> Pair:
    return pair[0], replace(pair[1], turn=pair[1].turn * factor)


def _prefill(pair: Pair, factor: float) -> Pair:
    speed = pair[0]
    faster = speed.prefill_tokens_per_second * factor
    return replace(speed, prefill_tokens_per_second=faster, attention_seconds=speed.attention_seconds / factor), pair[1]


def _steps(pair: Pair, factor: float) -> Pair:
    speed = pair[0]
    step, gap, idle = (
        tuple(x / factor for x in values) for values in (speed.step_seconds, speed.gap_p99_seconds, speed.idle_seconds)
    )
    return replace(speed, step_seconds=step, gap_p99_seconds=gap, idle_seconds=idle), pair[1]


def _faster(pair: Pair, factor: float) -> Pair:
    return _steps(_prefill(pair, factor), factor)


def _memory(pair: Pair, factor: float) -> Pair:
    return replace(pair[0], kv_cache_tokens=int(pair[0].kv_cache_tokens * factor)), pair[1]


def _cached(pair: Pair, factor: float) -> Pair:
    return pair[0], replace(pair[1], cached_share=1 - (1 - pair[1].cached_share) / factor)


def _shorter_prompts(pair: Pair, factor: float) -> Pair:
    """Behind which reading a token takes less, too."""
    speed, load = pair
    shorter = replace(load, prompt_tokens=max(1, int(load.prompt_tokens / factor)))
    fewer = load.mean_context_tokens - shorter.mean_context_tokens
    token = 1 / speed.prefill_tokens_per_second - speed.attention_seconds * fewer
    return replace(speed, prefill_tokens_per_second=1 / token), shorter


EASIER: Mapping[str, Callable[[Pair, float], Pair]] = {
    "first token": _first_token,
    "gap": _gap,
    "turn": _turn,
    "prefill": _prefill,
    "all faster": _faster,
    "memory": _memory,
    "cached": _cached,
    "shorter": _shorter_prompts,
}


def _shown(pair: Pair) -> str:
    speed, load = pair
    figures = f"{len(speed.concurrency)} columns to {speed.concurrency[-1]}, step {speed.step_seconds[0]:.5f} to"
    figures += f" {speed.step_seconds[-1]:.5f}, p99 x {speed.gap_p99_seconds[0] / speed.step_seconds[0]:.3f},"
    figures += f" idle {speed.idle_seconds[0]:.4f}, prefill {speed.prefill_tokens_per_second:.0f},"
    figures += f" budgets to {speed.token_budgets[1]}"
    return f"{figures}, kv {speed.kv_cache_tokens}; {load}"


def _differences(pair: Pair, easier: Pair) -> str:
    """What each carries, and with how many slots."""
    solved = solve(as_replicas([pair, easier]), [pair[1], easier[1]], [False] * 2)
    return " -> ".join(
        f"{one.turns_per_second:.4f}/s with {one.concurrency}" if isinstance(one, ReplicaCapacity) else "nothing"
        for one, _ in solved
    )


if __name__ == "__main__":
    main()
