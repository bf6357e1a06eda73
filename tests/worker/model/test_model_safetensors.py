"""Is a Hugging Face folder read as transformers reads it, and every other folder refused by name?"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from berth_worker.model import ModelError, load
from berth_worker.model.config import RopeScaling
from berth_worker.model.config_json import llama3_factors
from berth_worker.model.gguf_file import GgufFile
from berth_worker.model.llama import Llama, rotary_frequencies
from berth_worker.model.llama_gguf import LlamaReader
from berth_worker.model.llama_safetensors import SafetensorsReader
from berth_worker.model.load import open_checkpoint
from berth_worker.model.safetensors_file import SafetensorsFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file


def saved(model: Any, path: Path, **options: Any) -> Path:
    model.save_pretrained(path, **options)
    return path


def logits_of_both(tiny: Any, model: Any, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, tiny.VOCAB, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0]
    assert expected.abs().max() > 1  # they say something
    return expected, tiny.all_logits(Llama(SafetensorsReader(folder), torch.float32), tokens, [1, 149])  # type: ignore[arg-type]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("llama3_rope", [False, True], ids=["plain-rope", "llama3-rope"])
@pytest.mark.parametrize("shard", ["10MB", "40KB"], ids=["one-file", "sharded"])
def test_logits_of_a_saved_model_are_those_of_transformers(
    tiny: Any, tmp_path: Path, tied: bool, llama3_rope: bool, shard: str
) -> None:
    model = tiny.transformers_llama(tiny.Shape(tied=tied, llama3_rope=llama3_rope))
    folder = saved(model, tmp_path / "tiny", max_shard_size=shard)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shard == "40KB")
    expected, found = logits_of_both(tiny, model, folder)
    assert (found - expected).abs().max() <= 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_exactly(tiny: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    shape = tiny.Shape()
    state = {name: tensor.to(dtype) for name, tensor in tiny.random_state(shape).items()}
    reader = SafetensorsReader(tiny.write_folder(tmp_path / "half", shape, state))
    found = reader.layer(1)["down"], reader.embedding(), reader.output_norm()
    names = ("model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight", "model.norm.weight")
    for values, name in zip(found, names, strict=True):
        assert values.dtype == np.float32
        assert np.array_equal(values, state[name].float().numpy())


def test_linear_scaling_in_both_spellings_is_that_of_transformers(tiny: Any, tmp_path: Path) -> None:
    shape = tiny.Shape()
    model = tiny.transformers_llama(shape, rope={"rope_type": "linear", "factor": 3.0, "rope_theta": 5e5})
    expected, found = logits_of_both(tiny, model, saved(model, tmp_path / "new"))
    assert (found - expected).abs().max() <= 1e-3
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 3.0}}
    folder = tiny.write_folder(tmp_path / "old", shape, tiny.random_state(shape), config=old)
    assert SafetensorsReader(folder).config == SafetensorsReader(tmp_path / "new").config


@pytest.mark.parametrize(("theta", "factor", "head_dim"), [(5e5, 8.0, 128), (5e5, 32.0, 64), (1e4, 2.5, 80)])
def test_llama3_frequencies_are_those_of_transformers_whichever_file_tells_them(
    tiny: Any, tmp_path: Path, theta: float, factor: float, head_dim: int
) -> None:
    from transformers import LlamaConfig  # noqa: PLC0415 - takes seconds
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: PLC0415

    rope = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    theirs = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "llama3", "rope_theta": theta, **rope},
    )
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    factors = llama3_factors(theta, head_dim, RopeScaling(factor, 1.0, 4.0, 8192))
    assert len(set(factors)) > 3  # all three regions occur
    shape = tiny.Shape(heads=2, kv_heads=1, head_dim=head_dim, layers=1)
    state = tiny.random_state(shape)
    config = {"rope_theta": theta, "rope_scaling": {"rope_type": "llama3", **rope}}
    folder = tiny.write_folder(tmp_path / "folder", shape, state, config=config)
    stored = np.array(factors, np.float32)  # as convert_hf_to_gguf.py stores them
    path = tiny.write_gguf(
        tmp_path / "tiny.gguf",
        shape,
        state,
        metadata={"llama.rope.freq_base": theta},
        change=lambda tensors: tensors.__setitem__("rope_freqs.weight", stored),
    )
    for config_read in (SafetensorsReader(folder).config, LlamaReader(GgufFile(path)).config):
        torch.testing.assert_close(rotary_frequencies(config_read), expected, rtol=3e-7, atol=0)


def test_a_folder_and_a_gguf_file_of_the_same_weights_are_the_same(tiny: Any, tmp_path: Path) -> None:
    shape = tiny.Shape(tied=False)
    state = tiny.random_state(shape)
    one, words = open_checkpoint(tiny.write_folder(tmp_path / "folder", shape, state))
    other, other_words = open_checkpoint(tiny.write_gguf(tmp_path / "tiny.gguf", shape, state))
    assert one.config == replace(other.config, rms_norm_eps=1e-5)  # GGUF rounds it to float32
    assert one.parameters == other.parameters == sum(tensor.numel() for tensor in state.values())
    for name in ("embedding", "output", "output_norm"):
        assert np.array_equal(getattr(one, name)(), getattr(other, name)())
    for index in range(shape.layers):
        ours, theirs = one.layer(index), other.layer(index)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
        assert set(one.grids(index).values()) == {None}
    assert words.eos_ids == other_words.eos_ids == {tiny.VOCAB - 1}
    assert words.encode("abba<end>a") == other_words.encode("abba<end>a")


def test_a_folder_loads_and_runs_by_its_path(tiny: Any, tmp_path: Path) -> None:
    shape = tiny.Shape()
    folder = tiny.write_folder(tmp_path / "My-Llama", shape, tiny.random_state(shape))
    loaded = load(f"file://{folder}", quantization="FP32")
    assert loaded.name == "my-llama"
    assert tiny.all_logits(loaded.model, [1, 2, 3]).isfinite().all()


# -- what is refused --------------------------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as raised:
        reader, _ = open_checkpoint(folder)
        for index in range(reader.config.num_layers):
            reader.layer(index)
        reader.output_norm()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architectures": ["MistralForCausalLM"]}, r"architectures: found \['MistralForCausalLM'\]; this worker runs"),
        ({"architectures": None}, "architectures: found None"),
        ({"model_type": "qwen2"}, "model_type: found 'qwen2'"),
        ({"attention_bias": True}, "attention_bias: found True; biases are not supported"),
        ({"mlp_bias": True}, "mlp_bias: found True; biases are not supported"),
        ({"hidden_act": "gelu"}, "hidden_act: found 'gelu'; a Llama's is 'silu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type|rope_type: found 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "type: found 'dynamic'; supported: 'default', 'linear'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type: found 'longrope'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor: not there; a Llama needs it"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor: found 0; a number from 0.001"),
        ({"rope_scaling": "linear"}, "rope_scaling: found 'linear'; an object is right"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: found 0.5"),
        ({"num_key_value_heads": 4}, "num_key_value_heads: found 4; it must divide the 6 heads"),
        ({"head_dim": 15}, "head_dim: found 15; it must be even"),
        ({"hidden_size": True}, "hidden_size: found True; an integer from 1"),
        ({"hidden_size": 10**400}, "hidden_size: found 1000"),
        ({"hidden_size": 64}, r"embed_tokens.weight: found shape \[75, 48\]; config.json asks for \[75, 64\]"),
        ({"num_hidden_layers": 2}, "model.layers.1.input_layernorm.weight: not in the checkpoint"),
        ({"tie_word_embeddings": False}, "lm_head.weight: not in the checkpoint"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quant_method: found 'fp8'; supported: 'gptq', 'awq'"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quant_method: found 'bitsandbytes'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, "bits: found 8; supported: 4"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv"}}, "version: found 'gemv'"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}},
            "checkpoint_format: found 'marlin'; supported: 'gptq', 'gptq_v2'",
        ),
        ({"eos_token_id": 75}, "eos_token_id: found 75; the vocabulary has 75 tokens"),
    ],
)
def test_what_is_wrong_with_config_json_is_said(tiny: Any, tmp_path: Path, config: dict[str, Any], says: str) -> None:
    shape = tiny.Shape(layers=1)
    message = refusal(tiny.write_folder(tmp_path / "bad", shape, tiny.random_state(shape), config=config))
    assert re.search(says, message), message


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", "{", "config.json: not JSON"),
        ("config.json", "[" * 100_000, "config.json: not JSON"),
        ("config.json", "[]", "found a list; a JSON object is right"),
        ("config.json", '{"a": 1, "a": 2}', "'a' stands there twice"),
        ("config.json", '{"rms_norm_eps": NaN}', "found NaN"),
        ("config.json", '{"vocab_size": ' + "9" * 5000 + "}", "not JSON"),
        ("config.json", " " * (5 << 20), "more than 4,194,304 bytes"),
        ("tokenizer.json", "{}", "model.type: found None; supported: 'BPE'"),
        ("tokenizer.json", '{"model": {"type": "Unigram"}}', "model.type: found 'Unigram'"),
        ("tokenizer_config.json", "nonsense", "tokenizer_config.json: not JSON"),
        ("model.safetensors", "", "found 0 bytes"),
        ("model.safetensors", "x" * 100, "found a header of 8680820740569200760 bytes in a file of 100"),
        ("model.safetensors.index.json", "{}", "weight_map: found None"),
        ("model.safetensors.index.json", '{"weight_map": {"x": "../y"}}', "found '../y'; the name of a file beside it"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"x": "gone.safetensors"}}',
            "gone.safetensors: cannot be read",
        ),
        ("model.safetensors.index.json", '{"weight_map": {"x": "model.safetensors"}}', "holds 'x'; it does not"),
    ],
)
def test_what_is_wrong_with_a_file_of_the_folder_is_said(
    tiny: Any, tmp_path: Path, name: str, content: str, says: str
) -> None:
    shape = tiny.Shape(layers=1)
    folder = tiny.write_folder(tmp_path / "bad", shape, tiny.random_state(shape))
    (folder / name).write_text(content)
    message = refusal(folder)
    assert says in message


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("model.norm.weight", torch.full((48,), torch.inf), "model.norm.weight: found infinite or NaN"),
        ("model.norm.weight", torch.ones(48, dtype=torch.int64), "model.norm.weight: found I64; supported: F32, F16"),
        ("model.norm.weight", torch.ones(7), r"found shape \[7\]; config.json asks for \[48\]"),
        ("model.layers.0.self_attn.q_proj.bias", torch.ones(96), "q_proj.bias: found, but a Llama"),
        ("model.layers.0.self_attn.q_proj.qweight", torch.ones(96), "q_proj.qweight: found, but a Llama"),
    ],
)
def test_what_is_wrong_with_a_stored_tensor_is_said(
    tiny: Any, tmp_path: Path, name: str, value: torch.Tensor, says: str
) -> None:
    shape = tiny.Shape(layers=1)
    message = refusal(tiny.write_folder(tmp_path / "bad", shape, tiny.random_state(shape) | {name: value}))
    assert re.search(says, message), message


def test_frequencies_that_older_checkpoints_carry_are_passed_over(tiny: Any, tmp_path: Path) -> None:
    shape = tiny.Shape(layers=1)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    SafetensorsReader(tiny.write_folder(tmp_path / "old", shape, tiny.random_state(shape) | extra))


# -- the file format, beside the package that defines it ---------------------------------------------------------------


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_we_read_of_a_damaged_file_is_what_the_safetensors_package_reads(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "x.safetensors"
    if not path.exists():
        tensors = {
            "a": torch.randn(3, 5),
            "b": torch.randn(4).bfloat16(),
            "c": torch.arange(6).half(),
            "d": torch.ones(0),
        }
        save_file(tensors, path)
        (tmp_path / "good").write_bytes(path.read_bytes())
    damaged = bytearray((tmp_path / "good").read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1 - 90))
        damaged[at] = data.draw(st.sampled_from([*b'0123456789"{}[],:FBIadtes ', damaged[at] ^ 1]))
    damaged = damaged[: len(damaged) - data.draw(st.sampled_from([0, 0, 0, 1, 8]))]
    path.write_bytes(damaged)
    try:
        found = SafetensorsFile(path)
        values = {name: found.floats(t) for name, t in found.tensors.items() if t.dtype in ("F32", "F16", "BF16")}
    except ModelError as error:
        assert "\n" not in str(error)
        return
    with safetensors.safe_open(path, framework="pt") as theirs:
        assert set(theirs.keys()) == found.tensors.keys()
        for name, value in values.items():
            assert np.array_equal(theirs.get_tensor(name).float().numpy(), value)


def test_tensors_that_overlap_or_leave_a_hole_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"

    def write(*spans: tuple[int, int], size: int = 8) -> None:
        header = {str(i): {"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]} for i, (a, b) in enumerate(spans)}
        raw = json.dumps(header).encode()
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(size))

    write((0, 4), (4, 8))
    assert len(SafetensorsFile(path).tensors) == 2
    for spans, size in ((((0, 4), (3, 8)), 8), (((0, 3), (4, 8)), 8), (((0, 8),), 9), (((0, 8),), 7), (((4, 2),), 8)):
        write(*spans, size=size)
        with pytest.raises(ModelError, match=r"x.safetensors: "):
            SafetensorsFile(path)
