"""Does a step give the same bits whatever shares it, and nearly the oracle's logits?"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from berth_worker import kernels
from berth_worker.engine.batch import BLOCK_TOKENS, Batch
from berth_worker.kernels import memory
from berth_worker.model.int8 import Int8Llama
from berth_worker.model.interface import LoadedModel, ModelError
from berth_worker.model.llama import Llama
from berth_worker.model.quantization import Recipe, quantize_rows
from berth_worker.model.rotation import Rotation, hadamard
from hypothesis import given, settings
from hypothesis import strategies as st

ISAS = kernels.available_isas()
PROMPT = 300  # more than one chunk of attention (256 tokens)
HUGE_PAGE = 2 << 20


@pytest.fixture(scope="module")
def build(tiny_reader: Callable[[Any], Any], tiny: Any) -> Callable[..., Int8Llama]:
    def make(threads: int = 2, isa: str = "", group: int = 64, **shape: Any) -> Int8Llama:
        return Int8Llama(tiny_reader(tiny.Shape(**shape)), threads, Recipe(group=group), isa)

    return make


def prompt(tiny: Any, length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, tiny.VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def whole(tiny: Any, build: Callable[..., Int8Llama]) -> tuple[Int8Llama, list[int], torch.Tensor]:
    """A model, a prompt, and its logits [PROMPT, vocab] from one step on one thread."""
    tokens = prompt(tiny, PROMPT)
    return build(), tokens, tiny.all_logits(build(threads=1), tokens)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_cut_of_a_prompt_gives_the_same_bits(tiny: Any, whole: Any, data: st.DataObject) -> None:
    model, tokens, expected = whole
    steps: list[int] = []
    while (left := PROMPT - sum(steps)) > 0:
        steps.append(
            data.draw(st.integers(1, left) if left < 64 else st.integers(1, left) | st.sampled_from([1, 16, 64]))
        )
        if len(steps) == 12:
            steps.append(PROMPT - sum(steps)) if sum(steps) < PROMPT else None
            break
    assert torch.equal(tiny.all_logits(model, tokens, [n for n in steps if n]), expected)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_company_in_a_batch_gives_the_same_bits(tiny: Any, whole: Any, data: st.DataObject) -> None:
    """Several sequences, each a prefix of its own prompt, in steps of random composition, over shuffled blocks."""
    model, tokens, expected = whole
    count = data.draw(st.integers(2, 6))
    lengths = [data.draw(st.integers(1, PROMPT)) for _ in range(count)]
    others = [tokens if i == 0 else prompt(tiny, lengths[i], seed=i) for i in range(count)]
    lengths[0] = PROMPT
    needed = [-(-n // BLOCK_TOKENS) for n in lengths]
    cache = model.new_cache(sum(needed))
    blocks = data.draw(st.permutations(range(sum(needed))))
    tables = [blocks[sum(needed[:i]) : sum(needed[: i + 1])] for i in range(count)]
    done = [0] * count
    rows: list[torch.Tensor] = []
    while any(done[i] < lengths[i] for i in range(count)):
        batch = Batch([], [], [0], [], [], [])
        wanted: list[int] = []
        for i in data.draw(st.permutations(range(count))):  # a sequence may sit a step out
            left = lengths[i] - done[i]
            take = min(left, data.draw(st.sampled_from([300, 150, 33, 7, 2, 1, 0])))
            if take == 0:
                continue
            start = len(batch.tokens)
            if i == 0:
                wanted = list(range(start, start + take))
            part = others[i][done[i] : done[i] + take]
            batch = replace(
                batch,
                tokens=[*batch.tokens, *part],
                positions=[*batch.positions, *range(done[i], done[i] + take)],
                sequence_starts=[*batch.sequence_starts, start + take],
                context_lengths=[*batch.context_lengths, done[i] + take],
                block_tables=[*batch.block_tables, tables[i]],
            )
            done[i] += take
        if batch.tokens:
            rows.append(model.forward(replace(batch, output_rows=wanted), cache).values)
    assert torch.equal(torch.cat(rows), expected)


def test_no_step_waits_for_the_systems_memory(build: Callable[..., Int8Llama]) -> None:
    cache = build().new_cache(16384)
    assert cache.data.nbytes > 16 * HUGE_PAGE
    cache.data[-1, -1, -1, -1] = 7
    cache.filling.join()
    assert cache.data.sum() == 7, "what was written meanwhile stays"
    given = cache.data.numpy()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    given.fill(1)
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before < 4, "the cache is given when it is made"


@dataclass
class Holder:
    data: torch.Tensor


def test_memory_that_nobody_holds_is_not_filled_in_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go, calls = threading.Event(), []

    def madvise(*asked: object) -> int:
        assert let_go.wait(10)
        calls.append(asked)
        return 0

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace(madvise=madvise))
    holders = [Holder(memory.huge_zeros(32 * HUGE_PAGE))]
    filling = memory.fill_in(holders.pop())
    let_go.set()
    filling.join()
    assert len(calls) == 1


@given(size=st.integers(1, 40 * HUGE_PAGE), parts=st.integers(1, 30))
def test_of_each_part_the_first_page_is_filled_in_before_any_second_one(size: int, parts: int) -> None:
    found = list(memory._pages(0, size, parts))
    pages = [page // HUGE_PAGE for _, page in found]
    assert sorted(pages) == list(range(-(-size // HUGE_PAGE))), "every page, once"
    begins = {size * part // parts // HUGE_PAGE for part in range(parts)}
    for (place, _), page in zip(found, pages, strict=True):
        assert page - place == max(begin for begin in begins if begin <= page), "counted from where its part begins"
    assert [place for place, _ in found] == sorted(place for place, _ in found)


def test_beginnings_are_filled_in_at_once_and_the_rest_leaves_the_processor_to_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, slept = [0.0], []

    def madvise(*_: object) -> int:
        clock[0] += 2.0
        return 0

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace(madvise=madvise))
    monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=slept.append))
    holder = Holder(memory.huge_zeros(8 * HUGE_PAGE))
    memory.fill_in(holder, 3).join()
    assert clock[0] == 8 * 2.0
    assert slept == [18.0] * 5, "after all but the first pages of three parts: a tenth of the time is its own"


ENDING = """
import threading, time
from types import SimpleNamespace
from berth_worker.kernels import memory
def madvise(*_):
    while threading.main_thread().is_alive():
        time.sleep(0.001)
    print("called")
    return 0
