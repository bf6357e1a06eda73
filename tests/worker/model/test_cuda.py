"""Does the batched path, a GPU's, say what the oracle says?  On the CPU, and on a GPU where there is one."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from berth_worker.engine.batch import BLOCK_TOKENS, Batch
from berth_worker.engine.engine import Engine
from berth_worker.engine.limits import EngineConfig
from berth_worker.engine.request import SamplingParams
from berth_worker.model import load, paged_attention
from berth_worker.model.batched import BatchedLlama
from berth_worker.model.device import (
    GpuMemory,
    check_cache_fits,
    check_weights_fit,
    choose_device,
    gpu_memory,
)
from berth_worker.model.interface import LoadedModel, ModelError
from berth_worker.model.llama import Llama
from berth_worker.model.llama_gguf import LlamaReader
from berth_worker.model.paged_attention import Layout, Piece, Step, group_pieces, split_into_pieces
from berth_worker.model.tokenizer import GgufTokenizer
from berth_worker.server.memory import GPU_KV_SHARE
from berth_worker.server.options import parse
from berth_worker.server.worker import engine_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]
NUM_BLOCKS = 96


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Models as small as these lose time on a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Traffic:
    """Sequences that grow step by step in one cache, some on the blocks of another's prompt, as a scheduler does it."""

    def __init__(self, seed: int, vocab: int) -> None:
        self.random, self.vocab = random.Random(seed), vocab  # noqa: S311 - repeatable traffic
        self.free = self.random.sample(range(NUM_BLOCKS), NUM_BLOCKS)
        self.contexts: list[int] = []
        self.tables: list[list[int]] = []

    def enter(self, sharing: int | None = None) -> int:
        """A sequence with nothing yet, or with the whole blocks of another as its prefix."""
        blocks = 0 if sharing is None else self.contexts[sharing] // BLOCK_TOKENS
        self.tables.append([] if sharing is None else self.tables[sharing][:blocks])
        self.contexts.append(blocks * BLOCK_TOKENS)
        return len(self.contexts) - 1

    def step(self, counts: dict[int, int]) -> Batch:
        """counts: new tokens of each sequence.  Logits of all rows, in an order of their own."""
        tokens: list[int] = []
        positions: list[int] = []
        starts, contexts, tables = [0], [], []
        for s, count in counts.items():
            before, after = self.contexts[s], self.contexts[s] + count
            while len(self.tables[s]) * BLOCK_TOKENS < after:
                self.tables[s].append(self.free.pop())
            tokens += [self.random.randrange(self.vocab) for _ in range(count)]
            positions += range(before, after)
            starts.append(len(tokens))
            contexts.append(after)
            tables.append(list(self.tables[s]))
            self.contexts[s] = after
        rows = self.random.sample(range(len(tokens)), len(tokens))
        return Batch(tokens, positions, starts, contexts, tables, rows)


def mixed_steps(seed: int, vocab: int) -> list[Batch]:
    """A long prompt in two chunks; two sequences on its prefix beside short ones; decodes, drafts, prefills at once."""
    traffic = Traffic(seed, vocab)
    pick = traffic.random.randint
    long = traffic.enter()
    steps = [traffic.step({long: pick(129, 260)}), traffic.step({long: pick(1, 90)})]
    forks = [traffic.enter(sharing=long) for _ in range(2)]
    short = [traffic.enter() for _ in range(4)]
    steps.append(traffic.step({forks[0]: pick(1, 20), short[0]: 1, long: 1, short[1]: pick(2, 50), forks[1]: 1}))
    steps.append(traffic.step({short[2]: 16, long: 1, forks[0]: 5, short[0]: 1, short[1]: 4, short[3]: 17}))
    steps += [traffic.step(dict.fromkeys([*short, *forks, long], 1)) for _ in range(2)]
    return steps


