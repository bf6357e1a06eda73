"""How much does each quantization cost in quality, ours and llama.cpp's, on the same contexts of the same English?

Scored as llama-perplexity does: chunks of 512 tokens, each with the beginning-of-text token in front where the model
has one, the last 255 predicted tokens of each counted.  Each side is compared with its own float32 run, token by
token, so that the standard error is that of the paired difference.  llama-perplexity writes its log-probabilities to a
file, and its tokens with them: ours reads those.

    python benchmarks/quality.py [--quick] [--json FILE] [--threads N]
"""

from __future__ import annotations

import hashlib
import math
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
from _common import Report, options, progress
from berth_worker.engine.batch import BLOCK_TOKENS, Batch
from berth_worker.model import interface
from berth_worker.model.interface import LoadedModel, Model
from berth_worker.model.llama import Llama
from berth_worker.model.load import load, open_checkpoint
from berth_worker.model.quantization import Recipe
from berth_worker.model.rotation import hadamard
from numpy.typing import NDArray
from peers import LLAMA_CPP, english, llama_cpp, peers_folder

CHUNK = 512
FIRST = CHUNK // 2
SCORED = CHUNK - 1 - FIRST
"""Tokens scored of a chunk: those after position FIRST."""
KEPT = 256
"""The likeliest tokens whose probabilities are kept for the divergence; the rest counts as one."""


@dataclass(frozen=True)
class Scores:
    """What is kept of a run over T scored tokens."""

    target: NDArray[np.float32]
    """[T] log-probability of the token that came."""
    top: NDArray[np.int32]
    """[T, KEPT] the likeliest tokens, the first one first."""
    top_log: NDArray[np.float32]
    """[T, KEPT] their log-probabilities."""
    of_reference: NDArray[np.float32]
    """[T, KEPT] this run's log-probabilities of the reference's likeliest tokens; its own without a reference."""

    @property
    def perplexity(self) -> float:
        return math.exp(-float(self.target.mean(dtype=np.float64)))


def score(chunks: Iterator[tuple[torch.Tensor, torch.Tensor]], reference: Scores | None) -> Scores:
    """Scores of chunks of (log-probabilities [SCORED, vocab], tokens that came [SCORED])."""
    parts: list[tuple[torch.Tensor, ...]] = []
    for index, (log, came) in enumerate(chunks):
        best, tokens = log.topk(KEPT)
        rows = slice(index * SCORED, (index + 1) * SCORED)
        asked = tokens if reference is None else torch.from_numpy(reference.top[rows]).long()
        parts.append((log.gather(1, came[:, None])[:, 0], tokens.int(), best, log.gather(1, asked)))
    return Scores(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))


def compare(report: Report, name: str, run: Scores, exact: Scores) -> None:
    """Perplexity, its difference from float32 in percent with standard error, top-1 agreement, KL divergence."""
    difference = (exact.target - run.target).astype(np.float64)
    mean, error = difference.mean(), difference.std(ddof=1) / math.sqrt(len(difference))
    p, q = np.exp(exact.top_log.astype(np.float64)), np.exp(run.of_reference.astype(np.float64))
    rest_p, rest_q = np.maximum(1 - p.sum(1), 1e-9), np.maximum(1 - q.sum(1), 1e-9)
    divergence = (p * (exact.top_log - run.of_reference)).sum(1) + rest_p * np.log(rest_p / rest_q)
    report.figure(f"quality_{name}_ppl", run.perplexity)
    report.figure(f"quality_{name}_ppl_percent", 100 * math.expm1(mean))
    report.figure(f"quality_{name}_ppl_percent_error", 100 * math.exp(mean) * error)
    report.figure(f"quality_{name}_top1", 100 * float((run.top[:, 0] == exact.top[:, 0]).mean()))
    report.figure(f"quality_{name}_kl", float(divergence.mean()))


