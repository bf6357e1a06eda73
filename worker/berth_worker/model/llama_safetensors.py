"""Is this Hugging Face folder a Llama we can run, and what are its weights?  Names, shapes and types are checked before
a weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from berth_worker.model.config import LlamaConfig
from berth_worker.model.config_json import Packing, read_config_json, read_packing
from berth_worker.model.grid import FloatArray, Grid4
from berth_worker.model.identity import Identity
from berth_worker.model.interface import ModelError
from berth_worker.model.json_file import Fields, read_object, shown
from berth_worker.model.packed4 import Int32Array, awq_grid, gptq_grid, gptq_reordered
from berth_worker.model.safetensors_file import SafetensorsFile, StoredTensor, is_safe_file_name

__all__ = ["SafetensorsFolder", "SafetensorsReader"]

_INDEX = "model.safetensors.index.json"
_MATRICES = {
    **{key: f"self_attn.{key}_proj" for key in ("q", "k", "v", "o")},
    **{key: f"mlp.{key}_proj" for key in ("gate", "up", "down")},
}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_PACKED = ("qweight", "qzeros", "scales")


class SafetensorsFolder:
    """The tensors of a folder: of its model.safetensors, or of the files that its index names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._where: dict[str, SafetensorsFile] = {}
        if (path / _INDEX).is_file():
            self._read_index(path / _INDEX)
            return
        if not (path / "model.safetensors").is_file():
            raise ModelError(f"{path}: found neither model.safetensors nor {_INDEX}")
        self.files = [SafetensorsFile(path / "model.safetensors")]
        self._where = dict.fromkeys(self.files[0].tensors, self.files[0])

    def _read_index(self, index: Path) -> None:
        entries = read_object(index, limit=32 << 20).get("weight_map")
        if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries.values()):
            raise ModelError(f"{index}: weight_map: found {shown(entries)}; a file name for each tensor is right")
        for name in entries.values():
            if not is_safe_file_name(name):
                raise ModelError(f"{index}: weight_map: found {shown(name)}; the name of a file beside it is right")
        opened = {name: SafetensorsFile(self.path / name) for name in sorted(set(entries.values()))}
        self.files = list(opened.values())
        for name, file in entries.items():
            if name not in opened[file].tensors:
                raise ModelError(f"{index}: weight_map: says that {file} holds {shown(name)}; it does not")
            self._where[name] = opened[file]

    def names(self) -> set[str]:
        return set(self._where)

    def find(self, name: str) -> tuple[SafetensorsFile, StoredTensor] | None:
        file = self._where.get(name)
        return None if file is None else (file, file.tensors[name])

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> tuple[SafetensorsFile, StoredTensor]:
        """Raises ModelError if the tensor is missing, or of another shape."""
        found = self.find(name)
        if found is None:
            size = "" if shape is None else f"; a Llama of this shape needs it, {list(shape)}"
            raise ModelError(f"{self.path}: tensor {name}: not in the checkpoint{size}")
        if shape is not None and found[1].shape != shape:
            raise ModelError(
                f"{found[0].path}: tensor {name}: found shape {list(found[1].shape)}; "
                f"config.json asks for {list(shape)}"
            )
        return found

    def floats(self, name: str) -> FloatArray:
        file, tensor = self.get(name)
        return file.floats(tensor)

    def integers(self, name: str) -> Int32Array:
        file, tensor = self.get(name)
        return file.integers(tensor)


@dataclass(frozen=True, slots=True)
class _Matrix:
    """Where one matrix lies: `name`.weight, or packed in `name`.qweight and its companions."""

    name: str
    rows: int
    depth: int
    packed: bool


