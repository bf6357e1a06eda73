"""Which sequences of a step attend together, and how?  Padded groups over gathered blocks, one attention call each.

Rows of sequences that differ little in new tokens and context are padded to one rectangle with a mask; the query heads
of a key head become further rows of it, so that each gathered key is read once (arXiv 2305.13245).  The step's tokens
are put into the order of the groups on the host, so that a group without padding is a slice of the activations.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  (its name everywhere in the field)
from torch import Tensor

from berth_worker.engine.batch import BLOCK_TOKENS, Batch
from berth_worker.model.config import LlamaConfig

__all__ = [
    "MOST_KEYS",
    "MOST_PAIRS",
    "PIECE_ROWS",
    "Group",
    "Layout",
    "Piece",
    "Step",
    "attend",
    "group_pieces",
    "split_into_pieces",
    "workspace_bytes",
]

PIECE_ROWS = 128
"""Rows of one sequence that attend together; a longer chunk is cut, since its first rows see fewer keys."""
MOST_KEYS = 1 << 17
"""Keys that one group gathers at most, padding included (one sequence alone may have more)."""
MOST_PAIRS = 1 << 24
"""Pairs of row and key in one group at most, padding included: the size of its mask."""
_FREE_PAIRS = {"cuda": 1 << 18, "cpu": 1 << 12}
"""Padded pairs that cost no more than launching another group.  An estimate for a GPU (about ten launches of 4 us, at
the speed of an 8B model's attention on an H100), and of the same order on a CPU."""


@dataclass(frozen=True, slots=True)
class Piece:
    """`rows` consecutive new tokens of one sequence, from row `first` of the batch; the last sees `context` keys."""

    sequence: int
    first: int
    rows: int
    context: int

    @property
    def blocks(self) -> int:
        return -(-self.context // BLOCK_TOKENS)


@dataclass(frozen=True, slots=True)
class Group:
    """One attention call over `count` pieces of up to `rows` rows and `keys` keys each: rows start:end of the step."""

    start: int
    end: int
    count: int
    rows: int
    keys: int
    blocks: Tensor
    """[count * keys / BLOCK_TOKENS] blocks to gather, piece after piece."""
    bias: Tensor
    """[count, 1, rows * group_size, keys] 0 where a row sees a key, else -inf."""
    spread: Tensor | None
    """[count * rows] row of start:end that stands at each place of the rectangle; None where that is the identity."""
    places: Tensor | None
    """[end - start] the inverse: where in the rectangle each row stands."""


@dataclass(frozen=True, slots=True)
class Step:
    """A batch on the device: T rows in the order of the groups, N of them with logits wanted."""

    tokens: Tensor
    """[T]"""
    positions: Tensor
    """[T]"""
    slots: Tensor
    """[T] place of each row's key and value in the cache: block * BLOCK_TOKENS + offset."""
    outputs: Tensor
    """[N] rows, in the order in which the batch wants their logits."""
    groups: Sequence[Group]

    @staticmethod
    def of(layout: Layout, integers: Tensor, group_size: int, dtype: torch.dtype) -> Step:
        """From a layout and its integers on the device; nothing here waits for the device."""
        parts = iter(integers.split(layout.lengths))
        tokens, positions, slots, outputs = (next(parts) for _ in range(4))
        groups, start = [], 0
        for shape in layout.shapes:
            blocks, seen, spread, places = (next(parts) for _ in range(4))
            group = Group(
                start=start,
                end=start + shape.total,
                count=shape.count,
                rows=shape.rows,
                keys=shape.keys,
                blocks=blocks,
                bias=_bias(seen.view(shape.count, shape.rows), shape.keys, group_size, dtype),
                spread=spread if shape.padded else None,
                places=places if shape.padded else None,
            )
            groups.append(group)
            start = group.end
        return Step(tokens, positions, slots, outputs, groups)


@dataclass(frozen=True, slots=True)
class Shape:
    """A group: `total` rows of `count` pieces, each padded to `rows` rows and `keys` keys."""

    count: int
    rows: int
    keys: int
    total: int

    @property
    def padded(self) -> bool:
        return self.total != self.count * self.rows


class Layout:
    """A batch on the host, in the order of its groups: all integers of a step in one array, to be moved at once."""

    def __init__(self, batch: Batch, device_type: str) -> None:
        self.integers = array("q")
        self.lengths: list[int] = []
        grouped = group_pieces(split_into_pieces(batch), _FREE_PAIRS.get(device_type, _FREE_PAIRS["cuda"]))
        order = [row for group in grouped for piece in group for row in range(piece.first, piece.first + piece.rows)]
        place = {row: index for index, row in enumerate(order)}
        self._put([batch.tokens[row] for row in order])
        self._put([batch.positions[row] for row in order])
        self._put(_slots(batch, grouped))
        self._put([place[row] for row in batch.output_rows])
        self.shapes = [self._lay_out(batch, group) for group in grouped]

    def _put(self, values: Sequence[int]) -> None:
        self.integers.extend(values)
        self.lengths.append(len(values))

    def _lay_out(self, batch: Batch, group: Sequence[Piece]) -> Shape:
        """Put a group's blocks, the last key that each place sees, and the two ways between rows and places."""
        rows, width = max(piece.rows for piece in group), max(piece.blocks for piece in group)
        shape = Shape(len(group), rows, width * BLOCK_TOKENS, sum(piece.rows for piece in group))
        blocks: list[int] = []
        seen: list[int] = []
        spread: list[int] = []
        places: list[int] = []
        begin = 0
        for index, piece in enumerate(group):
            table = batch.block_tables[piece.sequence][: piece.blocks]
            # padding repeats what is the sequence's own: it meets no other's keys, masked though they would be
            blocks += [*table, *([table[0]] * (width - len(table)))]
            padding = rows - piece.rows
            seen += [*range(piece.context - piece.rows, piece.context), *([piece.context - 1] * padding)]
            if shape.padded:
                spread += [*range(begin, begin + piece.rows), *([begin] * padding)]
                places += range(index * rows, index * rows + piece.rows)
            begin += piece.rows
        for values in (blocks, seen, spread, places):
            self._put(values)
        return shape


def split_into_pieces(batch: Batch, most_rows: int = PIECE_ROWS) -> list[Piece]:
    """The new tokens of every sequence, in pieces of at most most_rows."""
    pieces = []
    for s, context in enumerate(batch.context_lengths):
        start, end = batch.sequence_starts[s], batch.sequence_starts[s + 1]
        for first in range(start, end, most_rows):
            rows = min(most_rows, end - first)
            pieces.append(Piece(s, first, rows, context - (end - first - rows)))
    return pieces


def group_pieces(pieces: Sequence[Piece], free_pairs: int) -> list[list[Piece]]:
    """Every piece in one group: alike in rows and context, so that padding wastes a quarter at most, or free_pairs."""
    groups: list[list[Piece]] = []
    rows = keys = useful = 0
    for piece in sorted(pieces, key=lambda piece: (-piece.rows, -piece.blocks)):
        own = piece.blocks * BLOCK_TOKENS
        if groups:
            count, widest = len(groups[-1]) + 1, max(keys, own)
            pairs, needed = count * rows * widest, useful + piece.rows * own
            fits = count * widest <= MOST_KEYS and pairs <= MOST_PAIRS
            if fits and pairs - needed <= max(needed // 4, free_pairs):
                groups[-1].append(piece)
                keys, useful = widest, needed
                continue
        groups.append([piece])
        rows, keys, useful = piece.rows, own, piece.rows * own
    return groups


def attend(group: Group, q: Tensor, cache: Tensor) -> Tensor:
    """Attention of a group's rows over the keys and values of one layer.

    q [end - start, heads, head_dim], cache [2, num_blocks, BLOCK_TOKENS, kv_heads, head_dim]; returns
    [end - start, heads * head_dim].
    """
    heads, head_dim = q.shape[1:]
    kv_heads = cache.shape[-2]
    seen = cache.index_select(1, group.blocks).view(2, group.count, group.keys, kv_heads, head_dim).transpose(2, 3)
    if group.spread is not None:
        q = q.index_select(0, group.spread)
    # [count, kv_heads, rows * group_size, head_dim]: query heads of one key head are rows of the same matrix
    q = q.view(group.count, group.rows, kv_heads, -1, head_dim).transpose(1, 2).flatten(2, 3)
    out: Tensor = F.scaled_dot_product_attention(q, seen[0], seen[1], attn_mask=group.bias)
    out = out.unflatten(2, (group.rows, -1)).transpose(1, 2).reshape(-1, heads * head_dim)
    return out if group.places is None else out.index_select(0, group.places)


def _slots(batch: Batch, grouped: Sequence[Sequence[Piece]]) -> list[int]:
    return [
        table[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS
        for group in grouped
        for piece in group
        for table in (batch.block_tables[piece.sequence],)
        for position in range(piece.context - piece.rows, piece.context)
    ]


def _bias(seen: Tensor, keys: int, group_size: int, dtype: torch.dtype) -> Tensor:
    """[count, 1, rows * group_size, keys] from the last key that each of [count, rows] sees."""
    count, rows = seen.shape
    hidden = torch.arange(keys, device=seen.device) > seen[:, :, None]
    bias = torch.zeros(hidden.shape, dtype=dtype, device=seen.device).masked_fill_(hidden, float("-inf"))
    return bias[:, :, None].expand(count, rows, group_size, keys).reshape(count, 1, rows * group_size, keys)


def workspace_bytes(config: LlamaConfig, dtype: torch.dtype) -> int:
    """Bytes to keep free for a step beside weights and cache: one group's gathered keys and values and its mask at
    their most, and as much again for everything else."""
    keys = max(MOST_KEYS, config.max_context)
    gathered = 2 * keys * config.kv_size * dtype.itemsize
    mask = max(MOST_PAIRS, keys) * config.group_size * dtype.itemsize
    return 2 * (gathered + mask)