memory.ctypes.CDLL = lambda _: SimpleNamespace(madvise=madvise)
class Holder:
    data = memory.huge_zeros(32 << 21)
holder = Holder()
memory.fill_in(holder)
"""


def test_a_process_that_ends_waits_for_one_call_that_fills_memory_in() -> None:
    command = [sys.executable, "-c", ENDING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "called\n", "")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads_and_any_instruction_set_give_the_same_bits(
    tiny: Any, build: Callable[..., Int8Llama], whole: Any, threads: int, isa: str
) -> None:
    _, tokens, expected = whole
    assert torch.equal(tiny.all_logits(build(threads=threads, isa=isa), tokens, [250, 1, 1, 48]), expected)


@pytest.fixture(scope="module")
def roomy(build: Callable[..., Int8Llama]) -> Callable[..., Int8Llama]:
    """Models whose units and heads fill the tiles of a matrix engine, with a shorter unit at the end."""

    def make(threads: int, isa: str) -> Int8Llama:
        shape = {"hidden": 320, "heads": 5, "kv_heads": 1, "head_dim": 64, "intermediate": 768}
        return build(threads=threads, isa=isa, group=256, **shape)

    return make


@pytest.mark.parametrize("isa", ISAS)
def test_units_and_heads_as_large_as_tiles_give_the_same_bits(
    tiny: Any, roomy: Callable[..., Int8Llama], isa: str
) -> None:
    tokens = prompt(tiny, PROMPT, seed=5)
    expected = tiny.all_logits(roomy(1, "scalar"), tokens, [7] * 42 + [6])
    # whole tiles of 16 rows and begun ones: one, two, three, four and five of them
    for cut in ([300], [250, 1, 1, 48], [33, 9, 16, 17, 225], [47, 31, 45, 64, 80, 32, 1], [63, 79, 49, 20, 48, 41]):
        assert torch.equal(tiny.all_logits(roomy(2, isa), tokens, cut), expected)


def test_the_real_model_gives_the_same_bits_alone_and_in_company(loaded: LoadedModel, tiny: Any) -> None:
    tokens = loaded.tokenizer.encode("To Sherlock Holmes she is always the woman. I have seldom heard him mention her.")
    alone = tiny.all_logits(loaded.model, tokens)
    n, blocks = len(tokens), -(-len(tokens) // BLOCK_TOKENS)
    cache = loaded.model.new_cache(8 * blocks)
    together = loaded.model.forward(
        Batch(
            tokens=tokens * 8,
            positions=list(range(n)) * 8,
            sequence_starts=[n * i for i in range(9)],
            context_lengths=[n] * 8,
            block_tables=[list(range(i * blocks, (i + 1) * blocks)) for i in range(8)],
            output_rows=list(range(8 * n)),
        ),
        cache,
    )
    for i in range(8):
        assert torch.equal(together.values[i * n : (i + 1) * n], alone)
    assert torch.equal(together.best, together.values.argmax(-1).int())


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"tied": False},
        {"heads": 3, "kv_heads": 3, "head_dim": 32},
        {"heads": 4, "kv_heads": 1, "head_dim": 48, "intermediate": 176},
        {"llama3_rope": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("group", [256, 64, 24])
def test_int8_logits_are_near_the_oracle_on_any_shape(
    tiny: Any, tiny_reader: Callable[[Any], Any], build: Callable[..., Int8Llama], shape: dict[str, Any], group: int
) -> None:
    tokens = prompt(tiny, PROMPT, seed=3)
    exact = tiny.all_logits(Llama(tiny_reader(tiny.Shape(**shape)), torch.float32), tokens).log_softmax(-1)
    found = tiny.all_logits(build(group=group, **shape), tokens, [299, 1]).log_softmax(-1)
    divergence = (exact.exp() * (exact - found)).sum(-1)
    assert divergence.mean() < 5e-3
    assert divergence.max() < 5e-2
    # and not by chance: the logits say something
    assert (exact.exp() * exact).sum(-1).mean() > -torch.tensor(float(tiny.VOCAB)).log() + 0.3


def test_rows_without_logits_and_repeated_rows_are_as_asked(tiny: Any, whole: Any) -> None:
    model, tokens, expected = whole
    cache = model.new_cache(20)
    table = list(range(20))
    assert model.forward(tiny.single(tokens[:100], 0, table, rows=[]), cache).values.shape == (0, tiny.VOCAB)
    found = model.forward(tiny.single(tokens[100:], 100, table, rows=[199, 0, 199]), cache).values
    assert torch.equal(found, expected[[299, 100, 299]])


@pytest.mark.parametrize("isa", ISAS)
def test_heads_wider_than_any_set_takes_at_once_give_the_same_bits(
    build: Callable[..., Int8Llama], tiny: Any, isa: str
) -> None:
    shape = {"heads": 3, "kv_heads": 1, "head_dim": 288}
    tokens = prompt(tiny, 40, seed=6)
    expected = tiny.all_logits(build(threads=1, isa="scalar", **shape), tokens, [7] * 5 + [5])
    for cut in ([40], [21, 1, 18]):
        assert torch.equal(tiny.all_logits(build(threads=2, isa=isa, **shape), tokens, cut), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_blocks_that_sequences_share_are_read_together_with_the_same_bits(
    tiny: Any, build: Callable[..., Int8Llama], isa: str
) -> None:
    """Streams over a common prefix of two whole chunks of attention and a half, at depths of their own."""
    model, common = build(isa=isa), 640
    prefix = prompt(tiny, common, seed=8)
    tails = [prompt(tiny, 5 + 9 * i, seed=20 + i) for i in range(12)]

    def streams(shared: bool, count: int) -> torch.Tensor:
        cache, own = model.new_cache(12 * 48), 48
        tables = [list(range(i * own, (i + 1) * own)) for i in range(count)]
        for i, table in enumerate(tables):
            if shared:
                table[: common // BLOCK_TOKENS] = tables[0][: common // BLOCK_TOKENS]
            if i == 0 or not shared:
                model.forward(tiny.single(prefix, 0, table, rows=[]), cache)
        for table, tail in zip(tables, tails, strict=False):
            model.forward(tiny.single(tail, common, table, rows=[]), cache)
        lengths = [common + len(tail) + 1 for tail in tails[:count]]
        starts = list(range(count + 1))
        step = Batch([7] * count, [n - 1 for n in lengths], starts, lengths, tables, starts[:-1])
        return model.forward(step, cache).values

    expected = streams(shared=False, count=12)
    assert torch.equal(streams(shared=True, count=12), expected)
    assert torch.equal(streams(shared=True, count=1), expected[:1])


def test_rotation_is_orthogonal_and_hadamard_is_sylvesters() -> None:
    for size in (48, 64, 96, 576, 4096):
        rotation = Rotation(size)(torch.eye(size))
        assert (rotation @ rotation.T - torch.eye(size)).abs().max() < 1e-5
    expected = torch.ones(1, 1)
    for _ in range(8):
        expected = torch.cat([torch.cat([expected, expected], 1), torch.cat([expected, -expected], 1)])
    assert torch.equal(hadamard(torch.eye(256)), expected)


def test_quantized_rows_are_within_half_a_step() -> None:
    w = torch.randn(7, 100, generator=torch.Generator().manual_seed(0))
    quantized = quantize_rows(w, 32)
    assert quantized.values.abs().max() == 127
    assert quantized.scales.shape == (7, 4)
    step = quantized.scales.float().repeat_interleave(32, dim=1)[:, :100]
    # a scale rounded down to bfloat16 clips the largest value by at most 127 * 2^-9 of a step
    assert ((quantized.dequantize(32) - w).abs() <= 0.76 * step).all()
    assert quantize_rows(torch.zeros(2, 8), 4).values.eq(0).all()


def test_weights_are_held_once_in_a_byte_and_a_scale(loaded: LoadedModel) -> None:
    parameters = 134_515_008
    assert loaded.resident_bytes < 1.03 * parameters
    assert loaded.recipe == "w8g256-a8-rotated-kv8"
    assert loaded.path == f"kernels/{kernels.selected_isa()}"


def test_the_cache_takes_what_it_says(loaded: LoadedModel) -> None:
    cache = loaded.model.new_cache(7)
    assert cache.data.numel() == 7 * loaded.model.kv_bytes_per_block  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="KV cache: found no memory for 1000000000000 blocks"):
        loaded.model.new_cache(10**12)


def test_what_follows_copied_blocks_has_the_bits_of_what_follows_the_blocks_themselves(tiny: Any, whole: Any) -> None:
    model, tokens, expected = whole
    cache = model.new_cache(5)
    model.forward(tiny.single(tokens[:30], 0, [3, 0]), cache)
    after = replace(tiny.single(tokens[30:40], 30, [1, 4, 2]), copies=[(3, 1), (0, 4)])
    assert torch.equal(model.forward(after, cache).values, expected[30:40])


def test_a_bad_batch_is_refused_and_the_model_goes_on(tiny: Any, whole: Any) -> None:
    model, tokens, expected = whole
    cache = model.new_cache(2)
    with pytest.raises(ValueError, match=r"block_tables\[0\]: found a block outside 0 to 1"):
        model.forward(tiny.single(tokens[:20], 0, [0, 2]), cache)
    assert torch.equal(model.forward(tiny.single(tokens[:20], 0, [0, 1]), cache).values, expected[:20])


@pytest.mark.parametrize(
    ("position", "value", "says"),
    [
        (0, 99, "batch"),
        (4, 10**6, "token out of range"),
        (5, 1, "sequence starts"),
        (7, 50, "sequence 0"),
        (-1, 10**6, "block out of range"),
    ],
)
def test_the_kernels_themselves_check_what_they_index(whole: Any, position: int, value: int, says: str) -> None:
    model, _, _ = whole
    cache = model.new_cache(2)
    batch = torch.tensor([1, 1, 1, 1, 3, 0, 1, 1, 0, 1], dtype=torch.int32)  # one token of one sequence
    logits, best = torch.empty(1, 80), torch.empty(1, dtype=torch.int32)
    kernels.step(model._weights, model._plan, cache.data, batch, logits, best, 1, "")
    batch[position] = value
    with pytest.raises(RuntimeError, match=says):
        kernels.step(model._weights, model._plan, cache.data, batch, logits, best, 1, "")


def test_a_plan_that_does_not_fit_the_weights_is_refused(whole: Any) -> None:
    model, _, _ = whole
    batch = torch.tensor([1, 1, 1, 1, 3, 0, 1, 1, 0, 1], dtype=torch.int32)
    logits, best = torch.empty(1, 80), torch.empty(1, dtype=torch.int32)
    for plan in (model._plan[:-1], model._plan * 1000):
        with pytest.raises(RuntimeError, match="plan"):
            kernels.step(model._weights, plan, model.new_cache(2).data, batch, logits, best, 1, "")


SCRIPT = """
import os, sys, torch
from pathlib import Path
from berth_worker.model import ModelError, load
from berth_worker.engine.batch import Batch
try:
    model = load(sys.argv[1], threads=2).model
