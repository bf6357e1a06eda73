"""Which Llama does a config.json describe, and how are its weights quantized?  Everything else is refused by name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from berth_worker.model.config import LlamaConfig, RopeScaling
from berth_worker.model.json_file import Fields

__all__ = ["Packing", "llama3_factors", "read_config_json", "read_packing"]


@dataclass(frozen=True, slots=True)
class Packing:
    """How the 4-bit matrices of a checkpoint lie in its tensors."""

    method: str
    """"gptq" or "awq" """
    group: int
    """Weights along the depth that share a scale; -1 for the whole depth."""
    zero_offset: int
    """What is to be added to a stored zero point: 1 in GPTQ's first format, else 0."""


def read_config_json(fields: Fields) -> LlamaConfig:
    """The configuration of a LlamaForCausalLM.

    Raises ModelError naming the field for another architecture, a missing or absurd value, biases, an activation other
    than SiLU, or a rotary embedding that is not implemented (implemented: default, linear, llama3).
    """
    architectures = fields.values.get("architectures")
    if architectures != ["LlamaForCausalLM"]:
        fields.refuse("architectures", "this worker runs ['LlamaForCausalLM']")
    if fields.values.get("model_type", "llama") != "llama":
        fields.refuse("model_type", "this worker runs 'llama'")
    for name in ("attention_bias", "mlp_bias"):
        if fields.flag(name, default=False):
            fields.refuse(name, "biases are not supported")
    if fields.values.get("hidden_act", "silu") != "silu":
        fields.refuse("hidden_act", "a Llama's is 'silu'")
    hidden = fields.integer("hidden_size", 1, 1 << 17)
    heads = fields.integer("num_attention_heads", 1, 1 << 10)
    kv_heads = fields.integer("num_key_value_heads", 1, 1 << 10, default=heads)
    if heads % kv_heads:
        fields.refuse("num_key_value_heads", f"it must divide the {heads} heads")
    if fields.values.get("head_dim") is None and hidden % heads:
        fields.refuse("hidden_size", f"it must be a multiple of the {heads} heads")
    head_dim = fields.integer("head_dim", 2, 1 << 10, default=max(2, hidden // heads))
    if head_dim % 2:
        fields.refuse("head_dim", "it must be even")
    context = fields.integer("max_position_embeddings", 1, 1 << 27, default=2048)
    theta, factors = _rope(fields, head_dim, context)
    return LlamaConfig(
        vocab_size=fields.integer("vocab_size", 1, 1 << 22),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", 1, 1 << 20),
        num_layers=fields.integer("num_hidden_layers", 1, 512),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, default=1e-6),
        rope_theta=theta,
        max_context=context,
        tie_embeddings=fields.flag("tie_word_embeddings", default=False),
        rope_factors=factors,
    )


def _rope(fields: Fields, head_dim: int, context: int) -> tuple[float, tuple[float, ...] | None]:
    """Base, and divisors of the frequencies.  transformers 5 writes rope_parameters, 4 rope_scaling and rope_theta."""
    rope = fields.object("rope_parameters") or fields.object("rope_scaling") or Fields({}, fields.path)
    for holder in (fields, rope):
        if holder.number("partial_rotary_factor", 0.0, 1.0, default=1.0) != 1.0:
            holder.refuse("partial_rotary_factor", "a Llama turns all of a head: 1.0")
    top = fields.number("rope_theta", 1.0, 1e12, default=10000.0)
    theta = rope.number("rope_theta", 1.0, 1e12, default=top)
    name = "rope_type" if rope.values.get("rope_type") is not None else "type"
    kind = rope.values.get(name, "default")
    if kind == "linear":
        return theta, (rope.number("factor", 1e-3, 1e6),) * (head_dim // 2)
    if kind == "llama3":
        scaling = RopeScaling(
            factor=rope.number("factor", 1e-3, 1e6),
            low_freq_factor=rope.number("low_freq_factor", 1e-3, 1e6),
            high_freq_factor=rope.number("high_freq_factor", 1e-3, 1e6),
            original_max_position=rope.integer("original_max_position_embeddings", 1, 1 << 27, default=context),
        )
        if scaling.high_freq_factor <= scaling.low_freq_factor:
            rope.refuse("high_freq_factor", f"it must be more than low_freq_factor, {scaling.low_freq_factor:g}")
        return theta, llama3_factors(theta, head_dim, scaling)
    if kind not in ("default", None):
        rope.refuse(name, "supported: 'default', 'linear', 'llama3'")
    return theta, None


def llama3_factors(theta: float, head_dim: int, scaling: RopeScaling) -> tuple[float, ...]:
    """[head_dim / 2] divisors of the rotary frequencies, as Llama 3.1 scales them (transformers, modeling_rope_utils,
    _compute_llama3_parameters): long waves by `factor`, short ones not at all, between them a mixture."""
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    waves = scaling.original_max_position / (2 * math.pi / frequencies)  # wavelengths in the trained context
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = np.clip((waves - scaling.low_freq_factor) / span, 0.0, 1.0)
    return tuple((1 / ((1 - smooth) / scaling.factor + smooth)).tolist())


def read_packing(fields: Fields) -> Packing | None:
    """How the weights are quantized, from the fields of config.json; None if they are not.

    Raises ModelError naming the field for a method other than GPTQ and AWQ, or a variant that is not implemented.
    """
    quantization = fields.object("quantization_config")
    if quantization is None:
        return None
    method = quantization.values.get("quant_method")
    if method not in ("gptq", "awq"):
        quantization.refuse("quant_method", "supported: 'gptq', 'awq', or weights that are not quantized")
    name = "w_bit" if "w_bit" in quantization.values else "bits"
    if quantization.values.get(name) != 4 or isinstance(quantization.values[name], bool):
        quantization.refuse(name, "supported: 4")
    name = "q_group_size" if "q_group_size" in quantization.values else "group_size"
    group = quantization.integer(name, -1, 1 << 16, default=128)
    if group == 0 or (group % 8 and group != -1):
        quantization.refuse(name, "a multiple of 8, or -1 for whole rows, is right")
    if quantization.values.get("dynamic"):
        quantization.refuse("dynamic", "settings that differ by module are not supported")
    name = "checkpoint_format"
    if method == "awq":
        name = next((key for key in ("version", "checkpoint_format", "format") if key in quantization.values), name)
        if str(quantization.values.get(name, "gemm")).lower() != "gemm":
            quantization.refuse(name, "supported: 'gemm'")
        if not quantization.flag("zero_point", default=True):
            quantization.refuse("zero_point", "supported: true")
        return Packing("awq", group, 0)
    formats = {"gptq": 1, "gptq_v2": 0}
    found = quantization.values.get(name) or "gptq"
    if not isinstance(found, str) or found not in formats:
        quantization.refuse(name, "supported: 'gptq', 'gptq_v2'")
    return Packing("gptq", group, formats[found])
