"""How does the plain-PyTorch Llama serve a whole batch at once?  The oracle's weights and cache, attention in groups.

The portable path: CUDA, and CPUs without the kernels.  Nothing in a step waits for the device before its logits are
there: one copy of integers goes in, one of float32 logits comes out.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F  # noqa: N812  (its name everywhere in the field)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from berth_worker.engine.batch import Batch
from berth_worker.model.device import check_cache_fits, gpu_memory
from berth_worker.model.interface import KVCache, Logits
from berth_worker.model.llama import Llama, LlamaLayer, PagedCache, check_batch
from berth_worker.model.paged_attention import Layout, Step, attend, workspace_bytes
from berth_worker.model.weights import LlamaWeights

__all__ = ["BatchedLlama"]


class BatchedLlama(Llama):
    """A Llama that runs one batch in few calls, on any torch device; see `berth_worker.model.interface.Model`.

    Logits come back on the CPU.  Rows are independent up to the rounding of `dtype`: how they are grouped depends on
    what else is in the batch.
    """

    def __init__(self, reader: LlamaWeights, dtype: torch.dtype, device: str | torch.device = "cpu") -> None:
        super().__init__(reader, dtype, device)
        self.workspace_bytes = workspace_bytes(self.config, dtype)

    @property
    def path(self) -> str:
        """As in `LoadedModel.path`."""
        return "torch" if self.device.type == "cpu" else f"torch/{self.device.type}"

    @property
    def cache_room_bytes(self) -> int | None:
        """Bytes of GPU memory left for a KV cache beside a step's workspace; None on a CPU."""
        return max(0, gpu_memory(self.device).free - self.workspace_bytes) if self.device.type == "cuda" else None

    def new_cache(self, num_blocks: int) -> PagedCache:
        """Raises ModelError, with the numbers, if the cache and a step's workspace are more than the GPU has free."""
        if self.device.type == "cuda":
            check_cache_fits(num_blocks, self.kv_bytes_per_block, self.workspace_bytes, gpu_memory(self.device))
        return super().new_cache(num_blocks)

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: KVCache) -> Logits:
        if not isinstance(cache, PagedCache):
            raise TypeError(f"cache: found {type(cache).__name__}; right is what this model's new_cache gave")
        check_batch(batch, self.config, cache.num_blocks)
        for source, target in batch.copies:
            cache.copy_block(source, target)
        if not batch.tokens:
            return Logits.of(torch.empty(0, self.config.vocab_size))
        layout = Layout(batch, self.device.type)
        step = Step.of(layout, self._to_device(layout), self.config.group_size, self.dtype)
        logits = self.run(step, cache.data)
        if not batch.output_rows:
            return Logits.of(torch.empty(0, self.config.vocab_size))
        best = logits.argmax(-1).int()
        return Logits(self._to_host(logits), best.cpu())

    def run(self, step: Step, cache: Tensor) -> Tensor:
        """Logits [N, vocab_size] of a step, on the device and in its dtype; nothing here waits for the device."""
        cos, sin = self._half_turns(step.positions)
        x = self.embedding.index_select(0, step.tokens)
        with self._attention_kernels():
            for index, layer in enumerate(self.layers):
                x = x + self._attend(layer, self._norm(x, layer.attn_norm), cos, sin, step, cache[index])
                gate, up = F.linear(self._norm(x, layer.ffn_norm), layer.gate_up).chunk(2, dim=-1)
                x = x + F.linear(F.silu(gate) * up, layer.down)
        return F.linear(self._norm(x.index_select(0, step.outputs), self.output_norm), self.output)

    def _norm(self, x: Tensor, gain: Tensor) -> Tensor:
        """RMSNorm in one kernel; float32 inside."""
        return F.rms_norm(x, gain.shape, gain, self.config.rms_norm_eps)

    def _half_turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos, and sin with the sign of the half it is for: [T, 1, head_dim]"""
        cos, sin = self._rotation(positions)
        half = self.config.head_dim // 2
        return cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)

    def _attend(self, layer: LlamaLayer, x: Tensor, cos: Tensor, sin: Tensor, step: Step, cache: Tensor) -> Tensor:
        config = self.config
        heads = F.linear(x, layer.qkv).unflatten(-1, (config.num_heads + 2 * config.num_kv_heads, config.head_dim))
        turned = heads[:, : config.num_heads + config.num_kv_heads]
        turned = torch.addcmul(turned * cos, turned.roll(config.head_dim // 2, -1), sin)
        keys, values = cache.flatten(1, 2)  # each [num_blocks * BLOCK_TOKENS, kv_heads, head_dim]
        keys.index_copy_(0, step.slots, turned[:, config.num_heads :])
        values.index_copy_(0, step.slots, heads[:, config.num_heads + config.num_kv_heads :])
        parts = [attend(group, turned[group.start : group.end, : config.num_heads], cache) for group in step.groups]
        return F.linear(parts[0] if len(parts) == 1 else torch.cat(parts), layer.o)

    def _attention_kernels(self) -> AbstractContextManager[None]:
        """On a GPU all but cuDNN's: that compiles a plan for every new shape, and ours grow with the context."""
        if self.device.type != "cuda":
            return nullcontext()
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])

    def _to_device(self, layout: Layout) -> Tensor:
        """The step's integers in one copy; from pinned memory to a GPU, so that it waits for nothing before it."""
        host = torch.frombuffer(layout.integers, dtype=torch.int64)
        return host if self.device.type == "cpu" else host.pin_memory().to(self.device, non_blocking=True)

    def _to_host(self, logits: Tensor) -> Tensor:
        """float32 on the CPU, through pinned memory where that is a copy."""
        if self.device.type != "cuda":
            return logits.float()
        host = torch.empty(logits.shape, dtype=torch.float32, pin_memory=True)
        host.copy_(logits.float(), non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()
        return host
