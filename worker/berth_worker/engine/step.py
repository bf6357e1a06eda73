"""What does the model see of a step?  The scheduled tokens become a Batch; the one place in the engine with tensors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from berth_worker.engine.batch import BLOCK_TOKENS, Batch
from berth_worker.engine.cost import Load, StepCost
from berth_worker.engine.scheduler import Scheduled

if TYPE_CHECKING:
    from berth_worker.model.interface import KVCache, Model

__all__ = ["run_step", "to_batch", "warm_up"]


def to_batch(work: Sequence[Scheduled], copies: Sequence[tuple[int, int]] = ()) -> Batch:
    """The batch of T tokens of len(work) sequences.

    Logits are wanted of those that sample, in the order of work: of the last known token, then of each drafted one.
    """
    tokens: list[int] = []
    positions: list[int] = []
    starts = [0]
    outputs: list[int] = []
    for item in work:
        end = item.start + item.rows
        tokens += item.request.tokens[item.start : item.start + item.count]
        tokens += item.draft
        positions += range(item.start, end)
        if item.samples:
            outputs += range(len(tokens) - len(item.draft) - 1, len(tokens))
        starts.append(len(tokens))
    return Batch(
        tokens=tokens,
        positions=positions,
        sequence_starts=starts,
        context_lengths=[item.start + item.rows for item in work],
        block_tables=[item.request.blocks for item in work],
        output_rows=outputs,
        copies=copies,
    )


def run_step(
    model: Model, cache: KVCache, work: Sequence[Scheduled], copies: Sequence[tuple[int, int]] = ()
) -> tuple[NDArray[np.float32], list[int]]:
    """Copy blocks, (from, to), and run the model once; float32 [N, vocab] logits, the rows of `to_batch`, and the token
    with the greatest of each."""
    logits = model.forward(to_batch(work, copies), cache)
    return logits.values.numpy(), logits.best.tolist()


def warm_up(model: Model, cache: KVCache, cost: StepCost) -> None:
    """Run a token, so that what is set up at first use is not paid by the first request; then measure two steps.

    A token and a block of them are a first idea of what steps cost, which the engine's own steps refine.
    """

    def run(rows: int) -> float:
        began = time.monotonic()
        model.forward(Batch([0] * rows, range(rows), [0, rows], [rows], [[0]], [rows - 1]), cache)
        return time.monotonic() - began

    run(1)
    for rows in (1, BLOCK_TOKENS):
        cost.observe(Load().plus(0, rows, 1), run(rows))
