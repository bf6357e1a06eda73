"""What do the models need of a checkpoint?  Its shape and its matrices, one at a time, wherever they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from berth_worker.model.config import LlamaConfig
from berth_worker.model.grid import FloatArray, Grid4

__all__ = ["CheckpointFile", "LlamaWeights"]


class CheckpointFile(Protocol):
    @property
    def path(self) -> Path:
        """The file or folder, for messages."""
        ...


class LlamaWeights(Protocol):
    """A Llama's weights in float32, in the layout of transformers' LlamaForCausalLM (rotary halves).

    `LlamaReader` reads GGUF, `SafetensorsReader` a Hugging Face folder.  Reading raises ModelError for a tensor with
    infinite or NaN values; names, shapes and types have been checked before.
    """

    config: LlamaConfig

    @property
    def path(self) -> Path:
        """The file or folder, for messages."""
        ...

    @property
    def file(self) -> CheckpointFile: ...

    @property
    def parameters(self) -> int:
        """Weights, embeddings included."""
        ...

    def embedding(self) -> FloatArray:
        """[vocab, hidden]"""
        ...

    def output(self) -> FloatArray:
        """[vocab, hidden]; the embedding itself where they are tied."""
        ...

    def output_norm(self) -> FloatArray:
        """[hidden]"""
        ...

    def layer(self, index: int) -> dict[str, FloatArray]:
        """attn_norm, ffn_norm: [hidden]; q: [q_size, hidden]; k, v: [kv_size, hidden]; o: [hidden, q_size];
        gate, up: [intermediate, hidden]; down: [hidden, intermediate]."""
        ...

    def matrix(self, index: int, name: str) -> FloatArray:
        """One of those that layer() gives, as a fresh array."""
        ...

    def grid(self, index: int, name: str) -> Grid4 | None:
        """One of those that grids() gives."""
        ...

    def grids(self, index: int) -> dict[str, Grid4 | None]:
        """The 4-bit grid of each matrix of a layer (q, k, v, o, gate, up, down), or None for one that has none; where
        there is one, its dequantize() is what layer() gives."""
        ...

    def identity(self) -> str:
        """A digest that differs between checkpoints whose weights differ; see `packed_cache`."""
        ...
