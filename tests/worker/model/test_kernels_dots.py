"""Are integer products exact on every instruction set?  Judged by numpy, at sizes and values that break shortcuts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from berth_worker import kernels
from berth_worker.kernels.packing import pack_scales, pack_values
from hypothesis import example, given, settings
from hypothesis import strategies as st

ISAS = kernels.available_isas()


def products(values: np.ndarray, weights: np.ndarray, isa: str, *, positive: bool = False) -> np.ndarray:
    """The kernels' values @ weights.T, int32; depth padded with zeros."""
    packed = pack_values(torch.from_numpy(weights))
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % 4)))
    return kernels.int8_dots(packed, torch.from_numpy(padded), isa, positive=positive)[:, : weights.shape[0]].numpy()


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 11),
    channels=st.integers(1, 53),
    depth=st.integers(1, 131),
    extreme=st.sampled_from(["random", "largest", "mixed"]),
    seed=st.integers(0, 2**32 - 1),
)
@example(rows=4, channels=16, depth=4096, extreme="largest", seed=0)
def test_products_are_exact_at_any_size_and_at_the_extremes(
    isa: str, rows: int, channels: int, depth: int, extreme: str, seed: int
) -> None:
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        if extreme == "largest":  # 2 * 127 * 127 is the most that a 16-bit pair may hold
            return np.full(shape, 127, np.int8)
        if extreme == "mixed":
            return random.choice(np.array([-127, 0, 127], np.int8), shape)
        return random.integers(-127, 128, shape, dtype=np.int8)

    values, weights = draw(rows, depth), draw(channels, depth)
    expected = values.astype(np.int64) @ weights.astype(np.int64).T
    assert np.array_equal(products(values, weights, isa), expected)
    expected = np.abs(values).astype(np.int64) @ weights.astype(np.int64).T
    assert np.array_equal(products(np.abs(values), weights, isa, positive=True), expected)


def test_padding_and_order_of_the_packed_layout() -> None:
    values = torch.arange(17 * 6, dtype=torch.int8).reshape(17, 6)
    packed = pack_values(values)
    assert packed.shape == (2, 2, 16, 4)
    assert packed[0, 1, 5].tolist() == [*values[5, 4:6].tolist(), 0, 0]
    assert packed[1, 0, 0].tolist() == values[16, :4].tolist()
    assert packed[1, :, 1:].eq(0).all()
    scales = torch.arange(17 * 3).reshape(17, 3).to(torch.bfloat16)
    assert pack_scales(scales).shape == (2, 3, 16)
    assert pack_scales(scales)[0, 2, 4] == scales[4, 2]


def test_an_unknown_instruction_set_is_refused_by_name() -> None:
    with pytest.raises(RuntimeError, match=f"found 'mmx'; this build on this machine has: {' '.join(ISAS)}"):
        products(np.ones((1, 4), np.int8), np.ones((16, 4), np.int8), "mmx")
