"""Is the plain-PyTorch Llama a Llama?  Judged by transformers on the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from berth_worker.model.batched import BatchedLlama
from berth_worker.model.gguf_file import GgufFile
from berth_worker.model.int8 import Int8Llama
from berth_worker.model.llama import Llama, check_batch
from berth_worker.model.llama_gguf import LlamaReader


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Models as small as these lose time on a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("llama3_rope", [False, True], ids=["plain-rope", "llama3-rope"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (3, 3), (4, 1)])
def test_logits_of_small_random_llamas_are_those_of_transformers(
    tiny: Any, tmp_path: Path, tied: bool, llama3_rope: bool, heads: int, kv_heads: int
) -> None:
    shape = tiny.Shape(heads=heads, kv_heads=kv_heads, tied=tied, llama3_rope=llama3_rope)
    theirs = tiny.transformers_llama(shape)
    path = tiny.write_gguf(tmp_path / "tiny.gguf", shape, theirs.state_dict())
    ours = Llama(LlamaReader(GgufFile(path)), torch.float32)
    tokens = torch.randint(0, tiny.VOCAB, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        expected = theirs(torch.tensor([tokens])).logits[0]
    found = tiny.all_logits(ours, tokens, [1, 15, 16, 17, 101])
    assert expected.abs().max() > 1  # they say something
    assert (found - expected).abs().max() <= 1e-3


def test_logits_of_the_real_model_are_those_of_transformers(
    tiny: Any, real_file: GgufFile, several_torch_threads: None
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - takes seconds
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint  # noqa: PLC0415

    # transformers' own reader of GGUF gives the weights: a second opinion on ours, permutation included
    reader = LlamaReader(real_file)
    with torch.device("meta"):  # only its names are used
        outline = LlamaForCausalLM(LlamaConfig(num_hidden_layers=reader.config.num_layers))
    checkpoint = load_gguf_checkpoint(str(real_file.path), return_tensors=True, model_to_load=outline)
    theirs = LlamaForCausalLM(LlamaConfig(**checkpoint["config"])).eval()
    missing, unexpected = theirs.load_state_dict(checkpoint["tensors"], strict=False, assign=True)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    theirs.tie_weights()
    ids = torch.randint(0, reader.config.vocab_size, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
    found = tiny.all_logits(Llama(reader, torch.float32), ids, [64, 136])
    assert (found - expected).abs().max() <= 1e-3


def test_bfloat16_is_near_float32(tiny: Any, tiny_reader: Any) -> None:
    reader = tiny_reader(tiny.Shape(tied=False))
    tokens = torch.randint(0, tiny.VOCAB, (60,), generator=torch.Generator().manual_seed(2)).tolist()
    exact = tiny.all_logits(Llama(reader, torch.float32), tokens).log_softmax(-1)
    rough = tiny.all_logits(Llama(reader, torch.bfloat16), tokens).log_softmax(-1)
    divergence = (exact.exp() * (exact - rough)).sum(-1).mean()
    assert 0 < divergence < 1e-3


@pytest.mark.parametrize("kind", [Llama, BatchedLlama, Int8Llama])
def test_a_sequence_that_goes_on_in_copied_blocks_gets_the_logits_of_one_that_wrote_them(
    tiny: Any, tiny_reader: Any, kind: type
) -> None:
    reader = tiny_reader(tiny.Shape())
    model = Int8Llama(reader, 1) if kind is Int8Llama else kind(reader, torch.float32)
    tokens = [i * 7 % tiny.VOCAB for i in range(24)]
    exact = tiny.all_logits(model, tokens, [20, 4])[-4:]
    cache = model.new_cache(5)
    model.forward(tiny.single(tokens[:20], 0, [0, 1]), cache)
    on = tiny.single(tokens[20:], 20, [3, 4])
    found = model.forward(dataclasses.replace(on, copies=[(0, 2), (2, 3), (1, 4), (0, 1)]), cache).values
    assert torch.equal(found, exact)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("tokens", [75], "tokens"),
        ("tokens", [-1], "tokens"),
        ("positions", [1], "positions"),
        ("output_rows", [1], "output_rows"),
        ("block_tables", [[9]], "block_tables"),
        ("block_tables", [[]], "block_tables"),
        ("block_tables", [[0], [1]], "sequences"),
        ("sequence_starts", [0, 2], "sequence_starts"),
        ("context_lengths", [17], "positions"),
        ("copies", [(0, 9)], "copies"),
        ("copies", [(-1, 0)], "copies"),
    ],
)
def test_a_batch_that_contradicts_itself_is_refused_by_field(
    tiny: Any, tiny_reader: Any, field: str, value: Any, says: str
) -> None:
    batch = tiny.single([3], 0, [0])
    config = tiny_reader(tiny.Shape()).config
    check_batch(batch, config, num_blocks=9)
    with pytest.raises(ValueError, match=says):
        check_batch(dataclasses.replace(batch, **{field: value}), config, num_blocks=9)
