"""Which figures stand in docs/economics.md?  Its tables, made by the commands that each of them names.

Every figure comes out of a `berth` command, run as a user would run it and printed before its table.  They are answers
of a model and not measurements: the same on every machine.  Tables are Markdown, to be pasted.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import yaml
from _common import options, progress
from berth_operator.catalog.arm import FAMILIES

CHAT: Final = "llama-3.1-8b-instruct --workload Interactive --first-token 2s --between-tokens 100ms --think-time 30s"
SLOW: Final = "--workload Interactive --first-token 10s --between-tokens 500ms --cached-percent 90"
WORKLOADS: Final = {
    "SmolLM2-135M, agent": "smollm2-135m-instruct",
    "Llama-3.2-1B, agent": "llama-3.2-1b-instruct",
    "Llama-3.2-3B, agent": "llama-3.2-3b-instruct",
    "Llama-3.1-8B, agent": "llama-3.1-8b-instruct",
    "the same, slow (3 s, 100 ms, pause 10 s)": (
        "llama-3.1-8b-instruct --first-token 3s --between-tokens 100ms --think-time 10s"
    ),
    "Llama-3.1-8B, chat, 90 % cached": f"{CHAT} --cached-percent 90",
    "Llama-3.1-8B, batch (60 s, 1 s)": "llama-3.1-8b-instruct --workload Batch",
    "Llama-3.1-70B, slow (10 s, 500 ms), 90 % cached": f"llama-3.1-70b-instruct {SLOW}",
}
CACHED: Final = (0, 25, 50, 60, 70, 80, 90, 95)
SHOWN: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WORTH: Final = 40
"""Percent: the lower end of the claim that is examined."""
SEEDS: Final = (1, 2, 3, 4, 5)
SPOT: Final = (20, 70, 100)
"""Percent of on demand; the scenarios have 40."""
POLICIES: Final = ("berth", "berth-gpu-only", "gpu-autoscaled", "fixed-by-hand", "karpenter-like")
_GRAVITON: Final = re.compile(r"^graviton\d-(\w+)-\d+xl$")

Found = Mapping[str, Any]


def main() -> None:
    """Print the tables of the document, and write every figure as one flat JSON."""
    parser = options(__doc__)
    parser.add_argument("--part", choices=("crossover", "days"), help="only these tables (0.5 and 2.5 minutes)")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw the document's pictures there instead")
    parser.add_argument(
        "--fair-shares", type=Path, metavar="FILE", help="write the classes at their fair shares there instead"
    )
    arguments = parser.parse_args()
    if arguments.pictures or arguments.fair_shares:
        if arguments.fair_shares:
            arguments.fair_shares.write_text(fair_shares())
        if arguments.pictures:
            _draw(arguments.pictures)
        return
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.part != "days":
            _crossovers(Path(folder), figures, quick=arguments.quick)
        if arguments.part != "crossover":
            _days(Path(folder), figures, quick=arguments.quick)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


# --- Commands -------------------------------------------------------------------------------------------------------


@cache
def berth(*arguments: str) -> Found:
    """What `berth ... -o json` prints."""
    progress(shlex.join(("berth", *arguments)))
    run = [str(Path(sys.executable).with_name("berth")), *arguments, "-o", "json"]
    found: Found = json.loads(subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout)
    progress("")
    return found


def fair_shares() -> str:
    """The catalog's classes as `berth hardware list -o yaml` has them, no part of a chip with more than its share."""
    found = berth("hardware", "list")
    for item in found["items"]:
        if known := _GRAVITON.match(item["metadata"]["name"]):
            chip, _ = FAMILIES[known[1]]
            share = chip.bandwidth_gbps * item["spec"]["cpus"] / chip.cores
            spec = item["spec"]
            spec["memoryBandwidthGBps"] = min(spec["memoryBandwidthGBps"], round(share))
    usable = [item for item in found["items"] if all(c.get("maxNodes") != 0 for c in item["spec"]["capacity"])]
    text: str = yaml.safe_dump({**found, "items": usable}, sort_keys=False)
    return text


# --- Where lines cross ----------------------------------------------------------------------------------------------


