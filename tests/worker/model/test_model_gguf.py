"""Does every bad model file end in one clear line?  Damaged at any byte, of the wrong kind, or of the wrong shape."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from berth_worker.model import ModelError, load
from berth_worker.model.gguf_file import GgufFile
from berth_worker.model.llama_gguf import LlamaReader
from berth_worker.model.tokenizer import GgufTokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def good(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small Llama's file that loads."""
    shape = tiny.Shape(layers=1)
    path = tiny.write_gguf(tmp_path_factory.mktemp("good") / "tiny.gguf", shape, tiny.random_state(shape))
    read_whole(path)
    return bytes(path.read_bytes())


def read_whole(path: Path) -> LlamaReader:
    """Everything that load does before building a model, and every tensor."""
    file = GgufFile(path)
    reader = LlamaReader(file)
    GgufTokenizer(file)
    reader.embedding(), reader.output(), reader.output_norm()
    for index in range(reader.config.num_layers):
        reader.layer(index)
    return reader


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as raised:
        read_whole(path)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(good: bytes, tmp_path: Path, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(good) - 100))
    path = tmp_path / "cut.gguf"
    path.write_bytes(good[:cut])
    refusal(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_with_damaged_bytes_loads_or_is_refused_and_nothing_else(
    good: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    damaged = bytearray(good)
    header = good.index(b"blk.0.ffn_down.weight") + 200  # the metadata and the tensor list; weights may be anything
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, header))
        width = data.draw(st.sampled_from([1, 4, 8]))
        damaged[at : at + width] = data.draw(st.binary(min_size=width, max_size=width))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        read_whole(path)
    except ModelError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 bytes"),
        (b"GGUF", "4 bytes"),
        (b"PK\x03\x04" + bytes(40), r"found b'PK\\x03\\x04'.*starts with b'GGUF'"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), f"{1 << 60} tensors"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "truncated"),
        # an array of 2^60 bytes, and one of 2^60 strings
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 0, 1 << 60), "metadata k: truncated"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 1 << 60), "more than the file can hold"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1), "element type 9"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77), "value type 77"),
        (b"GGUF" + struct.pack("<IQQQ1sIQQIQ", 3, 1, 0, 1, b"t", 2, 1 << 40, 1 << 40, 0, 0), "shape"),
        (b"GGUF" + struct.pack("<IQQQ1sIQQIQ", 3, 1, 0, 1, b"t", 2, 1 << 20, 1 << 20, 0, 0), "truncated"),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 32, 16, 0), "ggml type 16; supported: F32"),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 31, 8, 0), "blocks of 32"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"t", 9), "9 dimensions"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    assert re.search(says, refusal(path))


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"general.architecture": "qwen2"}, "general.architecture: found 'qwen2'; this worker runs 'llama'"),
        ({"llama.block_count": 0}, "llama.block_count: found 0; an integer from 1"),
        ({"llama.block_count": 2}, "tensor blk.1.attn_norm.weight: not in the file"),
        (
            {"llama.embedding_length": 64},
            r"token_embd.weight: found shape \[75, 48\]; the metadata asks for \[75, 64\]",
        ),
        ({"llama.embedding_length": 1 << 31}, "llama.embedding_length"),
        ({"llama.embedding_length": "wide"}, "llama.embedding_length: found 'wide'"),
        ({"llama.vocab_size": 80}, "token_embd.weight: found 75 rows; llama.vocab_size says 80"),
        ({"llama.attention.head_count_kv": 4}, "head_count_kv: found 4; it must divide the 6 heads"),
        ({"llama.attention.value_length": 32}, "value_length: found 32; it must equal the head size, 16"),
        ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "epsilon: found -1.0"),
        ({"llama.rope.freq_base": float("nan")}, "freq_base: found nan"),
        ({"llama.expert_count": 8}, "expert_count: found 8; mixtures of experts are not supported"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "rope.scaling.type: found 'yarn'"),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0}, "rope.scaling.factor: found 0.0"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model: found 'bert'; supported: 'gpt2', 'llama'"),
        ({"tokenizer.ggml.pre": "qwen35"}, "tokenizer.ggml.pre: found 'qwen35'"),
        ({"tokenizer.ggml.merges": ["a"]}, "tokenizer.ggml.merges: found 'a'"),
        ({"tokenizer.ggml.merges": ["a c"]}, "tokenizer.ggml.merges: found 'a c'"),
        ({"tokenizer.ggml.eos_token_id": 75}, "eos_token_id: found 75; the vocabulary has 75 tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type: found 1 entries for 75 tokens"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.scores"),
    ],
)
def test_what_is_wrong_with_the_metadata_is_said(
    tiny: Any, tmp_path: Path, metadata: dict[str, Any], says: str
) -> None:
    shape = tiny.Shape(layers=1)
    path = tiny.write_gguf(tmp_path / "bad.gguf", shape, tiny.random_state(shape), metadata=metadata)
    assert re.search(says, refusal(path))


def drop(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: np.ndarray) -> Any:
    return lambda tensors: tensors.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop("blk.0.ffn_up.weight"), "tensor blk.0.ffn_up.weight: not in the file"),
        (drop("output_norm.weight"), "tensor output_norm.weight: not in the file"),
        (drop("token_embd.weight"), "tensor token_embd.weight: not in the file"),
        (put("blk.0.attn_q.weight", np.zeros((48, 96), np.float32)), r"found shape \[48, 96\].*\[96, 48\]"),
        (put("blk.0.attn_q.bias", np.zeros(96, np.float32)), "attn_q.bias: found, but a Llama has none"),
        (put("output_norm.weight", np.full(48, np.nan, np.float32)), "infinite or NaN"),
        (put("rope_freqs.weight", np.ones(5, np.float32)), r"rope_freqs.weight: found shape \[5\]; right is \[8\]"),
        (put("rope_freqs.weight", np.zeros(8, np.float32)), "not positive"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_said(tiny: Any, tmp_path: Path, change: Any, says: str) -> None:
    shape = tiny.Shape(layers=1)
    path = tiny.write_gguf(tmp_path / "bad.gguf", shape, tiny.random_state(shape), change=change)
    assert re.search(says, refusal(path))


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_quantized_tensors_are_read_as_their_own_grid(tiny: Any, tmp_path: Path, name: str) -> None:
    kind = gguf.GGMLQuantizationType[name]
    shape = tiny.Shape(layers=1, intermediate=96)
    state = tiny.random_state(shape)
    path = tiny.write_gguf(tmp_path / "quantized.gguf", shape, state, types={"blk.0.ffn_down.weight": kind})
    exact = state["model.layers.0.mlp.down_proj.weight"].numpy()
    grid = gguf.quants.dequantize(gguf.quants.quantize(exact, kind), kind)
    found = read_whole(path).layer(0)["down"]
    assert np.array_equal(found, grid)
    assert 0 < np.abs(found - exact).max() < 0.1


def test_a_message_stays_one_short_line_whatever_the_file_calls_its_tensors(tiny: Any, tmp_path: Path) -> None:
    shape = tiny.Shape(layers=1)
    odd = put("blk.0.\n\x1b[2J" + "x" * 50, np.zeros(4, np.float32))
    assert "\\n\\x1b[2Jxxx" in refusal(
        tiny.write_gguf(tmp_path / "odd.gguf", shape, tiny.random_state(shape), change=odd)
    )
    assert len(str(ModelError("x" * 10_000))) <= 600


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"quantization": "Int3"}, "quantization: found 'Int3'"), ({"threads": 0}, "threads: found 0")],
)
def test_arguments_of_load_are_checked(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load("smollm2-135m-instruct", **arguments)