def run_all(model: Llama, steps: Sequence[Batch], stale: float = 0.0) -> list[torch.Tensor]:
    cache = model.new_cache(NUM_BLOCKS)
    cache.data.fill_(stale)
    return [model.forward(batch, cache).values.cpu() for batch in steps]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "free_pairs"),
    [(6, 2, 0), (6, 2, 3000), (6, 2, 1 << 30), (3, 3, 3000), (4, 1, 3000)],
    ids=["split", "some-padding", "one-group", "heads-of-their-own", "one-key-head"],
)
def test_a_mixed_batch_says_what_the_oracle_says(
    tiny: Any,
    tiny_reader: Any,
    monkeypatch: pytest.MonkeyPatch,
    heads: int,
    kv_heads: int,
    free_pairs: int,
    device: str,
) -> None:
    monkeypatch.setitem(paged_attention._FREE_PAIRS, device, free_pairs)
    reader = tiny_reader(tiny.Shape(heads=heads, kv_heads=kv_heads, tied=False))
    oracle, batched = Llama(reader, torch.float32), BatchedLlama(reader, torch.float32, device)
    for seed in range(4):
        steps = mixed_steps(seed, tiny.VOCAB)
        groups = {len(Layout(batch, device).shapes) for batch in steps}
        assert (max(groups) > 1) == (free_pairs < 1 << 30)
        # what other sequences left in the cache must not be heard, however loud it is
        for expected, found in zip(run_all(oracle, steps), run_all(batched, steps, stale=1e4), strict=True):
            assert expected.abs().max() > 1  # they say something
            assert (found - expected).abs().max() <= 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_what_overflowed_in_one_sequence_stays_there(tiny: Any, tiny_reader: Any, device: str) -> None:
    model = BatchedLlama(tiny_reader(tiny.Shape()), torch.float32, device)
    traffic = Traffic(0, tiny.VOCAB)
    short, long, sick = (traffic.enter() for _ in range(3))
    traffic.free.remove(0)
    traffic.tables[sick].append(0)  # the block that careless padding would name
    cache = model.new_cache(NUM_BLOCKS)
    model.forward(traffic.step({short: 20, long: 40, sick: 8}), cache)
    cache.data[:, :, traffic.tables[sick]] = float("nan")
    batch = traffic.step({short: 1, long: 1, sick: 1})
    found = model.forward(replace(batch, output_rows=[0, 1, 2]), cache).values
    assert found[:2].isfinite().all()
    assert found[2].isnan().all()


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_in_a_batch_is_as_near_float32_as_the_oracle_in_bfloat16(
    tiny: Any, tiny_reader: Any, device: str
) -> None:
    reader = tiny_reader(tiny.Shape(tied=False))
    steps = mixed_steps(7, tiny.VOCAB)

    def divergence(model: Llama) -> float:
        rough = torch.cat(run_all(model, steps)).log_softmax(-1)
        return float((exact.exp() * (exact - rough)).sum(-1).mean())

    exact = torch.cat(run_all(Llama(reader, torch.float32), steps)).log_softmax(-1)
    batched = BatchedLlama(reader, torch.bfloat16, device)
    logits = run_all(batched, steps)[-1]
    assert (logits.dtype, logits.device.type) == (torch.float32, "cpu")
    assert 0 < divergence(batched) < max(1.5 * divergence(Llama(reader, torch.bfloat16)), 1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_clients_of_one_engine_get_the_oracles_greedy_text(tiny: Any, tiny_reader: Any, device: str) -> None:
    reader = tiny_reader(tiny.Shape())
    oracle = Llama(reader, torch.float32)
    prompts = [[(7 * i + j * j) % 70 for j in range(5 + 9 * i)] for i in range(6)]
    prompts.append([*prompts[5][:32], 1, 2, 3])  # two whole blocks of another's prompt
    expected = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(12):
            tokens.append(int(tiny.all_logits(oracle, tokens)[-1].argmax()))
        expected.append(tuple(tokens[len(prompt) :]))
    engine = Engine(
        BatchedLlama(reader, torch.float32, device),
        GgufTokenizer(reader.file),
        EngineConfig(max_running=4, max_waiting=8, max_context_tokens=80, kv_cache_tokens=400, token_budget=24),
    )
    engine.start()
    try:
        params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
        with ThreadPoolExecutor(len(prompts)) as clients:
            found = list(clients.map(lambda prompt: engine.generate(prompt, params).token_ids, prompts))
    finally:
        engine.stop()
    assert found == expected


def test_an_empty_batch_and_a_batch_without_outputs_give_no_rows(tiny: Any, tiny_reader: Any) -> None:
    model = BatchedLlama(tiny_reader(tiny.Shape()), torch.float32)
    cache = model.new_cache(2)
    assert model.forward(Batch([], [], [0], [], [], []), cache).values.shape == (0, tiny.VOCAB)
    assert model.forward(tiny.single([3, 4], 0, [1], rows=[]), cache).values.shape == (0, tiny.VOCAB)
    assert cache.data[:, :, 1, :2].abs().amin(dim=(0, 1, 3, 4)).min() >= 0
    assert cache.data[:, :, 1, :2].any() and not cache.data[:, :, 0].any()  # written nevertheless, and nowhere else


def test_a_step_on_a_gpu_mixes_no_devices_and_waits_for_no_value(tiny: Any, tiny_reader: Any) -> None:
    """Under torch's fake tensors, which know every operator's device and refuse to look at a value, but run nothing."""
    reader = tiny_reader(tiny.Shape(tied=False))
    gpu = torch.device("cuda", 0)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        model = BatchedLlama(reader, torch.bfloat16, gpu)
        cache = super(BatchedLlama, model).new_cache(NUM_BLOCKS)
        for batch in mixed_steps(3, tiny.VOCAB):
            layout = Layout(batch, "cuda")
            integers = torch.tensor(layout.integers).to(gpu)
            step = Step.of(layout, integers, model.config.group_size, model.dtype)
            logits = model.run(step, cache.data)
            assert logits.device == gpu
            assert logits.dtype == torch.bfloat16
            assert logits.shape == (len(batch.output_rows), tiny.VOCAB)
        with pytest.raises(DataDependentOutputException):  # so that the above can fail
            logits[0, 0].item()


@needs_gpu
def test_no_layer_waits_for_the_gpu(tiny: Any, tiny_reader: Any) -> None:
    model = BatchedLlama(tiny_reader(tiny.Shape()), torch.bfloat16, "cuda")
    cache = model.new_cache(NUM_BLOCKS)
    steps = mixed_steps(4, tiny.VOCAB)
    run_all(model, steps)  # what torch sets up at first use may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in steps:
            model.forward(replace(batch, output_rows=[]), cache)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    sequences = draw(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 5000)), min_size=1, max_size=12))
    tokens: list[int] = []
    positions: list[int] = []
    starts, contexts, tables = [0], [], []
    for count, before in sequences:
        tokens += [0] * count
        positions += range(before, before + count)
        starts.append(len(tokens))
        contexts.append(before + count)
        tables.append(list(range(-(-(before + count) // BLOCK_TOKENS))))
    return Batch(tokens, positions, starts, contexts, tables, [])


@settings(deadline=None, max_examples=60)
@given(batch=batches(), free_pairs=st.sampled_from([0, 1 << 12, 1 << 18, 1 << 40]))
def test_every_row_attends_once_and_padding_stays_within_its_bound(batch: Batch, free_pairs: int) -> None:
    groups = group_pieces(split_into_pieces(batch), free_pairs)
    rows = sorted(row for group in groups for piece in group for row in range(piece.first, piece.first + piece.rows))
    assert rows == list(range(len(batch.tokens)))
    for group in groups:
        for piece in group:
            assert piece.context == batch.positions[piece.first + piece.rows - 1] + 1
        keys = max(piece.blocks for piece in group) * BLOCK_TOKENS
        pairs = len(group) * max(piece.rows for piece in group) * keys
        useful = sum(piece.rows * piece.blocks * BLOCK_TOKENS for piece in group)
        assert pairs - useful <= max(useful / 4, free_pairs)
        if len(group) > 1:
            assert pairs <= paged_attention.MOST_PAIRS
            assert len(group) * keys <= paged_attention.MOST_KEYS


def test_decodes_of_like_contexts_are_one_group_and_a_long_one_is_not_among_them() -> None:
    alike = [Piece(s, s, 1, 1000 + 8 * s) for s in range(16)]
    far = Piece(16, 16, 1, 100_000)
    assert [len(group) for group in group_pieces([*alike, far], 1 << 12)] == [1, 16]


def test_loading_for_a_gpu_asks_for_the_gpu_before_the_model() -> None:
    with pytest.raises(ModelError, match="quantization Int8"):
        load("file:///no/such/model.gguf", quantization="Int8", device="cuda")


@needs_gpu
def test_the_real_model_loads_onto_the_gpu_and_says_what_the_oracle_says(tiny: Any, real_file: Any) -> None:
    loaded = load("smollm2-135m-instruct", quantization="BF16", device="cuda")
    assert (loaded.path, loaded.recipe) == ("torch/cuda", "bfloat16")
    assert loaded.cache_room_bytes
    tokens = loaded.tokenizer.encode("It was the best of times, it was the worst of times, it was the age of")
    exact = tiny.all_logits(Llama(LlamaReader(real_file), torch.float32), tokens).log_softmax(-1)
    rough = tiny.all_logits(loaded.model, tokens).log_softmax(-1)
    assert (exact.exp() * (exact - rough)).sum(-1).mean() < 0.01


@pytest.mark.parametrize(("flags", "room"), [([], 1 << 40), (["--device", "cuda"], 8 << 20)])
def test_a_worker_on_a_gpu_sizes_its_cache_by_what_the_gpu_has_left(
    tiny: Any, tiny_reader: Any, flags: list[str], room: int
) -> None:
    reader = tiny_reader(tiny.Shape())
    model = BatchedLlama(reader, torch.bfloat16)
    tokenizer = GgufTokenizer(reader.file)
    left = room if flags else None
    loaded = LoadedModel(model, tokenizer, reader.config, "tiny", 0, "bfloat16", "torch", cache_room_bytes=left)
    config = engine_config(
        parse(["--max-concurrency", "4000", "--max-batch-tokens", "4000", *flags], {}), loaded, 1 << 40
    )
    per_token = model.kv_bytes_per_block // BLOCK_TOKENS
    whole = 4000 * reader.config.max_context
    assert config.kv_cache_tokens == (int(GPU_KV_SHARE * room) // per_token if flags else whole)


def test_int8_on_a_gpu_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"device cuda: found quantization Int8.*BF16 is right"):
        choose_device("cuda", "Int8")


def test_an_unknown_device_is_refused_with_those_there_are() -> None:
    with pytest.raises(ModelError, match=r"device: found 'tpu'; supported: cpu, cuda, auto"):
        choose_device("tpu", "BF16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA device on this machine")
def test_a_gpu_that_is_not_there_is_refused_with_what_torch_sees() -> None:
    with pytest.raises(ModelError, match=rf"device cuda: found no GPU: torch {torch.__version__.split('+')[0]}"):
        choose_device("cuda", "BF16")
    assert choose_device("auto", "BF16") == torch.device("cpu")


def test_auto_leaves_int8_and_float32_to_the_cpu() -> None:
    assert choose_device("auto", "Int8") == choose_device("auto", "FP32") == torch.device("cpu")


@needs_gpu
def test_auto_takes_the_gpu_for_bfloat16() -> None:
    assert choose_device("auto", "BF16").type == "cuda"


def test_what_a_gpu_cannot_hold_is_refused_with_the_numbers() -> None:
    memory = GpuMemory("cuda:0 (A Card)", free=10 << 30, total=24 << 30)
    check_weights_fit("m", 5 << 30, "BF16", memory)
    with pytest.raises(
        ModelError, match=r"^m: 5,368,709,121 weights need 10.00 GiB as BF16; cuda:0 .*24.00 GiB.*10.00 GiB are free"
    ):
        check_weights_fit("m", (5 << 30) + 1, "BF16", memory)
    check_cache_fits(9 << 10, 1 << 20, 1 << 30, memory)
    with pytest.raises(ModelError, match=r"^KV cache: 147472 tokens need 9.00 GiB; .*1.00 GiB.*; 147456 tokens fit$"):
        check_cache_fits((9 << 10) + 1, 1 << 20, 1 << 30, memory)


@needs_gpu
def test_a_cache_beyond_the_gpus_memory_is_refused_before_it_is_allocated(tiny: Any, tiny_reader: Any) -> None:
    model = BatchedLlama(tiny_reader(tiny.Shape()), torch.bfloat16, "cuda")
    before = gpu_memory(model.device)
    with pytest.raises(ModelError, match="tokens fit"):
        model.new_cache(before.total // model.kv_bytes_per_block)
    assert gpu_memory(model.device).free >= before.free
