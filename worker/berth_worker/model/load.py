"""How does a source become a model that runs?  Find the file, check it whole, then build the path asked for."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from berth_worker.kernels import KernelsUnavailableError
from berth_worker.kernels.cpus import usable_cpus
from berth_worker.model.batched import BatchedLlama
from berth_worker.model.device import check_weights_fit, choose_device, gpu_memory
from berth_worker.model.gguf_file import GgufFile
from berth_worker.model.int8 import Int8Llama
from berth_worker.model.interface import BLOCK_TOKENS, LoadedModel, ModelError, Quantization, Tokenizer
from berth_worker.model.llama_gguf import LlamaReader
from berth_worker.model.llama_safetensors import SafetensorsReader
from berth_worker.model.packed_weights import is_packed
from berth_worker.model.quantization import Recipe
from berth_worker.model.room import check_room
from berth_worker.model.sources import resolve
from berth_worker.model.tokenizer import GgufTokenizer
from berth_worker.model.tokenizer_hf import HfTokenizer
from berth_worker.model.weights import LlamaWeights

__all__ = ["load", "open_checkpoint"]

_log = logging.getLogger(__name__)
_QUANTIZATIONS = ("Int8", "Int4", "BF16", "FP32")
_RECIPES: dict[Quantization, Recipe] = {"Int8": Recipe(), "Int4": Recipe.own_grid()}
"""Of those that run in our kernels."""


def load(
    source: str,
    *,
    quantization: Quantization = "Int8",
    threads: int | None = None,
    kv_cache_tokens: int | None = None,
    device: str = "cpu",
) -> LoadedModel:
    """The model at `source` (see `sources.resolve`), its tokenizer and what it takes.

    Int8 and Int4 run in our kernels; where those are not built, in plain PyTorch in float32, with a warning.  Int4
    keeps the 4-bit grid of a checkpoint that has one, and refuses others.  `threads` counts the threads of a step; None
    means what the CPU quota and affinity allow.  `kv_cache_tokens` is the cache that will be asked for, if that
    is known: it must fit beside the weights.  `device` is cpu, cuda or auto: see
    `device.choose_device`.
    Raises ModelError for everything that is wrong with the source or the file, before weights are read, and for a model
    that does not fit in memory, before it is allocated.
    """
    if quantization not in _QUANTIZATIONS:
        raise ModelError(f"quantization: found {quantization!r}; supported: {', '.join(_QUANTIZATIONS)}")
    if threads is not None and threads < 1:
        raise ModelError(f"threads: found {threads}; at least 1 is right")
    chosen = choose_device(device, quantization)
    resolved = resolve(source)
    weights, tokenizer = open_checkpoint(resolved.path)
    count = threads or usable_cpus()
    tokens = kv_cache_tokens or BLOCK_TOKENS
    if chosen.type == "cuda":  # weights go there a layer at a time: the host holds none
        check_weights_fit(str(weights.path), weights.parameters, quantization, gpu_memory(chosen))
    else:
        packed = quantization in _RECIPES and is_packed(weights, _RECIPES[quantization])
        check_room(weights, quantization, threads=count, kv_tokens=tokens, packed=packed)
    model = _build(weights, quantization, count, tokens, chosen)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        config=weights.config,
        name=resolved.name,
        resident_bytes=model.resident_bytes,
        recipe=model.recipe.name if isinstance(model, Int8Llama) else str(model.dtype).removeprefix("torch."),
        path=f"kernels/{model.isa}" if isinstance(model, Int8Llama) else model.path,
        cache_room_bytes=None if isinstance(model, Int8Llama) else model.cache_room_bytes,
    )


def open_checkpoint(path: Path) -> tuple[LlamaWeights, Tokenizer]:
    """Weights and tokenizer of a GGUF file or a Hugging Face folder.  Raises ModelError; reads no weights."""
    if path.is_dir():
        folder = SafetensorsReader(path)
        return folder, HfTokenizer(path, folder.config.vocab_size)
    file = GgufFile(path)
    reader, tokenizer = LlamaReader(file), GgufTokenizer(file)
    if tokenizer.vocab_size > reader.config.vocab_size:
        raise ModelError(
            f"{file.path}: tokenizer.ggml.tokens: found {tokenizer.vocab_size} tokens; "
            f"token_embd.weight has {reader.config.vocab_size} rows"
        )
    return reader, tokenizer


def _build(
    weights: LlamaWeights, quantization: Quantization, threads: int, kv_tokens: int, device: torch.device
) -> Int8Llama | BatchedLlama:
    if quantization in _RECIPES:
        # Torch's own thread pool would spin beside the kernels'; beside them torch only copies a few numbers a step.
        torch.set_num_threads(1)
        try:
            return Int8Llama(weights, threads, _recipe(weights, quantization))
        except KernelsUnavailableError as error:
            _log.warning("%s; running in plain PyTorch in float32 instead, several times slower", error)
            check_room(weights, "FP32", threads=threads, kv_tokens=kv_tokens)
    torch.set_num_threads(threads)
    return BatchedLlama(weights, torch.bfloat16 if quantization == "BF16" else torch.float32, device)


def _recipe(weights: LlamaWeights, quantization: Quantization) -> Recipe:
    if quantization == "Int4" and not any(grid is not None for grid in weights.grids(0).values()):
        raise ModelError(
            f"{weights.path}: quantization: found Int4 for weights that are not in 4 bits; rounding them here "
            "would cost more than a quarter of their perplexity: choose Int8, or a Q4_1, Q4_K, GPTQ or AWQ checkpoint"
        )
    return _RECIPES[quantization]
