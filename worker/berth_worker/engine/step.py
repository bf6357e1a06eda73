"""What does the model see of a step?  The scheduled tokens become a Batch; the one place in the engine with torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from berth_worker.engine.batch import Batch
from berth_worker.engine.scheduler import Scheduled

if TYPE_CHECKING:
    from berth_worker.model.interface import KVCache, Model

__all__ = ["run_step", "to_batch", "warm_up"]


def to_batch(work: Sequence[Scheduled]) -> Batch:
    """The batch of T tokens of len(work) sequences; logits are wanted of those that sample, in the order of work."""
    tokens: list[int] = []
    positions: list[int] = []
    starts = [0]
    outputs: list[int] = []
    for item in work:
        end = item.start + item.count
        tokens += item.request.tokens[item.start : end]
        positions += range(item.start, end)
        starts.append(len(tokens))
        if item.samples:
            outputs.append(len(tokens) - 1)
    return Batch(
        tokens=tokens,
        positions=positions,
        sequence_starts=starts,
        context_lengths=[item.start + item.count for item in work],
        block_tables=[item.request.blocks for item in work],
        output_rows=outputs,
    )


def run_step(model: Model, cache: KVCache, work: Sequence[Scheduled]) -> NDArray[np.float32]:
    """Run the model once; float32 [N, vocab] logits, a row for each item of work that samples, in order."""
    with torch.inference_mode():
        logits = model.forward(to_batch(work), cache)
    rows: NDArray[np.float32] = logits.numpy(force=True)
    return rows


def warm_up(model: Model, cache: KVCache) -> None:
    """Run one token once, so that what is set up at first use is not paid by the first request."""
    with torch.inference_mode():
        model.forward(Batch([0], [0], [0, 1], [1], [[0]], [0]), cache)
