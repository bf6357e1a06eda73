"""How fast is our int8 step beside llama.cpp's, on the same machine, threads, models and depths?

Interleaved, a round runs every side once; ratios are of medians, the peer in whichever of its settings is fastest.
Ours runs through Model.forward, as llama-bench runs llama_decode: neither samples.  What the engine costs around the
steps is in the figures engine_*.  Each of our runs loads the model anew, as each of llama.cpp's does: where the weights
come to lie in memory made a factor of two at batch 1 between processes, and none within one.

    python benchmarks/llamacpp.py [--quick] [--json FILE] [--threads N] [--rounds N] [--only NAME ...]
"""

from __future__ import annotations

import gc
import mmap
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

import models
import torch
from _common import Report, interleave, options, timed
from berth_worker import kernels
from berth_worker.kernels.memory import huge_zeros
from berth_worker.model.interface import LoadedModel, Model
from berth_worker.model.load import load
from llamacpp_runs import Case, candidates, peak_memory, peak_of, run
from ours import Decode, EngineDecode, Prefill
from peers import LLAMA_CPP

DEEP = 3000


@dataclass(frozen=True)
class Bench:
    """A figure of the report: our case, and llama.cpp's on the same model and depth."""

    name: str
    case: Case
    ours: Callable[[Model], Decode | Prefill]


def decode_bench(name: str, case: Case) -> Bench:
    def ours(model: Model) -> Decode:
        depth = case.depth if case.batch == 1 else max(1, case.depth)
        return Decode(model, case.batch, depth, case.decode, shared=case.shared)

    return Bench(name, case, ours)


def prefill_bench(name: str, case: Case) -> Bench:
    return Bench(name, case, lambda model: Prefill(model, case.prompt, case.depth))


