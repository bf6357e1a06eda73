"""Are GPTQ and AWQ checkpoints unpacked as the packages that write them unpack them?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from berth_worker.model import ModelError
from berth_worker.model.llama import Llama
from berth_worker.model.llama_safetensors import SafetensorsReader
from berth_worker.model.packed4 import awq_grid, gptq_grid
from berth_worker.model.safetensors_file import SafetensorsFile
from hypothesis import given, settings
from hypothesis import strategies as st

WRITTEN = Path(__file__).parent / "corpus" / "packed4.safetensors"  # by AutoGPTQ and AutoAWQ; see the README beside it


@pytest.mark.parametrize("kind", ["gptq_sym", "gptq_asym", "awq_sym", "awq_asym"])
def test_what_autogptq_and_autoawq_packed_is_what_they_unpack(kind: str) -> None:
    file = SafetensorsFile(WRITTEN)
    parts = {name.split(".")[1]: tensor for name, tensor in file.tensors.items() if name.startswith(kind)}
    packed = file.integers(parts["qweight"]), file.integers(parts["qzeros"]), file.floats(parts["scales"])
    grid = awq_grid(*packed, 32) if kind.startswith("awq") else gptq_grid(*packed, 32, 1)
    expected = file.floats(parts["expected"])
    assert (grid.q.shape, grid.scale.shape, grid.group) == ((32, 64), (32, 2), 32)
    assert np.array_equal(grid.dequantize(), expected)
    assert len(np.unique(expected)) > 100


def pack(values: torch.Tensor, order: list[int]) -> torch.Tensor:
    """int32 [n, m / 8] of 0..15 [n, m]; order[i] is which of eight goes into nibble i."""
    words = values.reshape(values.shape[0], -1, 8)[:, :, order].to(torch.int64)
    summed = (words << (4 * torch.arange(8))).sum(-1)
    return torch.where(summed >= 1 << 31, summed - (1 << 32), summed).to(torch.int32)


STRAIGHT, AWQ = list(range(8)), [0, 2, 4, 6, 1, 3, 5, 7]


def packed_state(
    tiny: Any, shape: Any, method: str, group: int, *, act_order: bool = False, offset: int = 1
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A checkpoint with random 4-bit matrices, and the same in float32."""
    generator = torch.Generator().manual_seed(5)
    stored, dense = {}, {}
    for name, tensor in tiny.random_state(shape).items():
        if not name.endswith("_proj.weight"):
            stored[name] = dense[name] = tensor.half().float()
            continue
        base, (rows, depth) = name.removesuffix(".weight"), tensor.shape
        size = depth if group == -1 else group
        groups = -(-depth // size)
        q = torch.randint(0, 16, (depth, rows), generator=generator)
        zeros = torch.randint(1, 16, (groups, rows), generator=generator)
        scales = (torch.rand(groups, rows, generator=generator) * 0.02 + 0.02).half()
        order = torch.arange(depth) // size
        if act_order:
            order = order[torch.randperm(depth, generator=generator)]
        dense[name] = ((q - zeros[order]) * scales.float()[order]).T
        stored[f"{base}.scales"] = scales
        if method == "awq":
            stored[f"{base}.qweight"], stored[f"{base}.qzeros"] = pack(q, AWQ), pack(zeros, AWQ)
        else:
            stored[f"{base}.qweight"] = pack(q.T, STRAIGHT).T
            stored[f"{base}.qzeros"] = pack(zeros - offset, STRAIGHT)
            stored[f"{base}.g_idx"] = order.int()
            stored[f"{base}.bias"] = torch.zeros(rows)  # as AutoGPTQ does
    return stored, dense


def settings_of(method: str, group: int, **more: Any) -> dict[str, Any]:
    names = {"quant_method": method, "bits": 4, "group_size": group}
    return {"quantization_config": names | ({"version": "gemm", "zero_point": True} if method == "awq" else {}) | more}


@pytest.mark.parametrize(
    ("method", "group", "more"),
    [
        ("gptq", 16, {}),
        ("gptq", 32, {"checkpoint_format": "gptq", "desc_act": False}),  # 48 columns: the last group is half a group
        ("gptq", -1, {}),
        ("gptq", 16, {"checkpoint_format": "gptq_v2"}),
        ("awq", 16, {}),
        ("awq", -1, {}),
    ],
)
def test_a_packed_checkpoint_keeps_its_grid_and_runs_as_its_float32_twin(
    tiny: Any, tmp_path: Path, method: str, group: int, more: dict[str, Any]
) -> None:
    shape = tiny.Shape(tied=False)
    stored, dense = packed_state(tiny, shape, method, group, offset=0 if "v2" in str(more) else 1)
    folder = tiny.write_folder(tmp_path / "packed", shape, stored, config=settings_of(method, group, **more))
    reader = SafetensorsReader(folder)
    twin = SafetensorsReader(tiny.write_folder(tmp_path / "dense", shape, dense))
    assert reader.parameters == twin.parameters
    for index in range(shape.layers):
        ours, theirs, grids = reader.layer(index), twin.layer(index), reader.grids(index)
        for key, grid in grids.items():
            assert grid is not None
            assert grid.q.shape == ours[key].shape
            assert grid.group == (ours[key].shape[1] if group == -1 else group)
            assert np.array_equal(grid.dequantize(), theirs[key])
        for key in ours:
            assert np.array_equal(ours[key], theirs[key])
    tokens = list(range(40))
    models = [Llama(source, torch.float32) for source in (reader, twin)]  # type: ignore[arg-type]
    assert torch.equal(*(tiny.all_logits(model, tokens) for model in models))


def test_columns_in_another_order_are_read_but_have_no_grid(tiny: Any, tmp_path: Path) -> None:
    shape = tiny.Shape(layers=1)
    stored, dense = packed_state(tiny, shape, "gptq", 16, act_order=True)
    config = settings_of("gptq", 16, desc_act=True)
    reader = SafetensorsReader(tiny.write_folder(tmp_path / "packed", shape, stored, config=config))
    assert set(reader.grids(0).values()) == {None}
    layer = reader.layer(0)
    assert np.array_equal(layer["down"], dense["model.layers.0.mlp.down_proj.weight"].numpy())
    assert np.array_equal(layer["q"], dense["model.layers.0.self_attn.q_proj.weight"].numpy())


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 5), depth=st.integers(1, 6), group=st.sampled_from([8, 16, 24]), seed=st.integers(0, 999))
def test_every_size_is_unpacked_in_its_place(rows: int, depth: int, group: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, depth = 8 * rows, 8 * depth
    groups = -(-depth // group)
    q = torch.randint(0, 16, (depth, rows), generator=generator)
    zeros = torch.randint(0, 16, (groups, rows), generator=generator)
    scales = torch.rand(groups, rows, generator=generator).half().float()
    expected = ((q - zeros[torch.arange(depth) // group]) * scales[torch.arange(depth) // group]).T.numpy()
    one = gptq_grid(pack(q.T, STRAIGHT).T.numpy(), pack((zeros - 1) % 16, STRAIGHT).numpy(), scales.numpy(), group, 1)
    other = awq_grid(pack(q, AWQ).numpy(), pack(zeros, AWQ).numpy(), scales.numpy(), group)
    assert np.array_equal(one.dequantize(), expected)
    assert np.array_equal(other.dequantize(), expected)


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("scales", torch.full((3, 96), torch.nan).half(), "q_proj.scales: found infinite or NaN"),
        ("scales", torch.full((3, 96), 3e38), "q_proj.scales: found infinite or NaN"),
        ("scales", torch.ones(3, 96).int(), "q_proj.scales: found I32; right is F32 or F16 or BF16"),
        ("qweight", torch.ones(6, 96), "q_proj.qweight: found F32; right is I32"),
        ("qzeros", torch.ones(2, 12).int(), r"q_proj.qzeros: found shape \[2, 12\]; config.json asks for \[3, 12\]"),
        ("g_idx", torch.full((48,), 3).int(), "q_proj.g_idx: found 3 to 3; right is 0 to 2"),
        ("g_idx", torch.full((48,), -1).int(), "q_proj.g_idx: found -1 to -1"),
        ("bias", torch.ones(96), "q_proj.bias: found values; biases are not supported"),
    ],
)
def test_what_is_wrong_with_a_packed_matrix_is_said(
    tiny: Any, tmp_path: Path, part: str, value: torch.Tensor, says: str
) -> None:
    shape = tiny.Shape(layers=1)
    stored, _ = packed_state(tiny, shape, "gptq", 16)
    stored[f"model.layers.0.self_attn.q_proj.{part}"] = value
    folder = tiny.write_folder(tmp_path / "bad", shape, stored, config=settings_of("gptq", 16))
    with pytest.raises(ModelError, match=says):
        SafetensorsReader(folder).layer(0)
