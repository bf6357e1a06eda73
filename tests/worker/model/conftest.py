"""Small random Llamas as GGUF files, and the same weights in transformers: they vary what the real model cannot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from berth_worker.engine.batch import BLOCK_TOKENS, Batch
from berth_worker.model.gguf_file import GgufFile
from berth_worker.model.interface import Model
from berth_worker.model.llama_gguf import LlamaReader
from berth_worker.model.sources import resolve

VOCAB = 75  # no multiple of 16
HIDDEN = 48  # a power of two times an odd number
LLAMA3_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


@dataclass(frozen=True)
class TinyShape:
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 16
    intermediate: int = 96
    layers: int = 2
    tied: bool = True
    llama3_rope: bool = False
    hidden: int = HIDDEN


def transformers_llama(shape: TinyShape, seed: int = 0, rope: dict[str, Any] | None = None) -> Any:
    """A random LlamaForCausalLM in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - takes seconds: only where it is the judge

    rope = rope or {"rope_theta": 10000.0, "rope_type": "default"}
    if shape.llama3_rope:
        rope = {"rope_theta": 10000.0, "rope_type": "llama3", **LLAMA3_ROPE}
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters=rope,
        tie_word_embeddings=shape.tied,
        initializer_range=0.15,
        attn_implementation="eager",
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 2.0)
    return model