def small_benches(quick: bool) -> list[Bench]:
    """135M against Q8_0.  Batches at a depth of 16, because batched-bench has none without a prompt."""
    q8 = models.small("Q8_0")
    steps = 16 if quick else 64
    batches = (1, 8) if quick else (2, 4, 8, 16, 32)
    benches = [decode_bench("decode_b1", Case(q8, decode=steps))]
    benches += [decode_bench(f"decode_b{b}", Case(q8, b, max(8, steps // 2), depth=16)) for b in batches if b > 1]
    benches.append(prefill_bench("prefill256", Case(q8, prompt=256)))
    if not quick:
        benches += [
            decode_bench("decode_b1_d3000", Case(q8, decode=32, depth=DEEP)),
            decode_bench("decode_b4_d3000_shared", Case(q8, 4, 24, depth=DEEP, shared=True)),
            prefill_bench("prefill256_d3000", Case(q8, prompt=256, depth=DEEP)),
        ]
    return benches


def compare(
    report: Report, loading: Callable[[], LoadedModel], benches: list[Bench], rounds: int, peer: str, threads: int
) -> None:
    """Measure each bench; figures NAME_vs_PEER, berth_NAME and llamacpp_NAME."""
    for bench in benches:
        few = rounds < 7
        settings = candidates(bench.case, threads, keep=1 if few else 3, scans=1 if few else 2)
        cases: dict[str, Callable[[], float]] = {"berth": anew(loading, bench.ours)}
        for setting in settings:
            cases[str(setting)] = lambda setting=setting, bench=bench: run(bench.case, setting, threads)  # type: ignore[misc]
        values = interleave(rounds, cases, bench.name)
        mine = values.pop("berth")
        report.speeds(f"berth_{bench.name}", mine)
        report.ratio(f"{bench.name}_vs_llamacpp_{peer}", mine, values)
        report.speeds(f"llamacpp_{bench.name}_{peer}", values[report.machine[f"{bench.name}_vs_llamacpp_{peer}_peer"]])


def anew(loading: Callable[[], LoadedModel], ours: Callable[[Model], Decode | Prefill]) -> Callable[[], float]:
    """Load, run twice, and count the second: the other side reads its model and warms up before each run too."""

    def run_anew() -> float:
        gc.collect()
        case = ours(loading().model)
        case.run()
        return case.run()

    return run_anew


def read_bandwidth(report: Report, threads: int, rounds: int, size: int) -> float:
    """GB/s of reading much more than the caches hold, on 4 KiB and on huge pages; the better of both."""
    small = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        small.madvise(mmap.MADV_NOHUGEPAGE)
    memory = {"4k": torch.frombuffer(small, dtype=torch.uint8), "huge": huge_zeros(size)}
    for tensor in memory.values():
        tensor.fill_(1)

    def reader(tensor: torch.Tensor) -> Callable[[], float]:
        return lambda: size / timed(lambda: kernels.read_bytes(tensor, threads)) / 1e9

    values = interleave(rounds, {name: reader(tensor) for name, tensor in memory.items()}, "memory read")
    return max(report.speeds(f"read_gb_per_second_{name}_pages", found) for name, found in values.items())


def one_billion(report: Report, threads: int, rounds: int) -> None:
    """1.1B: batch 1, and which share of the memory's read bandwidth that is."""
    source = models.one_billion()
    loading = partial(load, str(source), threads=threads)
    loaded = loading()
    config, weights = loaded.config, loaded.resident_bytes
    del loaded
    bandwidth = read_bandwidth(report, threads, 3 * rounds, 1 << 30)
    report.figure("berth_1b_weights_gb", weights / 1e9)
    compare(report, loading, [decode_bench("decode_b1_1b", Case(source, decode=16))], rounds, "q8", threads)
    # a step reads every weight but the embedding's rows, of which it reads one
    embedding = 0 if config.tie_embeddings else config.vocab_size * config.hidden_size
    read = (weights - embedding) / 1e9
    report.figure("berth_1b_read_gb_per_token", read)
    report.figure("decode_b1_1b_bandwidth_fraction", report.figures["berth_decode_b1_1b"] * read / bandwidth)


def four_bits(report: Report, threads: int, rounds: int) -> None:
    """The same 4-bit file on both sides; the named figure is the smaller ratio of the two files."""
    names = []
    for kind in ("Q4_0", "Q4_1"):
        source = models.small(kind)
        loading = partial(load, str(source), quantization="Int4", threads=threads)
        report.note(f"int4_{kind.lower()}_recipe", loading().recipe)
        peer = kind.lower()
        compare(report, loading, [decode_bench("decode_b1_int4", Case(source, decode=64))], rounds, peer, threads)
        names.append(f"decode_b1_int4_vs_llamacpp_{peer}")
    report.figure("decode_b1_int4_vs_llamacpp", min(report.figures[name] for name in names))


def engine(report: Report, loaded: LoadedModel, rounds: int) -> None:
    """What the engine makes of the steps, and the time to the first token of a prompt of 256 tokens."""
    for batch in (1, 8):
        streams = EngineDecode(loaded, batch, 64)
        streams.run()
        values = interleave(rounds, {"engine": streams.run, "ttft": lambda s=streams: s.first_token(256)}, "engine")  # type: ignore[misc]
        report.speeds(f"engine_decode_b{batch}", values["engine"])
        if batch == 1:
            report.speeds("engine_first_token_256_ms", values["ttft"])
        streams.close()


def memory(report: Report, threads: int) -> None:
    """MiB at the peak of a process that loads the 135M and decodes; ours with Python and torch, which are named."""
    for name, code in {
        "berth_python_and_torch_peak_mib": "import berth_worker.model.load",
        "berth_135m_peak_mib": "from berth_worker.model.load import load\n"
        "from ours import Decode\n"
        f"Decode(load({models.EMBEDDED!r}, threads={threads}).model, 1, 0, 32).run()",
    }.items():
        path = os.pathsep.join(sys.path)
        report.figure(name, peak_of([sys.executable, "-c", code], {**os.environ, "PYTHONPATH": path}))
    case = Case(models.small("Q8_0"), decode=32)
    report.figure("llamacpp_135m_q8_peak_mib", peak_memory(case, candidates(case, threads, 1, 1)[0], threads))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="only these figures, such as decode_b1 or 'decode_*'")
    parser.add_argument("--rounds", type=int, help="of each figure (default: 7, --quick: 2)")
    chosen = parser.parse_args()
    rounds = chosen.rounds or (2 if chosen.quick else 7)

    def wanted(name: str) -> bool:
        return chosen.only is None or any(fnmatchcase(name, pattern) for pattern in chosen.only)

    report = Report(chosen.threads)
    loading = partial(load, models.EMBEDDED, threads=chosen.threads)
    loaded = loading()
    report.note("berth", f"{loaded.name} {loaded.recipe} {loaded.path}")
    report.note("peer", f"llama.cpp of {LLAMA_CPP}")
    benches = [bench for bench in small_benches(chosen.quick) if wanted(bench.name)]
    compare(report, loading, benches, rounds, "q8", chosen.threads)
    if wanted("engine"):
        engine(report, loaded, rounds)
    if not chosen.quick:
        del loaded
        gc.collect()
        if wanted("memory"):
            memory(report, chosen.threads)
        if wanted("decode_b1_int4"):
            four_bits(report, chosen.threads, rounds)
        if wanted("decode_b1_1b"):
            one_billion(report, chosen.threads, rounds)
    report.write(chosen.json)


if __name__ == "__main__":
    main()