def _crossovers(folder: Path, figures: dict[str, float], *, quick: bool) -> None:
    shares = folder / "fair-shares.yaml"
    shares.write_text(fair_shares())
    cached = (90,) if quick else CACHED
    workloads = dict(list(WORKLOADS.items())[:1]) if quick else WORKLOADS
    for extra, title in (((), "as shipped"), (("-f", str(shares)), "every part of a Graviton at its fair share")):
        print(f"\n# Hardware {title}\n")
        _cache_table(cached, extra, figures, "fair_" if extra else "")
        _sizes_table(workloads, extra, figures, "fair_" if extra else "")


def lowest(found: Found, case: str, *, graviton: bool) -> dict[int, tuple[float, str]]:
    """By concurrency, (cost of a token in some unit, class) of the best Graviton, or of the best of all others."""
    best: dict[int, tuple[float, str]] = {}
    for line in found["lines"]:
        if bool(_GRAVITON.match(line["hardwareClass"])) is graviton:
            for point in line["points"]:
                if cost := point[case]:
                    # with idle time all classes make the same tokens, and printed rates have three digits
                    tokens = float(cost["tokensPerSecond"]) if case == "busy" else 1.0
                    mine = cost["nodes"] * float(line["usdPerHour"]) / tokens, line["hardwareClass"]
                    best[point["concurrency"]] = min(mine, best.get(point["concurrency"], mine))
    return best


def saved(found: Found, case: str) -> dict[int, float | None]:
    """Percent that the best Graviton saves against the best GPU, by concurrency; None: no Graviton can do it."""
    ours, others = (lowest(found, case, graviton=graviton) for graviton in (True, False))
    return {n: (1 - ours[n][0] / usd) * 100 if n in ours else None for n, (usd, _) in sorted(others.items())}


def _until(percent: Mapping[int, float | None], least: float) -> str:
    """Up to how many sessions the saving is that much, from one on."""
    last = 0
    for n, value in percent.items():
        if value is None or value < least:
            return str(last) if last else "-"
        last = n
    return f"{last} and more"


def _steps(found: Found) -> str:
    steps = found["cheapest"]["idle"]
    if not steps:
        return "none can"
    first, *rest = steps
    words = [f"{first['line']}, {first['usdPerMillionTokens']}"]
    return "; ".join([*words, *(f"{s['line']} from {s['fromConcurrency']}" for s in rest)])


def _row(cells: Iterable[str]) -> None:
    print("| " + " | ".join(cells) + " |")


def _head(*cells: str) -> None:
    _row(cells)
    _row("---" for _ in cells)


def _percent(value: float | None) -> str:
    return "cannot" if value is None else f"{value:.0f} %"


def _crossover(words: str, extra: Sequence[str]) -> Found:
    return berth("crossover", *shlex.split(words), *extra)


def _cache_table(cached: Sequence[int], extra: Sequence[str], figures: dict[str, float], prefix: str) -> None:
    print(f"`berth crossover {CHAT} --cached-percent P`: saved by the best Graviton, with idle time, by sessions\n")
    _head("cached prompt", *map(str, SHOWN), "cheapest of all")
    for rate in cached:
        found = _crossover(f"{CHAT} --cached-percent {rate}", extra)
        percent = saved(found, "idle")
        _row([f"{rate} %", *(_percent(percent[n]) for n in SHOWN), _steps(found)])
        _keep(figures, f"{prefix}chat_cached_{rate}", percent)
    found = _crossover(f"{CHAT} --cached-percent 90", extra)
    print("\nThe same at 90 %, always busy, by requests in flight\n")
    _head(*map(str, SHOWN))
    percent = saved(found, "busy")
    _row(_percent(percent[n]) for n in SHOWN)
    _keep(figures, f"{prefix}chat_cached_90_busy", percent)
    print()


def _sizes_table(workloads: Mapping[str, str], extra: Sequence[str], figures: dict[str, float], prefix: str) -> None:
    print("`berth crossover MODEL ...`: with idle time by sessions, always busy by requests in flight\n")
    _head("workload", "case", *map(str, SHOWN), "Graviton wins to", f"{WORTH} % to", "cheapest with idle time")
    for title, words in workloads.items():
        found = _crossover(words, extra)
        for case, name in (("idle", "with idle time"), ("busy", "always busy")):
            percent = saved(found, case)
            steps = _steps(found) if case == "idle" else ""
            cells = [*(_percent(percent[n]) for n in SHOWN), _until(percent, 1e-9), _until(percent, WORTH), steps]
            _row([title if case == "idle" else "", name, *cells])
            _keep(figures, f"{prefix}{re.sub('[^a-z0-9]+', '_', title.lower())}_{case}", percent)
    print("\n" + "\n".join(f"- {title}: `berth crossover {words}`" for title, words in workloads.items()) + "\n")


