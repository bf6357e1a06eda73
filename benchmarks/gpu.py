"""How fast does the batched PyTorch path decode and read prompts on a GPU, and how near is that to reading weights?

BF16 on the first GPU that torch sees: the embedded model, and unless --quick a Llama of 1.1B with random weights (for
speed only; it is written to a temporary file).  Rounds are interleaved; every figure is the median of them.  Without a
GPU it says so, writes {} and ends with exit code 0.

    python benchmarks/gpu.py [--quick] [--json FILE] [--device cuda|cpu] [--model SOURCE]

--device cpu runs the same code path on the processor, to try the benchmark itself; its figures start with cpu_.
(Not named cuda.py: torch imports a package of that name, and a script's folder comes first.)
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from berth_worker.model.batched import BatchedLlama
from berth_worker.model.gguf_file import GgufFile
from berth_worker.model.interface import BLOCK_TOKENS, Batch
from berth_worker.model.llama_gguf import LlamaReader
from berth_worker.model.sources import resolve

DEEP = 3000
CHUNK = 2048


def tokens(model: BatchedLlama, count: int) -> list[int]:
    """Ids spread over the vocabulary."""
    return [i * 7919 % model.config.vocab_size for i in range(count)]


def read_prompt(model: BatchedLlama, cache: object, table: list[int], start: int, end: int, rows: int) -> None:
    """Run positions start ... end - 1 of a prompt in chunks; with rows = 1, wait for the logits of its last token."""
    ids = tokens(model, end)
    for first in range(start, end, CHUNK):
        last = min(first + CHUNK, end)
        wanted = [last - first - 1] if rows and last == end else []
        batch = Batch(ids[first:last], list(range(first, last)), [0, last - first], [last], [table], wanted)
        model.forward(batch, cache)  # type: ignore[arg-type]


def decode(model: BatchedLlama, streams: int, depth: int, steps: int, *, shared: bool = False) -> float:
    """Tokens a second of `streams` streams with `depth` tokens of context before them: each its own, or one for all."""
    private = -(-(depth + steps) // BLOCK_TOKENS) if not shared else -(-steps // BLOCK_TOKENS) + 1
    common = depth // BLOCK_TOKENS if shared else 0
    cache = model.new_cache(common + streams * private)
    prefix = list(range(common))
    tables = [prefix + list(range(common + i * private, common + (i + 1) * private)) for i in range(streams)]
    for index, table in enumerate(tables):
        read_prompt(model, cache, table, 0 if index == 0 else common * BLOCK_TOKENS, depth, 0)
    starts, rows = list(range(streams + 1)), list(range(streams))

    def step(length: int) -> None:
        batch = Batch([length] * streams, [length - 1] * streams, starts, [length] * streams, tables, rows)
        model.forward(batch, cache)

    step(depth + 1)  # waits for the prompts too
    begin = time.perf_counter()
    for length in range(depth + 2, depth + steps + 1):
        step(length)
    return streams * (steps - 1) / (time.perf_counter() - begin)


def prefill(model: BatchedLlama, count: int, depth: int) -> float:
    """Tokens a second of a prompt's next `count` tokens behind `depth` cached ones, to the logits of the last."""
    blocks = -(-(depth + count) // BLOCK_TOKENS)
    cache, table = model.new_cache(blocks), list(range(blocks))
    read_prompt(model, cache, table, 0, depth, 0)
    model.forward(Batch([0], [depth], [0, 1], [depth + 1], [table], [0]), cache)  # waits for what is cached
    begin = time.perf_counter()
    read_prompt(model, cache, table, depth, depth + count, 1)
    return count / (time.perf_counter() - begin)


def random_1b(folder: Path) -> Path:
    """A Llama of 1.1B (TinyLlama's shape) with random bfloat16 weights, as GGUF."""
    import gguf  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    layers, hidden, ffn, heads, kv_heads, vocab = 22, 2048, 5632, 32, 4, 32000
    writer = gguf.GGUFWriter(folder / "random-1b.gguf", "llama")
    writer.add_block_count(layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(vocab)
    generator = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = generator.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)
        packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.BF16)

    matrix("token_embd.weight", vocab, hidden)
    matrix("output.weight", vocab, hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for index in range(layers):
        prefix = f"blk.{index}."
        key = hidden // heads * kv_heads
        for name, rows, columns in (
            ("attn_q", hidden, hidden),
            ("attn_k", key, hidden),
            ("attn_v", key, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_gate", ffn, hidden),
            ("ffn_up", ffn, hidden),
            ("ffn_down", hidden, ffn),
        ):
            matrix(f"{prefix}{name}.weight", rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{prefix}{name}.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "random-1b.gguf"


def measure(name: str, model: BatchedLlama, rounds: int, steps: int, streams: list[int]) -> dict[str, float]:
    """Median over the rounds of every case, named after the model."""
    cases: dict[str, Callable[[], float]] = {
        f"decode_b{n}_tokens_per_second": lambda n=n: decode(model, n, 0, steps)  # type: ignore[misc]
        for n in streams
    }
    cases["decode_b1_d3000_tokens_per_second"] = lambda: decode(model, 1, DEEP, steps)
    cases["decode_b4_d3000_shared_tokens_per_second"] = lambda: decode(model, 4, DEEP, steps, shared=True)
    cases["prefill256_tokens_per_second"] = lambda: prefill(model, 256, 0)
    cases["prefill256_d3000_tokens_per_second"] = lambda: prefill(model, 256, DEEP)
    values = defaultdict(list)
    for number in range(rounds + 1):
        print(f"{name}: round {number} of {rounds}" if number else f"{name}: warm-up", flush=True)
        for case, run in cases.items():
            value = run()
            if number:
                values[case].append(value)
    return {f"{name}_{case}": round(statistics.median(found), 1) for case, found in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the embedded model alone, 3 short rounds instead of 7")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there: name -> number")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", default="smollm2-135m-instruct", metavar="SOURCE")
    options = parser.parse_args()

    figures: dict[str, float] = {}
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"skipped: torch {torch.__version__} sees no CUDA device on this machine")
    else:
        figures = run_all(options)
        for name, value in figures.items():
            print(f"{name:50}{value:>14,.1f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def run_all(options: argparse.Namespace) -> dict[str, float]:
    import tempfile  # noqa: PLC0415

    rounds, steps = (3, 8) if options.quick else (7, 64)
    streams = [1, 8] if options.quick else [1, 2, 4, 8, 16, 32]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        sources = {"135m": resolve(options.model).path}
        if not options.quick:
            sources["1b"] = random_1b(Path(folder))
        for name, path in sources.items():
            model = BatchedLlama(LlamaReader(GgufFile(path)), torch.bfloat16, options.device)
            figures |= measure(f"{options.device}_{name}", model, rounds, steps, streams)
            if options.device == "cuda":
                gib = model.resident_bytes / 2**30
                step = 1 / figures[f"cuda_{name}_decode_b1_tokens_per_second"]
                figures[f"cuda_{name}_decode_b1_weights_gib_per_second"] = round(gib / step, 1)
            del model
    return figures


if __name__ == "__main__":
    main()
