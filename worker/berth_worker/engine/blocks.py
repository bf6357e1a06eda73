"""Who holds which block of the KV cache, and which blocks can be used again by the next request?

Blocks of 16 tokens with reference counts. A full block is known by a digest that chains over everything before it,
so equal digests mean equal prefixes and such a block is shared; so is the last block of a sequence that has ended, full
or not, which whoever goes on from there copies. A block that nobody holds any more keeps its content until its memory
is needed: least recently used goes first. A pinned block is not taken though nobody holds it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from berth_worker.engine.batch import BLOCK_TOKENS

__all__ = ["BlockManager", "OutOfBlocksError", "blocks_for", "extend_digests", "tail_digest"]


class OutOfBlocksError(RuntimeError):
    """Every block is held by a request."""


def blocks_for(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


def extend_digests(digests: list[bytes], tokens: Sequence[int], full_blocks: int) -> None:
    """Append to digests, in place, until they cover the first full_blocks blocks of tokens.

    A cryptographic digest, because whoever finds two prompts of one digest would read another client's context.
    """
    for index in range(len(digests), full_blocks):
        digests.append(_digest(digests, tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS]))


def tail_digest(digests: Sequence[bytes], tokens: Sequence[int], end: int) -> bytes:
    """Of the block that holds what digests do not cover of tokens[:end]: 1 to BLOCK_TOKENS tokens.

    Its length is part of it: a block is found by exactly as many tokens as it was published with.
    """
    return _digest(digests, tokens[len(digests) * BLOCK_TOKENS : end])


def _digest(before: Sequence[bytes], tokens: Sequence[int]) -> bytes:
    parent = before[-1] if before else b""
    return hashlib.blake2b(array("q", tokens).tobytes(), digest_size=16, key=parent).digest()


class BlockManager:
    """Blocks 0 ... num_blocks - 1: free (perhaps still cached), held by requests, or else pinned and so retained."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks: {num_blocks}; at least 1")
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._pins = [0] * num_blocks
        self.retained = 0
        """Blocks that no request holds and that are not free, because they are pinned."""
        self._digest: list[bytes | None] = [None] * num_blocks
        self._cached: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        """In the order in which they are taken: without content first, then least recently used."""

    @property
    def free(self) -> int:
        """Blocks that can be taken, those with cached content included."""
        return len(self._free)

    @property
    def held(self) -> int:
        """Blocks that some request holds."""
        return self.num_blocks - len(self._free) - self.retained

    def references(self, block: int) -> int:
        """How many requests hold the block."""
        return self._references[block]

    def published(self, block: int) -> bool:
        """Whether the block's content may be shared, and so must not be written."""
        return self._digest[block] is not None

    def find(self, digest: bytes) -> int | None:
        """The block with that content, or None. Not held yet: call `share` before anything else is taken."""
        return self._cached.get(digest)

    def find_prefix(self, digests: Iterable[bytes]) -> list[int]:
        """The longest run of cached blocks from the start."""
        found: list[int] = []
        for digest in digests:
            block = self._cached.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def free_among(self, blocks: Iterable[int]) -> int:
        """How many of these blocks sharing would take out of the free ones."""
        return sum(self._references[block] == 0 and self._pins[block] == 0 for block in blocks)

    def idle_among(self, blocks: Iterable[int]) -> int:
        """How many of these blocks are held by no request."""
        return sum(self._references[block] == 0 for block in blocks)

    def share(self, block: int) -> None:
        """Hold a published block once more."""
        if self._digest[block] is None:
            raise ValueError(f"block {block} was not published: its content belongs to its holder alone")
        if self._references[block] == 0:
            if self._pins[block]:
                self.retained -= 1
            else:
                del self._free[block]
        self._references[block] += 1

    def take(self) -> int:
        """Hold a block to write into; forgets what it cached. Raises OutOfBlocksError when all are held."""
        if not self._free:
            raise OutOfBlocksError(f"all {self.num_blocks} blocks are held")
        block, _ = self._free.popitem(last=False)
        digest = self._digest[block]
        if digest is not None:
            del self._cached[digest]
            self._digest[block] = None
        self._references[block] = 1
        return block

    def publish(self, block: int, digest: bytes) -> None:
        """From now on the block is never written again and can be shared.

        A second block of the same content stays private: its holder keeps it and nobody finds it.
        """
        if self._references[block] < 1:
            raise ValueError(f"block {block} is published by nobody: no request holds it")
        if self._digest[block] is None and digest not in self._cached:
            self._digest[block] = digest
            self._cached[digest] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one hold on each. The last block of a sequence is forgotten first: prefixes are worth more."""
        for block in reversed(blocks):
            if self._references[block] < 1:
                raise ValueError(f"block {block} is released by nobody: no request holds it")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._let_go(block)

    def pin(self, blocks: Sequence[int]) -> None:
        """Keep published blocks from being taken, held or not, until they are unpinned as often."""
        for block in blocks:
            if self._digest[block] is None:
                raise ValueError(f"block {block} was not published: nobody would find it again")
            if self._references[block] == 0 and self._pins[block] == 0:
                del self._free[block]
                self.retained += 1
            self._pins[block] += 1

    def unpin(self, blocks: Sequence[int]) -> None:
        """Take back one pin of each; the last block of a sequence is forgotten first."""
        for block in reversed(blocks):
            if self._pins[block] < 1:
                raise ValueError(f"block {block} is unpinned by nobody: it has no pin")
            self._pins[block] -= 1
            if self._pins[block] == 0 and self._references[block] == 0:
                self.retained -= 1
                self._let_go(block)

    def _let_go(self, block: int) -> None:
        """Nobody holds the block any more."""
        if self._pins[block]:
            self.retained += 1
            return
        self._free[block] = None
        if self._digest[block] is None:
            self._free.move_to_end(block, last=False)