def _keep(figures: dict[str, float], name: str, percent: Mapping[int, float | None]) -> None:
    for n in SHOWN:
        if (value := percent.get(n)) is not None:
            figures[f"{name}_at_{n}_saved_percent"] = float(f"{value:.4g}")


# --- Days -----------------------------------------------------------------------------------------------------------


def _days(folder: Path, figures: dict[str, float], *, quick: bool) -> None:
    for scenario in ("small",) if quick else ("week", "small"):
        _policies_table(scenario, figures)
    if not quick:
        _others_table(folder, "week", figures)


def _policies_table(scenario: str, figures: dict[str, float]) -> None:
    print(f"`berth simulate {scenario}`\n")
    _head("policy", "USD", "against ours", "turns within objectives", "started", "changed", "mean W (chips)")
    found = {p["name"]: p for p in berth("simulate", scenario)["policies"]}
    ours = found["berth"]["usd"]
    for name in POLICIES:
        p = found[name]
        against = "" if name == "berth" else f"{(p['usd'] / ours - 1) * 100:+.1f} %"
        kept, watts = f"{p['withinObjectivesPercent']:.2f} %", p["meanWatts"]
        _row([name, f"{p['usd']:.2f}", against, kept, str(p["replicasStarted"]), str(p["moves"]), f"{watts:.0f}"])
        figures[f"{scenario}_{name}_usd".replace("-", "_")] = p["usd"]
        figures[f"{scenario}_{name}_within_percent".replace("-", "_")] = p["withinObjectivesPercent"]
    print()


def _others_table(folder: Path, scenario: str, figures: dict[str, float]) -> None:
    """What is saved with other luck, and with spot at other prices."""
    print("Saved by Berth, in percent of GPUs autoscaled on demand (`berth simulate`)\n")
    _head("scenario", "in all", "by planning GPUs alone", "by Arm", "turns within objectives, ours", "theirs")
    cases: dict[str, tuple[str, ...]] = {f"{scenario} --seed {seed}": (scenario, "--seed", str(seed)) for seed in SEEDS}
    text = (files("berth_operator.simulate") / "scenarios" / f"{scenario}.yaml").read_text()
    for percent in SPOT:
        path = folder / f"{scenario}-spot-{percent}.yaml"
        path.write_text(re.sub(r"spot: {percent: \d+", f"spot: {{percent: {percent}", text))
        cases[f"{scenario}, spot at {percent} % of on demand"] = (str(path),)
    for title, words in cases.items():
        chosen = [word for name in POLICIES[:3] for word in ("--policy", name)]
        own, fleet, gpus = berth("simulate", *words, *chosen)["policies"]
        whole, alone, arm = ((a["usd"] - b["usd"]) / gpus["usd"] for a, b in ((gpus, own), (gpus, fleet), (fleet, own)))
        kept = (f"{p['withinObjectivesPercent']:.2f} %" for p in (own, gpus))
        _row([title, *(f"{share * 100:.1f} %" for share in (whole, alone, arm)), *kept])
        figures[f"{re.sub('[^a-z0-9]+', '_', title)}_saved_percent"] = float(f"{whole * 100:.4g}")
        figures[f"{re.sub('[^a-z0-9]+', '_', title)}_saved_by_arm_percent"] = float(f"{arm * 100:.4g}")
    print()


def _draw(folder: Path) -> None:
    """The pictures of the document, by the same commands."""
    folder.mkdir(parents=True, exist_ok=True)
    few = ["graviton4-c8g-4xl", "graviton3-c7g-4xl", "graviton4-c8g-16xl", "l4", "a10g", "l40s", "h100"]
    hardware = [word for name in few for word in ("--hardware", name)]
    berth("crossover", *shlex.split(f"{CHAT} --cached-percent 90"), *hardware, "--picture", str(folder / "chat.png"))
    berth("simulate", "week", "--picture", str(folder / "week.png"))


if __name__ == "__main__":
    main()
