"""How does a Llama run in int8 kernels?  Quantized and packed once, kept on disk; then one call a step."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from berth_worker import kernels
from berth_worker.engine.batch import BLOCK_TOKENS, Batch
from berth_worker.kernels.memory import fill_in, huge_zeros
from berth_worker.kernels.packing import PANEL
from berth_worker.model.config import LlamaConfig
from berth_worker.model.interface import KVCache, Logits, ModelError
from berth_worker.model.llama import check_batch
from berth_worker.model.packed_weights import packed_weights
from berth_worker.model.quantization import Recipe
from berth_worker.model.weights import LlamaWeights

__all__ = ["Int8Cache", "Int8Llama", "unsupported_shape"]


def unsupported_shape(config: LlamaConfig) -> str | None:
    """Why the kernels cannot run a Llama of this shape, or None if they can."""
    for field in ("hidden_size", "intermediate_size", "head_dim"):
        if (found := getattr(config, field)) % PANEL:
            return f"{field} is {found}, not a multiple of {PANEL}"
    return f"{config.group_size} query heads share a key head, more than 32" if config.group_size > 32 else None


class Int8Cache:
    """int8 [layers, KV heads, num_blocks, bytes of a block in one head]; the layout is in csrc/isa.h."""

    def __init__(self, config: LlamaConfig, num_blocks: int, block_bytes: int) -> None:
        self.num_blocks = num_blocks
        try:
            memory = huge_zeros(config.num_layers * num_blocks * block_bytes)
        except MemoryError as error:
            raise ModelError(f"KV cache: found no memory for {num_blocks} blocks; fewer blocks fit") from error
        self.data = memory.view(torch.int8).view(config.num_layers, config.num_kv_heads, num_blocks, -1)
        # In steps, pages of many layers and heads are due at once: streams stood still for 140 ms in a virtual machine,
        # again and again until the cache had been full.  Blocks are taken from the first on, in every layer and head.
        self.filling = fill_in(self, config.num_layers * config.num_kv_heads)

    def copy_block(self, source: int, target: int) -> None:
        self.data[:, :, target] = self.data[:, :, source]


class Int8Llama:
    """A Llama in int8 kernels; see `berth_worker.model.interface.Model`.

    `isa` names an instruction set; "" takes the best one, or what BERTH_ISA names.  Raises ModelError if that cannot
    run here, and KernelsUnavailableError if the kernels are not built.
    """

    def __init__(self, reader: LlamaWeights, threads: int, recipe: Recipe | None = None, isa: str = "") -> None:
        kernels.load_kernels()
        self.config, self.threads, self.recipe = reader.config, threads, recipe or Recipe()
        if reason := unsupported_shape(self.config):
            raise ModelError(f"{reader.path}: the int8 kernels cannot run it: {reason}; choose BF16 or FP32")
        try:
            self.isa = isa or kernels.selected_isa()
        except RuntimeError as error:
            raise ModelError(str(error).splitlines()[0]) from error
        config = self.config
        # keys and values of 16 tokens in int8, and a float32 scale for each token's key and value
        self._block_bytes = config.num_kv_heads * 2 * BLOCK_TOKENS * (config.head_dim + 4)
        self.kv_bytes_per_block = config.num_layers * self._block_bytes
        self._padded_vocab = -(-config.vocab_size // PANEL) * PANEL
        self._weights, self._plan = packed_weights(reader, self.recipe, threads)

    @property
    def resident_bytes(self) -> int:
        return self._weights.numel() + 8 * self._plan.numel()

    def new_cache(self, num_blocks: int) -> Int8Cache:
        return Int8Cache(self.config, num_blocks, self._block_bytes)

    def forward(self, batch: Batch, cache: KVCache) -> Logits:
        if not isinstance(cache, Int8Cache):
            raise TypeError(f"cache: found {type(cache).__name__}; right is what this model's new_cache gave")
        check_batch(batch, self.config, cache.num_blocks)
        for source, target in batch.copies:
            cache.copy_block(source, target)
        logits = torch.empty(len(batch.output_rows), self._padded_vocab, dtype=torch.float32)
        best = torch.empty(len(batch.output_rows), dtype=torch.int32)
        if batch.tokens:
            kernels.step(self._weights, self._plan, cache.data, _flatten(batch), logits, best, self.threads, self.isa)
        return Logits(logits[:, : self.config.vocab_size], best)


def _flatten(batch: Batch) -> Tensor:
    """The batch as the kernels read it: BatchView in csrc/model.h."""
    width = max(len(table) for table in batch.block_tables)
    sequences = len(batch.context_lengths)
    flat = array("i", (sequences, len(batch.tokens), len(batch.output_rows), width))
    for part in (batch.tokens, batch.sequence_starts, batch.context_lengths, batch.output_rows):
        flat.extend(part)
    for table in batch.block_tables:
        flat.extend(table)
        flat.frombytes(bytes(flat.itemsize * (width - len(table))))
    return torch.frombuffer(flat, dtype=torch.int32)
