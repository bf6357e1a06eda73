"""How fast can a Llama run on this CPU?  The compiled step as torch custom ops (csrc/), loaded on first use."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

__all__ = [
    "KernelsUnavailableError",
    "available_isas",
    "int8_dots",
    "load_kernels",
    "read_bytes",
    "selected_isa",
    "step",
]


class KernelsUnavailableError(Exception):
    """The compiled extension is not installed, or cannot be loaded; the message says which and why."""


@functools.cache
def load_kernels() -> None:
    """Load the extension and register its ops as torch.ops.berth.*.

    Raises KernelsUnavailableError if it was not built for this installation or does not fit this torch.
    """
    library = _find_library()
    if library is None:
        raise KernelsUnavailableError("the int8 kernels are not built: pip install --no-build-isolation -e worker")
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        raise KernelsUnavailableError(f"the int8 kernels cannot be loaded: {str(error).splitlines()[0]}") from error
    # What torch.compile and meta tensors need to know: these ops write their outputs in place and return nothing.
    torch.library.register_fake("berth::step")(lambda *_: None)
    torch.library.register_fake("berth::dots")(lambda *_: None)


def _find_library() -> Path | None:
    """Beside this file in a wheel; in an editable install, where the build backend's path entries say."""
    here = Path(__file__).parent
    for folder in [here, *(Path(entry) for entry in __path__)]:
        library = folder / "_C.so"
        if library.is_file():
            return library
    return None


def available_isas() -> list[str]:
    """Instruction sets that this build has and this machine can run, best first."""
    load_kernels()
    return str(torch.ops.berth.isas()).split()


def selected_isa() -> str:
    """The one that runs: the best, or what BERTH_ISA names.  Raises RuntimeError if that cannot run here."""
    load_kernels()
    return str(torch.ops.berth.selected_isa())


def step(
    weights: Tensor, plan: Tensor, cache: Tensor, batch: Tensor, logits: Tensor, best: Tensor, threads: int, isa: str
) -> None:
    """One step of the whole model.

    weights uint8, plan int64: from packing.WeightStore; cache int8 [layers, blocks, bytes]: written; batch int32: see
    BatchView in csrc/model.h; logits: float32 [N, vocab padded to 16], written; best: int32 [N], written: the token
    with the greatest logit of each row, see interface.Logits; isa: "" for the selected one.
    Raises RuntimeError, before anything is written, if they contradict each other.
    """
    torch.ops.berth.step(weights, plan, cache, batch, logits, best, threads, isa)


def int8_dots(packed: Tensor, values: Tensor, isa: str, *, positive: bool = False) -> Tensor:
    """Exact products: int8 [rows, depth] times packed [panels, depth / 4, 16, 4] -> int32 [rows, channels].

    `positive`: the sets' way for values that are not negative.
    """
    load_kernels()
    out = torch.empty(values.shape[0], packed.shape[0] * packed.shape[2], dtype=torch.int32)
    torch.ops.berth.dots(packed, values, out, positive, isa)
    return out


def read_bytes(memory: Tensor, threads: int) -> int:
    """Read all of `memory` (uint8) once, as a step reads its weights; the sum of its 64-bit words.  For benchmarks."""
    load_kernels()
    return int(torch.ops.berth.read_bytes(memory, threads))
