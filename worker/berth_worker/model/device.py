"""Where does the model run, and does it fit there?  The processor, or the GPU that torch sees."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import torch

from berth_worker.engine.batch import BLOCK_TOKENS
from berth_worker.model.interface import ModelError, Quantization

__all__ = ["DEVICES", "Device", "GpuMemory", "check_cache_fits", "check_weights_fit", "choose_device", "gpu_memory"]

Device = Literal["cpu", "cuda", "auto"]
DEVICES = ("cpu", "cuda", "auto")

_log = logging.getLogger(__name__)
_BYTES_PER_WEIGHT = {"BF16": 2, "FP32": 4}
_BF16_SINCE = (8, 0)  # Ampere: the first with bfloat16 in its tensor cores


def choose_device(asked: str, quantization: Quantization) -> torch.device:
    """The device of `asked`: "cpu", "cuda" (torch's current GPU; CUDA_VISIBLE_DEVICES chooses), or "auto": the GPU if
    BF16 was asked for and torch sees one, else the CPU.

    Raises ModelError for a device that is not there, and for weights that it does not run.
    """
    if asked not in DEVICES:
        raise ModelError(f"device: found {asked!r}; supported: {', '.join(DEVICES)}")
    if asked == "cpu" or (asked == "auto" and (quantization != "BF16" or not torch.cuda.is_available())):
        return torch.device("cpu")
    if quantization in ("Int8", "Int4"):
        raise ModelError(
            f"device cuda: found quantization {quantization}, whose kernels run on CPUs; BF16 is right on a GPU"
        )
    if not torch.cuda.is_available():
        raise ModelError(f"device cuda: found no GPU: {_why_no_gpu()}; a GPU and its driver, or device cpu, is right")
    device = torch.device("cuda", torch.cuda.current_device())
    if quantization == "BF16" and torch.cuda.get_device_capability(device) < _BF16_SINCE:
        _log.warning("%s has no bfloat16 units: BF16 will be slow", torch.cuda.get_device_name(device))
    return device


def _why_no_gpu() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    return f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, sees {torch.cuda.device_count()} devices"


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Memory of one GPU in bytes, as it is now."""

    name: str
    free: int
    """What this process can still take: what nobody has, and what torch has kept of what it freed."""
    total: int


def gpu_memory(device: torch.device) -> GpuMemory:
    """Asks the driver (torch.cuda.mem_get_info) and torch's allocator."""
    free, total = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return GpuMemory(f"{device} ({torch.cuda.get_device_name(device)})", free + kept, total)


def check_weights_fit(name: str, weights: int, quantization: Quantization, memory: GpuMemory) -> None:
    """Raises ModelError, naming the model, if `weights` weights are more than the GPU has free."""
    needed = weights * _BYTES_PER_WEIGHT[quantization]
    if needed > memory.free:
        raise ModelError(
            f"{name}: {weights:,} weights need {_gib(needed)} as {quantization}; "
            f"{memory.name} has {_gib(memory.total)}, of which {_gib(memory.free)} are free"
        )


def check_cache_fits(num_blocks: int, bytes_per_block: int, workspace: int, memory: GpuMemory) -> None:
    """Raises ModelError if num_blocks, beside `workspace` bytes for a step, are more than the GPU has free."""
    needed, left = num_blocks * bytes_per_block, max(0, memory.free - workspace)
    if needed > left:
        raise ModelError(
            f"KV cache: {num_blocks * BLOCK_TOKENS} tokens need {_gib(needed)}; {memory.name} has {_gib(memory.free)} "
            f"free, {_gib(workspace)} of it for the steps; {left // bytes_per_block * BLOCK_TOKENS} tokens fit"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
