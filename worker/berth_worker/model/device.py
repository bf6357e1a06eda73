"""Where does the model run, and does it fit there?  The processor, or the GPU that torch sees."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from berth_worker.engine.batch import BLOCK_TOKENS
from berth_worker.model.interface import ModelError, Quantization

__all__ = ["DEVICES", "Device", "cache_room", "check_cache_fits", "check_weights_fit", "choose_device"]

Device = Literal["cpu", "cuda", "auto"]
DEVICES = ("cpu", "cuda", "auto")

_log = logging.getLogger(__name__)
_BYTES_PER_WEIGHT = {"BF16": 2, "FP32": 4}


def choose_device(asked: str, quantization: Quantization) -> torch.device:
    """The device of `asked`: "cpu", "cuda" (torch's first GPU; CUDA_VISIBLE_DEVICES chooses), or "auto": the GPU if
    BF16 was asked for and torch sees one, else the CPU.

    Raises ModelError for a device that is not there, and for weights that it does not run.
    """
    if asked not in DEVICES:
        raise ModelError(f"device: found {asked!r}; supported: {', '.join(DEVICES)}")
    if asked == "cpu" or (asked == "auto" and (quantization != "BF16" or not torch.cuda.is_available())):
        return torch.device("cpu")
    if quantization == "Int8":
        raise ModelError("device cuda: found quantization Int8, whose kernels run on CPUs; BF16 is right on a GPU")
    if not torch.cuda.is_available():
        raise ModelError(f"device cuda: found no GPU ({_why_no_gpu()}); cpu is right here")
    device = torch.device("cuda", torch.cuda.current_device())
    if quantization == "BF16" and torch.cuda.get_device_capability(device) < (8, 0):
        _log.warning("%s computes bfloat16 in emulation, slowly", torch.cuda.get_device_name(device))
    return device


def _why_no_gpu() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    return (
        f"torch {torch.__version__} is built for CUDA {torch.version.cuda} and sees {torch.cuda.device_count()} devices"
    )


def check_weights_fit(device: torch.device, name: str, weights: int, quantization: Quantization) -> None:
    """Raises ModelError, naming the model, if `weights` weights are more than the GPU has free.  CPUs are not asked."""
    if device.type != "cuda":
        return
    needed, (free, total) = weights * _BYTES_PER_WEIGHT[quantization], torch.cuda.mem_get_info(device)
    if needed > free:
        raise ModelError(
            f"{name}: {weights:,} weights need {needed / 2**30:.1f} GiB as {quantization}; "
            f"{_of(device)} has {free / 2**30:.1f} GiB free of {total / 2**30:.1f}"
        )


def check_cache_fits(device: torch.device, num_blocks: int, bytes_per_block: int, workspace: int) -> None:
    """Raises ModelError if num_blocks, beside `workspace` bytes for a step, are more than the GPU has free."""
    if device.type != "cuda":
        return
    room, needed = cache_room(device, workspace), num_blocks * bytes_per_block
    if needed > room:
        raise ModelError(
            f"KV cache: {num_blocks * BLOCK_TOKENS} tokens need {needed / 2**30:.2f} GiB; {_of(device)} has "
            f"{room / 2**30:.2f} GiB left beside the weights and {workspace / 2**30:.2f} GiB for a step: "
            f"{room // bytes_per_block * BLOCK_TOKENS} tokens fit"
        )


def cache_room(device: torch.device, workspace: int) -> int:
    """Bytes of GPU memory left for a KV cache once `workspace` bytes are kept for a step, 0 or more."""
    free, _ = torch.cuda.mem_get_info(device)
    # what torch has freed and kept is free too
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, free + kept - workspace)


def _of(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})"
