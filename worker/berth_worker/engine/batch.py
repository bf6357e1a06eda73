"""What does one step of the model run?  Plain data, no torch: the scheduler writes a Batch, the model reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["BLOCK_TOKENS", "Batch"]

BLOCK_TOKENS = 16
"""Tokens that one block of the paged KV cache holds."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The new tokens of every sequence scheduled in one step: T tokens of S sequences, N rows of logits wanted.

    A sequence's new tokens are the last of its context: tokens[starts[s]:starts[s + 1]] stand at the consecutive
    positions context_lengths[s] - n ... context_lengths[s] - 1, and its block table names a block for each of them.
    The K and V of earlier positions are in those blocks already (from earlier steps, or from a shared prefix).
    """

    tokens: Sequence[int]
    """[T] token ids, flattened over the sequences."""
    positions: Sequence[int]
    """[T] position of each token in its own sequence, from 0."""
    sequence_starts: Sequence[int]
    """[S + 1] prefix sums into tokens; the first is 0, the last is T."""
    context_lengths: Sequence[int]
    """[S] tokens in context once this step has run, the new ones included."""
    block_tables: Sequence[Sequence[int]]
    """[S][>= ceil(context / BLOCK_TOKENS)] ids of KV blocks, in order of position."""
    output_rows: Sequence[int]
    """[N] rows of T whose logits are wanted, in the order in which they are wanted."""
    copies: Sequence[tuple[int, int]] = ()
    """Blocks to copy whole, (from, to), one after the other, before anything of this batch is written."""
