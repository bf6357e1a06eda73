"""Does the book of KV blocks find content by what led to it, and refuse what would lose or share one wrongly?"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from berth_worker.engine.blocks import BlockManager, OutOfBlocksError, blocks_for, extend_digests
from hypothesis import given

BLOCK = 16


@given(st.integers(0, 10_000))
def test_blocks_for_is_the_least_number_that_holds_so_many(tokens: int) -> None:
    count = blocks_for(tokens)
    assert count * BLOCK >= tokens > (count - 1) * BLOCK


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=80), min_size=1, max_size=6))
def test_digests_are_equal_exactly_where_everything_up_to_there_is(prompts: list[list[int]]) -> None:
    seen: dict[bytes, tuple[int, ...]] = {}
    for tokens in prompts:
        digests: list[bytes] = []
        extend_digests(digests, tokens, len(tokens) // BLOCK)
        for index, digest in enumerate(digests):
            prefix = tuple(tokens[: (index + 1) * BLOCK])
            assert seen.setdefault(digest, prefix) == prefix
    assert len(set(seen.values())) == len(seen)


def test_least_recently_used_content_goes_first_and_the_end_of_a_sequence_before_its_beginning() -> None:
    blocks = BlockManager(4)
    held = [blocks.take() for _ in range(4)]
    for block in held[:3]:
        blocks.publish(block, bytes([block]))
    blocks.release(held[:2])
    blocks.release(held[2:])
    assert [blocks.take() for _ in range(4)] == [held[3], held[1], held[0], held[2]]
    with pytest.raises(OutOfBlocksError, match="all 4 blocks are held"):
        blocks.take()


def test_a_cached_block_in_use_again_is_not_evicted() -> None:
    blocks = BlockManager(2)
    block = blocks.take()
    blocks.publish(block, b"x")
    blocks.release([block])
    assert blocks.find_prefix([b"x"]) == [block]
    blocks.share(block)
    blocks.take()
    assert blocks.free == 0
    assert blocks.find(b"x") == block


def test_misuse_of_blocks_is_refused_by_name() -> None:
    blocks = BlockManager(2)
    block = blocks.take()
    with pytest.raises(ValueError, match=f"block {block} was not published"):
        blocks.share(block)
    blocks.release([block])
    with pytest.raises(ValueError, match=f"block {block} is released by nobody"):
        blocks.release([block])
    with pytest.raises(ValueError, match=f"block {block} is published by nobody"):
        blocks.publish(block, b"x")
    with pytest.raises(ValueError, match=f"block {block} was not published: nobody would find it"):
        blocks.pin([block])
    with pytest.raises(ValueError, match=f"block {block} is unpinned by nobody"):
        blocks.unpin([block])
