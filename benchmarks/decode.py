"""How fast does a worker decode and read prompts on this machine, and how near is that to what its memory allows?

Int8 kernels against plain PyTorch in float32 and bfloat16, on the embedded model, interleaved in one process: a round
runs every variant once, so that a slow moment of the machine hits all.  Prints the best and the median of the rounds:
the best is what the code can do, the median what this machine gave.

    python benchmarks/decode.py [--quick] [--json FILE] [--threads N] [--model SOURCE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from berth_worker import __name__ as worker_name
from berth_worker import kernels
from berth_worker.kernels.cpus import usable_cpus
from berth_worker.kernels.packing import WeightStore
from berth_worker.model.gguf_file import GgufFile
from berth_worker.model.int8 import Int8Llama
from berth_worker.model.interface import BLOCK_TOKENS, Batch, Model
from berth_worker.model.llama import Llama
from berth_worker.model.llama_gguf import LlamaReader
from berth_worker.model.sources import resolve

PROMPT_TOKENS = 256
DEEP = 3000


@dataclass
class Measure:
    """Tokens per second of one figure, a value a round."""

    values: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        return {"best": round(max(self.values), 1), "median": round(statistics.median(self.values), 1)}


def token_ids(model: Model, count: int) -> list[int]:
    """Ids spread over the vocabulary."""
    return [i * 7919 % model.config.vocab_size for i in range(count)]


def decode(model: Model, batch: int, depth: int, steps: int) -> float:
    """Tokens a second of `batch` streams, each with `depth` tokens of context of its own before them."""
    blocks = -(-(depth + steps) // BLOCK_TOKENS)
    cache = model.new_cache(blocks * batch)
    tables = [list(range(i * blocks, (i + 1) * blocks)) for i in range(batch)]
    context = token_ids(model, depth)
    for table in tables:
        for start in range(0, depth, 512):
            part = context[start : start + 512]
            end = start + len(part)
            model.forward(Batch(part, list(range(start, end)), [0, len(part)], [end], [table], []), cache)
    starts, rows = list(range(batch + 1)), list(range(batch))
    begin = time.perf_counter()
    for length in range(depth + 1, depth + steps + 1):
        model.forward(Batch([length] * batch, [length - 1] * batch, starts, [length] * batch, tables, rows), cache)
    return batch * steps / (time.perf_counter() - begin)


def prefill(model: Model, tokens: int) -> float:
    """Tokens a second of one prompt in one step, with the logits of its last token."""
    blocks = -(-tokens // BLOCK_TOKENS)
    cache = model.new_cache(blocks)
    batch = Batch(
        token_ids(model, tokens), list(range(tokens)), [0, tokens], [tokens], [list(range(blocks))], [tokens - 1]
    )
    begin = time.perf_counter()
    model.forward(batch, cache)
    return tokens / (time.perf_counter() - begin)


def read_bandwidth(size: int, threads: int) -> Callable[[], float]:
    """GB/s of reading `size` bytes on huge pages once, with as many threads as a step has."""
    store = WeightStore(size)
    store.tensor(torch.ones(size // 4, dtype=torch.int32))
    memory, _ = store.finish()

    def once() -> float:
        begin = time.perf_counter()
        kernels.read_bytes(memory, threads)
        return memory.numel() / (time.perf_counter() - begin) / 1e9

    return once


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 short rounds instead of 7")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--model", default="smollm2-135m-instruct", metavar="SOURCE")
    options = parser.parse_args()

    rounds, steps = (3, 12) if options.quick else (7, 40)
    reader = LlamaReader(GgufFile(resolve(options.model).path))
    int8 = Int8Llama(reader, options.threads)
    torch.set_num_threads(options.threads)
    models: dict[str, Int8Llama | Llama] = {
        "int8": int8,
        "fp32": Llama(reader, torch.float32),
        "bf16": Llama(reader, torch.bfloat16),
    }
    cases: dict[str, Callable[[Model], float]] = {
        "decode_b1": lambda model: decode(model, 1, 0, steps),
        "decode_b8": lambda model: decode(model, 8, 0, max(4, steps // 4)),
        "prefill256": lambda model: prefill(model, PROMPT_TOKENS),
    }
    bandwidth = read_bandwidth(int8.resident_bytes, options.threads)
    figures = {f"{name}_{case}": Measure() for name in models for case in cases}
    figures["int8_decode_b1_d3000"], reads = Measure(), Measure()
    for model in models.values():
        decode(model, 1, 0, 2)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        reads.values += [bandwidth() for _ in range(5)]
        for case, run in cases.items():
            for name, model in models.items():
                figures[f"{name}_{case}"].values.append(run(model))
        figures["int8_decode_b1_d3000"].values.append(decode(int8, 1, DEEP, max(4, steps // 2)))

    tokens = {name: figure.summary() for name, figure in figures.items()}
    read = reads.summary()
    weights = int8.resident_bytes / 1e9
    result = {
        "model": options.model,
        "recipe": int8.recipe.name,
        "threads": options.threads,
        "rounds": rounds,
        "processor": processor(),
        "cpus": usable_cpus(),
        "isa": int8.isa,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, worker_name: _version()},
        "tokens_per_second": tokens,
        "weights_gb": round(weights, 4),
        "read_gb_per_second": read,
        "decode_b1_bandwidth_fraction": {
            kind: round(tokens["int8_decode_b1"][kind] * weights / read[kind], 3) for kind in ("best", "median")
        },
    }
    print_table(result, list(models), [*cases])
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415

    return version("berth-worker")


def print_table(result: dict[str, object], names: list[str], cases: list[str]) -> None:
    tokens = result["tokens_per_second"]
    assert isinstance(tokens, dict)
    what = f"{result['model']} {result['recipe']}, {result['isa']}"
    print(f"\n{what}, {result['threads']} threads on {result['processor']}")
    print(f"{'tokens/s, best (median)':26}" + "".join(f"{name:>20}" for name in names))
    for case in cases:
        cells = [f"{tokens[f'{name}_{case}']['best']} ({tokens[f'{name}_{case}']['median']})" for name in names]
        print(f"{case:26}" + "".join(f"{cell:>20}" for cell in cells))
    deep = tokens["int8_decode_b1_d3000"]
    print(f"{'decode_b1_d3000':26}" + f"{deep['best']} ({deep['median']})".rjust(20))
    print(f"memory read, GB/s: {result['read_gb_per_second']}; fraction reached at batch 1: ", end="")
    print(result["decode_b1_bandwidth_fraction"])


if __name__ == "__main__":
    main()
