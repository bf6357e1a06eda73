"""Is the int8 path good enough to serve?  Against float32, teacher-forced over ordinary English, on the embedded model.

Measured over the first 2,048 tokens of the same story (two contexts of 1,024): recipe w8g256-a8-rotated-kv8 +0.22 %
perplexity (standard error 0.22), 95.3 % of top-1 tokens; w4-grid-a8g32-kv8 +0.13 % (0.18), 96.0 %.  Over 4,096 tokens
the scheme of llama.cpp's Q8_0, imitated in PyTorch with a float KV cache, gave +0.42 % (0.19), 94.4 %.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from berth_worker import kernels
from berth_worker.model.gguf_file import GgufFile
from berth_worker.model.int8 import Int8Llama
from berth_worker.model.interface import LoadedModel, ModelError
from berth_worker.model.llama import Llama
from berth_worker.model.llama_gguf import LlamaReader
from berth_worker.model.load import load
from berth_worker.model.quantization import Recipe

TEXT = Path(__file__).parents[1] / "data" / "scandal_in_bohemia.txt"
TOKENS = 1200


def test_int8_and_a_checkpoints_own_4_bits_keep_perplexity_within_one_percent_and_95_of_100_tokens(
    tiny: Any, loaded: LoadedModel, real_file: GgufFile, several_torch_threads: None
) -> None:
    ids = loaded.tokenizer.encode(TEXT.read_text())[:TOKENS]
    following = torch.tensor(ids[1:])[:, None]

    def perplexity(log_probabilities: torch.Tensor) -> float:
        return float((-log_probabilities[:-1].gather(-1, following)).mean().exp())

    reader = LlamaReader(real_file)
    exact = tiny.all_logits(Llama(reader, torch.float32), ids).log_softmax(-1)
    assert perplexity(exact) < 40  # ordinary English to this model: the text is what it should be
    for model in (loaded.model, Int8Llama(reader, 2, Recipe.own_grid())):
        found = tiny.all_logits(model, ids, [512, 512, TOKENS - 1024]).log_softmax(-1)
        assert perplexity(found) <= 1.01 * perplexity(exact)
        assert float((exact.argmax(-1) == found.argmax(-1)).float().mean()) >= 0.95


def test_four_bits_give_the_same_bits_on_every_instruction_set(tiny: Any, real_file: GgufFile) -> None:
    reader, ids = LlamaReader(real_file), list(range(1000, 1030))
    expected = tiny.all_logits(Int8Llama(reader, 2, Recipe.own_grid()), ids)
    for isa in kernels.available_isas():
        model = Int8Llama(reader, 1, Recipe.own_grid(), isa)
        assert model.resident_bytes < 0.75 * reader.parameters
        assert torch.equal(tiny.all_logits(model, ids, [13, 1, 4, 12]), expected)


def test_int4_of_weights_that_are_not_in_4_bits_is_refused(tiny: Any, tiny_reader: Callable[[Any], Any]) -> None:
    with pytest.raises(ModelError, match="found Int4 for weights that are not in 4 bits"):
        load(f"file://{tiny_reader(tiny.Shape()).path}", quantization="Int4")