def random_state(shape: TinyShape, seed: int = 0) -> dict[str, torch.Tensor]:
    """The same names and shapes as transformers_llama(shape).state_dict(), without importing transformers."""
    generator = torch.Generator().manual_seed(seed)
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    state: dict[str, torch.Tensor] = {}

    def matrix(name: str, *size: int) -> None:
        state[name] = torch.randn(*size, generator=generator) * 0.15

    matrix("model.embed_tokens.weight", VOCAB, shape.hidden)
    if not shape.tied:
        matrix("lm_head.weight", VOCAB, shape.hidden)
    state["model.norm.weight"] = torch.rand(shape.hidden, generator=generator) + 0.5
    for index in range(shape.layers):
        prefix = f"model.layers.{index}."
        for name, rows, columns in (
            ("self_attn.q_proj", q, shape.hidden),
            ("self_attn.k_proj", kv, shape.hidden),
            ("self_attn.v_proj", kv, shape.hidden),
            ("self_attn.o_proj", shape.hidden, q),
            ("mlp.gate_proj", shape.intermediate, shape.hidden),
            ("mlp.up_proj", shape.intermediate, shape.hidden),
            ("mlp.down_proj", shape.hidden, shape.intermediate),
        ):
            matrix(f"{prefix}{name}.weight", rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{prefix}{name}.weight"] = torch.rand(shape.hidden, generator=generator) + 0.5
    return state


def write_gguf(
    path: Path,
    shape: TinyShape,
    state: dict[str, torch.Tensor],
    *,
    metadata: dict[str, Any] | None = None,
    change: Callable[[dict[str, np.ndarray]], None] | None = None,
    types: dict[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """Write a Llama as llama.cpp's converter does; `metadata` adds or replaces keys, `change` edits the tensors,
    `types` quantizes some."""
    values: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": shape.layers,
        "llama.context_length": 512,
        "llama.embedding_length": shape.hidden,
        "llama.feed_forward_length": shape.intermediate,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.key_length": shape.head_dim,
        "llama.attention.value_length": shape.head_dim,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": shape.head_dim,
        "llama.vocab_size": VOCAB,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [chr(ord("!") + i) for i in range(VOCAB - 2)] + ["ab", "<end>"],
        "tokenizer.ggml.token_type": [1] * (VOCAB - 1) + [3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": VOCAB - 1,
    } | (metadata or {})
    writer = gguf.GGUFWriter(path, values.pop("general.architecture"))
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    tensors = gguf_tensors(shape, state)
    if change is not None:
        change(tensors)
    for name, tensor in tensors.items():
        kind = (types or {}).get(name)
        writer.add_tensor(name, tensor if kind is None else gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_folder(
    path: Path,
    shape: TinyShape,
    state: dict[str, torch.Tensor],
    *,
    config: dict[str, Any] | None = None,
    files: dict[str, Any] | None = None,
) -> Path:
    """Write a Llama as a Hugging Face folder; `config` adds or replaces fields of config.json (None drops one), `files`
    adds or replaces other JSON files."""
    from safetensors.torch import save_file  # noqa: PLC0415

    path.mkdir(exist_ok=True)
    values: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": VOCAB,
        "tie_word_embeddings": shape.tied,
        "hidden_act": "silu",
        "eos_token_id": VOCAB - 1,
    }
    if shape.llama3_rope:
        values["rope_scaling"] = {"rope_type": "llama3", **LLAMA3_ROPE}
    values = {name: value for name, value in (values | (config or {})).items() if value is not None}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path / "model.safetensors")
    others = {"tokenizer.json": tiny_tokenizer_json(), "tokenizer_config.json": {"eos_token": "<end>"}} | (files or {})
    for name, content in {"config.json": values, **others}.items():
        (path / name).write_text(json.dumps(content))
    return path


def tiny_tokenizer_json() -> dict[str, Any]:
    """The tokenizer of write_gguf, as a tokenizer.json."""
    vocabulary = {chr(ord("!") + i): i for i in range(VOCAB - 2)} | {"ab": VOCAB - 2}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": [{"id": VOCAB - 1, "content": "<end>", **end}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "vocab": vocabulary, "merges": [["a", "b"]]},
    }


def gguf_tensors(shape: TinyShape, state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    if not shape.tied:
        tensors["output.weight"] = state["lm_head.weight"]
    for index in range(shape.layers):
        for theirs, ours in names.items():
            w = state[f"model.layers.{index}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):
                heads = shape.heads if ours == "attn_q" else shape.kv_heads
                # convert_hf_to_gguf.py, LlamaModel.permute
                w = w.reshape(heads, 2, w.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)
            tensors[f"blk.{index}.{ours}.weight"] = w
    if shape.llama3_rope:
        tensors["rope_freqs.weight"] = torch.tensor(llama3_factors(shape.head_dim))
    return {name: np.ascontiguousarray(tensor.detach().float().numpy()) for name, tensor in tensors.items()}


def llama3_factors(head_dim: int) -> list[float]:
    """What convert_hf_to_gguf.py stores for rope_type llama3."""
    factor, low, high = LLAMA3_ROPE["factor"], LLAMA3_ROPE["low_freq_factor"], LLAMA3_ROPE["high_freq_factor"]
    trained = LLAMA3_ROPE["original_max_position_embeddings"]
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * 10000.0 ** (i / head_dim)
        if wavelength < trained / high:
            factors.append(1.0)
        elif wavelength > trained / low:
            factors.append(factor)
        else:
            smooth = (trained / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def single(tokens: list[int], start: int, table: list[int], rows: list[int] | None = None) -> Batch:
    """A batch of one sequence: its tokens from position `start` on."""
    n = len(tokens)
    return Batch(
        tokens, list(range(start, start + n)), [0, n], [start + n], [table], list(range(n)) if rows is None else rows
    )


def all_logits(model: Model, tokens: list[int], steps: list[int] | None = None) -> torch.Tensor:
    """Logits of every position [T, vocab], the prompt cut into steps of the given lengths."""
    blocks = -(-len(tokens) // BLOCK_TOKENS)
    cache = model.new_cache(blocks + 3)
    table = list(range(blocks + 2, 2, -1))  # not in order, not from 0
    parts, start = [], 0
    for length in steps or [len(tokens)]:
        parts.append(model.forward(single(tokens[start : start + length], start, table), cache).values)
        start += length
    assert start == len(tokens)
    return torch.cat(parts)


@pytest.fixture(scope="session")
def tiny() -> Any:
    """The functions of this file, for tests: with importlib imports a test cannot import its conftest."""
    return _Tiny


class _Tiny:
    Shape = TinyShape
    VOCAB = VOCAB
    transformers_llama = staticmethod(transformers_llama)
    random_state = staticmethod(random_state)
    write_gguf = staticmethod(write_gguf)
    write_folder = staticmethod(write_folder)
    tokenizer_json = staticmethod(tiny_tokenizer_json)
    all_logits = staticmethod(all_logits)
    single = staticmethod(single)


@pytest.fixture(scope="session")
def tiny_reader(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TinyShape], LlamaReader]:
    """The reader of a random Llama of a shape, written once."""
    readers: dict[TinyShape, LlamaReader] = {}

    def reader(shape: TinyShape) -> LlamaReader:
        if shape not in readers:
            path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
            readers[shape] = LlamaReader(GgufFile(write_gguf(path, shape, random_state(shape))))
        return readers[shape]

    return reader


@pytest.fixture(scope="session")
def real_file() -> GgufFile:
    """The embedded model's file."""
    return GgufFile(resolve("smollm2-135m-instruct").path)


@pytest.fixture
def several_torch_threads() -> Iterator[None]:
    """Loading an int8 model leaves torch one thread; the oracle wants both cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