class SafetensorsReader:
    """The weights of a LlamaForCausalLM in a Hugging Face folder; see `berth_worker.model.weights.LlamaWeights`.

    Raises ModelError, before reading a weight, if config.json describes something else or a tensor is missing, unknown,
    of the wrong shape or of a type that is not supported.
    """

    def __init__(self, folder: Path) -> None:
        fields = Fields(read_object(folder / "config.json"), folder / "config.json")
        self.config: LlamaConfig = read_config_json(fields)
        self._packing: Packing | None = read_packing(fields)
        self.file = SafetensorsFolder(folder)
        self._matrices = dict(self._check())

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def parameters(self) -> int:
        config = self.config
        matrices = sum(matrix.rows * matrix.depth for matrix in self._matrices.values())
        return matrices + config.vocab_size * config.hidden_size + (2 * config.num_layers + 1) * config.hidden_size

    def embedding(self) -> FloatArray:
        return self.file.floats("model.embed_tokens.weight")

    def output(self) -> FloatArray:
        return self.embedding() if self.config.tie_embeddings else self._dense(self._matrices["lm_head"])

    def output_norm(self) -> FloatArray:
        return self.file.floats("model.norm.weight")

    def layer(self, index: int) -> dict[str, FloatArray]:
        return {name: self.matrix(index, name) for name in _MATRICES | _NORMS}

    def matrix(self, index: int, name: str) -> FloatArray:
        prefix = f"model.layers.{index}."
        if name in _NORMS:
            return self.file.floats(f"{prefix}{_NORMS[name]}.weight")
        return self._dense(self._matrices[prefix + _MATRICES[name]])

    def grids(self, index: int) -> dict[str, Grid4 | None]:
        return {name: self.grid(index, name) for name in _MATRICES}

    def grid(self, index: int, name: str) -> Grid4 | None:
        return self._grid(self._matrices[f"model.layers.{index}.{_MATRICES[name]}"])

    def identity(self) -> str:
        identity = Identity()
        identity.add((self.path / "config.json").read_bytes())
        for file in self.file.files:
            identity.add_file(file.path, file.header, [(t.offset, t.nbytes) for t in file.tensors.values()])
        return identity.digest()

    # -- matrices ----------------------------------------------------------------------------------------------------

    def _dense(self, matrix: _Matrix) -> FloatArray:
        if not matrix.packed:
            return self.file.floats(matrix.name + ".weight")
        if (grid := self._grid(matrix)) is not None:
            return grid.dequantize()
        assert self._packing is not None  # noqa: S101 - _check: packed only where config.json says how
        parts = self._parts(matrix)
        values = gptq_reordered(*parts, self.file.integers(matrix.name + ".g_idx"), self._packing.zero_offset)
        if not np.isfinite(values).all():
            raise ModelError(f"{self.path}: tensor {matrix.name}.scales: found weights beyond float32")
        return values

    def _grid(self, matrix: _Matrix) -> Grid4 | None:
        if not matrix.packed or self._packing is None:
            return None
        group = matrix.depth if self._packing.group == -1 else self._packing.group
        if self._packing.method == "awq":
            grid = awq_grid(*self._parts(matrix), group)
        elif self._group_order(matrix, group) is not None:
            return None
        else:
            grid = gptq_grid(*self._parts(matrix), group, self._packing.zero_offset)
        return grid.check(f"{self.path}: tensor {matrix.name}.scales")

    def _parts(self, matrix: _Matrix) -> tuple[Int32Array, Int32Array, FloatArray]:
        name = matrix.name
        return (
            self.file.integers(f"{name}.qweight"),
            self.file.integers(f"{name}.qzeros"),
            self.file.floats(f"{name}.scales"),
        )

    def _group_order(self, matrix: _Matrix, group: int) -> Int32Array | None:
        """GPTQ's g_idx, [depth], where it is not the trivial one: which group each column is in (act-order)."""
        if self.file.find(f"{matrix.name}.g_idx") is None:
            return None
        order = self.file.integers(f"{matrix.name}.g_idx")
        if (order == np.arange(matrix.depth) // group).all():
            return None
        groups = -(-matrix.depth // group)
        if order.min() < 0 or order.max() >= groups:
            raise ModelError(
                f"{self.path}: tensor {matrix.name}.g_idx: found {order.min()} to {order.max()}; "
                f"right is 0 to {groups - 1}"
            )
        return order

    # -- checks ------------------------------------------------------------------------------------------------------

    def _check(self) -> Iterator[tuple[str, _Matrix]]:
        config = self.config
        expected: set[str] = set()

        def dense(name: str, *shape: int) -> None:
            file, tensor = self.file.get(name, shape)
            if tensor.dtype not in ("F32", "F16", "BF16"):
                raise ModelError(
                    f"{file.path}: tensor {name}: found {tensor.dtype}; supported: F32, F16, BF16, "
                    "and int32 of GPTQ and AWQ where config.json has a quantization_config"
                )
            expected.add(name)

        dense("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        dense("model.norm.weight", config.hidden_size)
        for layer in range(config.num_layers):
            for norm in _NORMS.values():
                dense(f"model.layers.{layer}.{norm}.weight", config.hidden_size)
        for name, rows, depth in _matrix_shapes(config):
            packed = self._packing is not None and self.file.find(name + ".qweight") is not None
            if packed:
                expected |= self._check_packed(name, rows, depth)
            else:
                dense(name + ".weight", rows, depth)
            yield name, _Matrix(name, rows, depth, packed)
        ignored = {"lm_head.weight"} if config.tie_embeddings else set()
        for name in sorted(self.file.names() - expected - ignored):
            if not name.endswith("rotary_emb.inv_freq"):  # older checkpoints carry what config.json says
                raise ModelError(
                    f"{self.path}: tensor {name}: found, but a Llama of this shape has none of that name "
                    "(biases and adapters are not supported)"
                )

    def _check_packed(self, name: str, rows: int, depth: int) -> set[str]:
        """The names of a packed matrix's tensors. Raises ModelError if one is missing, or of another shape or type."""
        packing = self._packing
        assert packing is not None  # noqa: S101 - the caller looked
        if rows % 8 or depth % 8:
            raise ModelError(f"{self.path}: tensor {name}.qweight: found {rows} x {depth}; multiples of 8 are packed")
        groups = 1 if packing.group == -1 else -(-depth // packing.group)
        qweight = (depth, rows // 8) if packing.method == "awq" else (depth // 8, rows)
        shapes = {"qweight": qweight, "qzeros": (groups, rows // 8), "scales": (groups, rows)}
        for part, shape in shapes.items():
            file, tensor = self.file.get(f"{name}.{part}", shape)
            right = ("F32", "F16", "BF16") if part == "scales" else ("I32",)
            if tensor.dtype not in right:
                raise ModelError(
                    f"{file.path}: tensor {name}.{part}: found {tensor.dtype}; right is {' or '.join(right)}"
                )
        found = {f"{name}.{part}" for part in _PACKED}
        if packing.method == "gptq" and self.file.find(f"{name}.g_idx") is not None:
            file, tensor = self.file.get(f"{name}.g_idx", (depth,))
            file.integers(tensor)
            found.add(f"{name}.g_idx")
        if self.file.find(f"{name}.bias") is not None:  # AutoGPTQ writes one of zeros for every matrix
            self.file.get(f"{name}.bias", (rows,))
            if self.file.floats(f"{name}.bias").any():
                raise ModelError(f"{self.path}: tensor {name}.bias: found values; biases are not supported")
            found.add(f"{name}.bias")
        return found


def _matrix_shapes(config: LlamaConfig) -> Iterator[tuple[str, int, int]]:
    """Name, rows and depth of each matrix but the embedding."""
    if not config.tie_embeddings:
        yield "lm_head", config.vocab_size, config.hidden_size
    sizes = {"q": config.q_size, "k": config.kv_size, "v": config.kv_size}
    sizes |= {"o": config.hidden_size, "down": config.hidden_size}
    depths = {"o": config.q_size, "down": config.intermediate_size}
    for layer in range(config.num_layers):
        for key, name in _MATRICES.items():
            rows, depth = sizes.get(key, config.intermediate_size), depths.get(key, config.hidden_size)
            yield f"model.layers.{layer}.{name}", rows, depth