def llama_log_probabilities(path: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Chunks of what llama-perplexity saved: 16 bits a log-probability, over at most 16 below the likeliest."""
    with path.open("rb") as file:
        tokens, vocab, chunks = _head(file)
        width = 2 * ((vocab + 1) // 2) + 4
        for index in range(chunks):
            raw = np.fromfile(file, np.uint16, SCORED * width).reshape(SCORED, width)
            scale, low = raw[:, :4].copy().view(np.float32).T
            log = torch.from_numpy(raw[:, 4 : 4 + vocab].astype(np.float32) * scale[:, None] + low[:, None])
            yield log, _came(tokens, index)


def llama_tokens(path: Path) -> NDArray[np.int32]:
    """The tokens that llama-perplexity scored."""
    with path.open("rb") as file:
        return _head(file)[0]


def _head(file: Any) -> tuple[NDArray[np.int32], int, int]:
    magic, chunk, vocab, chunks = struct.unpack("<8sIii", file.read(20))
    if magic != b"_logits_" or chunk != CHUNK:
        raise SystemExit(f"{file.name}: found {magic!r} with chunks of {chunk}; llama-perplexity's file has {CHUNK}")
    return np.fromfile(file, np.int32, chunks * CHUNK), vocab, chunks


def _came(tokens: NDArray[np.int32], index: int) -> torch.Tensor:
    begin = index * CHUNK + FIRST + 1
    return torch.from_numpy(tokens[begin : begin + SCORED].astype(np.int64))


def our_log_probabilities(
    model: Model, tokens: NDArray[np.int32], bos: list[int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Chunks of ours; rows whose logits are wanted run together with the rest of their chunk."""
    cache = model.new_cache(CHUNK // BLOCK_TOKENS)
    rows = list(range(FIRST, CHUNK - 1))
    for index in range(len(tokens) // CHUNK):
        progress(f"ours: chunk {index + 1}/{len(tokens) // CHUNK}")
        ids = tokens[index * CHUNK : (index + 1) * CHUNK].tolist()
        ids[: len(bos)] = bos
        table = list(range(CHUNK // BLOCK_TOKENS))
        with torch.inference_mode():
            logits = model.forward(Batch(ids, list(range(CHUNK)), [0, CHUNK], [CHUNK], [table], rows), cache).values
            yield logits.log_softmax(-1), _came(tokens, index)
    progress("")


def run_llama(source: Path, text: Path, chunks: int, threads: int, target: Path) -> None:
    """Save llama.cpp's log-probabilities.  KV cache in f16, flash attention as it chooses."""
    tools = llama_cpp()
    progress(f"llama.cpp: {source.stem}")
    sizes = ["-c", str(CHUNK), "-b", str(CHUNK), "--chunks", str(chunks), "-t", str(threads)]
    command = tools.command("llama-perplexity", "-m", str(source), "-f", str(text), *sizes)
    command += ["--save-all-logits", str(target)]
    done = subprocess.run(command, env=tools.environment(), capture_output=True, text=True, check=False)
    progress("")
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def kept(key: str, make: Callable[[], Scores]) -> Scores:
    """Scores of a float32 run, kept in the cache by text, tokens and model."""
    folder = peers_folder() / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
    if not path.exists():
        scores = make()
        np.savez(path, target=scores.target, top=scores.top, top_log=scores.top_log)
    with np.load(path) as file:
        return Scores(file["target"], file["top"], file["top_log"], file["top_log"])


class Int8KV(Llama):
    """Exact but for its cache, rounded as the kernels do: int8, a scale a head and token, in Hadamard's basis."""

    def _kept(self, x: torch.Tensor) -> torch.Tensor:
        order = Recipe.head_block(self.config)
        turned = hadamard(x.unflatten(-1, (-1, order))).flatten(-2)
        scale = (turned.abs().amax(-1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        rounded = (turned / scale).round() * scale
        return hadamard(rounded.unflatten(-1, (-1, order))).flatten(-2) / order


def bos_of(loaded: LoadedModel) -> list[int]:
    """What the model puts in front of a text: at most one token."""
    with_bos, without = (loaded.tokenizer.encode("a", add_special_tokens=flag) for flag in (True, False))
    return with_bos[: len(with_bos) - len(without)]


def main() -> None:
    chosen = options(__doc__).parse_args()
    threads, chunks = chosen.threads, 4 if chosen.quick else 80
    report = Report(threads)
    report.note("peer", f"llama.cpp of {LLAMA_CPP}")
    text = english()
    report.note("text", f"{text.name}: {chunks} chunks of {CHUNK} tokens, {chunks * SCORED} scored")
    report.figure("quality_scored_tokens", chunks * SCORED)
    identity = f"{text.name} {chunks} {CHUNK} {KEPT} {LLAMA_CPP}"

    with tempfile.TemporaryDirectory(dir=peers_folder()) as scratch:
        saved = Path(scratch) / "logits"

        def peer(kind: str, reference: Scores | None) -> Scores:
            run_llama(models.small(kind), text, chunks, threads, saved)
            return score(llama_log_probabilities(saved), reference)

        exact_peer = kept(f"llama.cpp F32 {identity}", lambda: peer("F32", None))
        report.figure("quality_llamacpp_f32_ppl", exact_peer.perplexity)
        for kind in ("Q8_0", "Q4_0", "Q4_1"):
            compare(report, kind.lower(), peer(kind, exact_peer), exact_peer)
        tokens = llama_tokens(saved)

    exact_model = load(str(models.small("F32")), quantization="FP32", threads=threads)
    bos = bos_of(exact_model)
    torch.set_num_threads(threads)
    exact = kept(
        f"berth fp32 {identity} {hashlib.sha256(tokens.tobytes()).hexdigest()}",
        lambda: score(our_log_probabilities(exact_model.model, tokens, bos), None),
    )
    report.figure("quality_fp32_ppl", exact.perplexity)
    rounded = Int8KV(open_checkpoint(models.small("F32"))[0], torch.float32)
    compare(report, "kv8", score(our_log_probabilities(rounded, tokens, bos), exact), exact)
    int8 = load(str(models.small("F32")), threads=threads)
    report.note("int8", f"{int8.recipe} {int8.path}")
    compare(report, "int8", score(our_log_probabilities(int8.model, tokens, bos), exact), exact)
    # The checkpoint's own dequantized weights are what "F32" holds for Q4_1, so int4 is compared with the same run.
    if "Int4" in str(interface.Quantization):
        int4 = load(str(models.small("Q4_1")), quantization="Int4", threads=threads)
        report.note("int4", f"{int4.recipe} {int4.path}")
        compare(report, "int4", score(our_log_probabilities(int4.model, tokens, bos), exact), exact)
    report.write(chosen.json)


if __name__ == "__main__":
    main()
