"""How does a source become a model that runs?  Find the file, check it whole, then build the path asked for."""

from __future__ import annotations

import logging
import os

import torch

from berth_worker.kernels import KernelsUnavailableError
from berth_worker.kernels.cpus import usable_cpus
from berth_worker.model.gguf_file import GgufFile
from berth_worker.model.int8 import Int8Llama
from berth_worker.model.interface import LoadedModel, ModelError, Quantization
from berth_worker.model.llama import Llama
from berth_worker.model.llama_gguf import LlamaReader
from berth_worker.model.sources import resolve
from berth_worker.model.tokenizer import GgufTokenizer

__all__ = ["load"]

_log = logging.getLogger(__name__)
_BYTES_PER_WEIGHT = {"Int8": 1, "BF16": 2, "FP32": 4}


def load(source: str, *, quantization: Quantization = "Int8", threads: int | None = None) -> LoadedModel:
    """The model at `source` (see `sources.resolve`), its tokenizer and what it takes.

    Int8 runs in our kernels; where they are not built, in plain PyTorch in float32, with a warning.  `threads` counts
    the threads of a step; None means what the cgroup's CPU quota and affinity allow.
    Raises ModelError for everything that is wrong with the source or the file, before weights are read.
    """
    if quantization not in _BYTES_PER_WEIGHT:
        raise ModelError(f"quantization: found {quantization!r}; supported: {', '.join(_BYTES_PER_WEIGHT)}")
    if threads is not None and threads < 1:
        raise ModelError(f"threads: found {threads}; at least 1 is right")
    resolved = resolve(source)
    file = GgufFile(resolved.path)
    reader = LlamaReader(file)
    tokenizer = GgufTokenizer(file)
    if tokenizer.vocab_size > reader.config.vocab_size:
        raise ModelError(
            f"{file.path}: tokenizer.ggml.tokens: found {tokenizer.vocab_size} tokens; "
            f"token_embd.weight has {reader.config.vocab_size} rows"
        )
    _check_memory(reader, quantization)
    count = threads or usable_cpus()
    model = _build(reader, quantization, count)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        config=reader.config,
        name=resolved.name,
        resident_bytes=model.resident_bytes,
        recipe=model.recipe.name if isinstance(model, Int8Llama) else str(model.dtype).removeprefix("torch."),
        path=f"kernels/{model.isa}" if isinstance(model, Int8Llama) else "torch",
    )


def _build(reader: LlamaReader, quantization: Quantization, threads: int) -> Int8Llama | Llama:
    if quantization == "Int8":
        # Torch's own thread pool would spin beside the kernels'; beside them torch only copies a few numbers a step.
        torch.set_num_threads(1)
        try:
            return Int8Llama(reader, threads)
        except KernelsUnavailableError as error:
            _log.warning("%s; running in plain PyTorch in float32 instead, several times slower", error)
            _check_memory(reader, "FP32")
    torch.set_num_threads(threads)
    return Llama(reader, torch.bfloat16 if quantization == "BF16" else torch.float32)


def _check_memory(reader: LlamaReader, quantization: Quantization) -> None:
    needed = reader.parameters * _BYTES_PER_WEIGHT[quantization]
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > total:
        raise ModelError(
            f"{reader.file.path}: {reader.parameters:,} weights need {needed / 2**30:.1f} GiB as {quantization}; "
            f"this machine has {total / 2**30:.1f} GiB"
        )
    if needed > available:
        _log.warning("weights need %.1f GiB, %.1f GiB are free now", needed / 2**30, available / 2**30)
