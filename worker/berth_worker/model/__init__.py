"""Which Llama is served, from where, and how are its weights held?"""

from __future__ import annotations

from berth_worker.model.interface import BLOCK_TOKENS, Batch, KVCache, LoadedModel, Model, ModelError, Quantization
from berth_worker.model.load import load

__all__ = ["BLOCK_TOKENS", "Batch", "KVCache", "LoadedModel", "Model", "ModelError", "Quantization", "load"]
