"""Does a 4-bit checkpoint keep its own grid?  Judged by the `gguf` package's dequantization, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from berth_worker.model import ModelError
from berth_worker.model.gguf_file import GgufFile
from berth_worker.model.grid import gguf_grid
from berth_worker.model.llama_gguf import LlamaReader
from hypothesis import given, settings
from hypothesis import strategies as st

HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q4_K": [0, 2]}
BLOCKS = {"Q4_0": (32, 18), "Q4_1": (32, 20), "Q4_K": (256, 144)}


def random_bytes(kind: str, rows: int, blocks: int, seed: int) -> np.ndarray:
    """Blocks whose bits are random, but whose float16 fields are finite: every scale, sign and split occurs."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows * blocks, BLOCKS[kind][1]), dtype=np.uint8)
    for at in HALVES[kind]:
        raw[:, at : at + 2] = rng.normal(0, 2, len(raw)).astype("<f2").view(np.uint8).reshape(-1, 2)
    return raw.reshape(rows, -1)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(BLOCKS)), rows=st.integers(1, 9), blocks=st.integers(1, 5), seed=st.integers(0, 1 << 30)
)
def test_the_grid_says_exactly_what_the_file_says(kind: str, rows: int, blocks: int, seed: int) -> None:
    raw = random_bytes(kind, rows, blocks, seed)
    depth = blocks * BLOCKS[kind][0]
    grid = gguf_grid(raw.reshape(-1), kind, rows, depth)
    assert grid is not None
    assert (grid.q.shape, grid.scale.shape, grid.group) == ((rows, depth), (rows, depth // 32), 32)
    assert grid.minimum.shape == grid.scale.shape
    assert grid.q.max() <= 15
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(grid.dequantize(), expected)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_K", "Q6_K"])
def test_other_types_have_no_grid(kind: str) -> None:
    assert gguf_grid(np.zeros(0, np.uint8), kind, 0, 0) is None


def test_grids_of_a_layer_are_what_the_layer_holds_in_the_same_order_of_rows(tiny: Any, tmp_path: Path) -> None:
    shape = tiny.Shape(layers=1, hidden=64)
    kinds = {"attn_q": "Q4_1", "attn_k": "Q4_0", "attn_v": "Q8_0", "ffn_gate": "Q4_0", "ffn_down": "Q4_1"}
    types = {f"blk.0.{name}.weight": gguf.GGMLQuantizationType[kind] for name, kind in kinds.items()}
    path = tiny.write_gguf(tmp_path / "mixed.gguf", shape, tiny.random_state(shape), types=types)
    reader = LlamaReader(GgufFile(path))
    layer, grids = reader.layer(0), reader.grids(0)
    assert {key for key, grid in grids.items() if grid is None} == {"v", "o", "up"}
    for key, grid in grids.items():
        if grid is not None:
            assert np.array_equal(grid.dequantize(), layer[key]), key
    assert not np.array_equal(layer["q"], reader.file.dequantize(reader.file.tensors["blk.0.attn_q.weight"]))


def test_grids_of_the_real_model_are_what_its_layers_hold(real_file: GgufFile) -> None:
    reader = LlamaReader(real_file)
    layer, grids = reader.layer(7), reader.grids(7)
    for key, grid in grids.items():
        assert grid is not None
        assert np.array_equal(grid.dequantize(), layer[key])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_scale_that_is_not_finite_is_refused(tiny: Any, tmp_path: Path, value: float) -> None:
    shape = tiny.Shape(layers=1)
    types = {"blk.0.ffn_down.weight": gguf.GGMLQuantizationType.Q4_1}
    path = tiny.write_gguf(tmp_path / "bad.gguf", shape, tiny.random_state(shape), types=types)
    info = GgufFile(path).tensors["blk.0.ffn_down.weight"]
    content = bytearray(path.read_bytes())
    content[info.offset + 22 : info.offset + 24] = np.array([value], "<f2").tobytes()  # minimum of the second block
    path.write_bytes(content)
    reader = LlamaReader(GgufFile(path))
    with pytest.raises(ModelError, match=r"bad.gguf: tensor blk.0.ffn_down.weight: found infinite or NaN"):
        reader.grids(0)
    with pytest.raises(ModelError, match=r"blk.0.ffn_down.weight: found infinite or NaN"):
        reader.layer(0)