except ModelError as error:
    sys.exit(f"refused: {error}")
step = lambda: model.forward(Batch([5], [0], [0, 1], [1], [[0]], [0]), model.new_cache(1)).values
before = step()
if sys.argv[2] == "fork":
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(step(), before) else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(step(), before)
print("done")
"""


def run_script(path: str, what: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, path, what],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def tiny_path(tiny: Any, tiny_reader: Callable[[Any], Any]) -> str:
    return str(tiny_reader(tiny.Shape()).file.path)


def test_a_forked_child_steps_with_threads_of_its_own_and_both_end_cleanly(tiny_path: str) -> None:
    done = run_script(tiny_path, "fork")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_an_instruction_set_that_cannot_run_here_is_refused_with_those_that_can(tiny_path: str) -> None:
    refused = run_script(tiny_path, "", BERTH_ISA="sve")
    assert refused.returncode == 1
    assert f"refused: BERTH_ISA: found 'sve'; this build on this machine has: {' '.join(ISAS)}" in refused.stderr
    assert run_script(tiny_path, "", BERTH_ISA="scalar").stdout == "done\n"


def test_without_the_extension_the_model_runs_in_plain_pytorch_with_a_warning(
    tiny_path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from berth_worker.model import load  # noqa: PLC0415

    def unavailable() -> None:
        raise kernels.KernelsUnavailableError("the int8 kernels are not built")

    monkeypatch.setattr(kernels, "load_kernels", unavailable)
    loaded = load(tiny_path, threads=1)
    assert (loaded.path, loaded.recipe) == ("torch", "float32")
    assert "the int8 kernels are not built; running in plain PyTorch" in caplog.text
