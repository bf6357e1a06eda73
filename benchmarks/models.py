"""Which model files do the benchmarks run, and how is each made?  Kept beside the peers, made on first use."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from berth_worker.model.load import open_checkpoint
from berth_worker.model.sources import resolve
from numpy.typing import NDArray
from peers import llama_cpp, peers_folder

__all__ = ["EMBEDDED", "hugging_face", "one_billion", "small"]

EMBEDDED = "smollm2-135m-instruct"
"""135M: SmolLM2-135M-Instruct as its package ships it, in Q4_1."""

_HIDDEN, _LAYERS, _HEADS, _KV_HEADS, _FFN, _VOCAB = 2048, 22, 32, 4, 5632, 32000
"""TinyLlama-1.1B's shape."""


def small(kind: str) -> Path:
    """The 135M in F32 (the embedded file dequantized), or that again in Q8_0 or Q4_0; Q4_1 is the embedded file."""
    embedded = resolve(EMBEDDED).path
    if kind == "Q4_1":
        return embedded
    path = _folder() / f"135m-{kind.lower()}.gguf"
    if not path.exists():
        source = embedded if kind == "F32" else small("F32")
        _quantize(["--allow-requantize"] if kind == "F32" else [], source, path, kind)
    return path


def one_billion() -> Path:
    """A Llama of 1.1B parameters with random weights, in Q8_0: for speed alone."""
    path = _folder() / "1b-q8_0.gguf"
    if not path.exists():
        print(f"models: writing {path} (once)", file=sys.stderr, flush=True)
        partial = path.with_suffix(".partial")
        _write_one_billion(partial)
        partial.rename(path)
    return path


def hugging_face() -> Path:
    """A folder with the 135M in float32 as Hugging Face keeps it: for transformers and CTranslate2."""
    path = _folder() / "135m-hf"
    if not (path / "complete").exists():
        _save_hugging_face(path)
        (path / "complete").touch()
    return path


def _save_hugging_face(path: Path) -> None:
    import torch  # noqa: PLC0415
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    weights, _ = open_checkpoint(resolve(EMBEDDED).path)
    config = weights.config
    tokenizer = AutoTokenizer.from_pretrained(small("F32").parent, gguf_file=small("F32").name)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=config.rope_theta,
            max_position_embeddings=8192,
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    state = {"model.embed_tokens.weight": weights.embedding(), "model.norm.weight": weights.output_norm()}
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    names |= {name: f"self_attn.{name}_proj" for name in "qkvo"}
    names |= {name: f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    for index in range(config.num_layers):
        for name, value in weights.layer(index).items():
            state[f"model.layers.{index}.{names[name]}.weight"] = value
    state["lm_head.weight"] = weights.output()
    model.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in state.items()})
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def _folder() -> Path:
    folder = peers_folder() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _quantize(flags: list[str], source: Path, target: Path, kind: str) -> None:
    tools = llama_cpp()
    partial = target.with_suffix(".partial")
    command = tools.command("llama-quantize", *flags, str(source), str(partial), kind, "2")
    subprocess.run(command, env=tools.environment(), check=True, capture_output=True)
    partial.rename(target)


def _write_one_billion(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=False)
    writer.add_block_count(_LAYERS)
    writer.add_context_length(8192)
    writer.add_embedding_length(_HIDDEN)
    writer.add_feed_forward_length(_FFN)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_HIDDEN // _HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(_VOCAB)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    _add_tokenizer(writer)
    tensors = dict(_shapes())
    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, shape in tensors.items():
        if len(shape) == 1:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            bytes_shape = (shape[0], shape[1] // 32 * 34)
            size = bytes_shape[0] * bytes_shape[1]
            writer.add_tensor_info(name, bytes_shape, np.dtype(np.uint8), size, raw_dtype=q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(1)
    for shape in tensors.values():  # one at a time: the whole in float32 would take 4.4 GB
        data: NDArray[Any] = np.ones(shape, np.float32)
        if len(shape) == 2:
            weights = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
            data = gguf.quants.quantize(weights, q8)
        writer.write_tensor_data(data)
    writer.close()


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    kv = _HIDDEN // _HEADS * _KV_HEADS
    yield "token_embd.weight", (_VOCAB, _HIDDEN)
    for layer in range(_LAYERS):
        prefix = f"blk.{layer}."
        yield prefix + "attn_norm.weight", (_HIDDEN,)
        yield prefix + "attn_q.weight", (_HIDDEN, _HIDDEN)
        yield prefix + "attn_k.weight", (kv, _HIDDEN)
        yield prefix + "attn_v.weight", (kv, _HIDDEN)
        yield prefix + "attn_output.weight", (_HIDDEN, _HIDDEN)
        yield prefix + "ffn_norm.weight", (_HIDDEN,)
        yield prefix + "ffn_gate.weight", (_FFN, _HIDDEN)
        yield prefix + "ffn_up.weight", (_FFN, _HIDDEN)
        yield prefix + "ffn_down.weight", (_HIDDEN, _FFN)
    yield "output_norm.weight", (_HIDDEN,)
    yield "output.weight", (_VOCAB, _HIDDEN)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """The embedded model's tokenizer, cut to the vocabulary: its tokens stand in the order of their merges."""
    fields = gguf.GGUFReader(resolve(EMBEDDED).path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()[:_VOCAB]
    known = set(tokens)
    merges = [
        merge for merge in fields["tokenizer.ggml.merges"].contents() if {*(p := merge.split(" ")), "".join(p)} <= known
    ]
    writer.add_tokenizer_model(fields["tokenizer.ggml.model"].contents())
    writer.add_tokenizer_pre(fields["tokenizer.ggml.pre"].contents())
    writer.add_token_list(tokens)
    writer.add_token_types(fields["tokenizer.ggml.token_type"].contents()[:_VOCAB])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
