"""Does each client of the shared engine get what it would get alone, and does the engine survive what they do?"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from berth_worker.engine.blocks import blocks_for
from berth_worker.engine.limits import EngineConfig, NotAcceptingError
from berth_worker.engine.request import FinishReason, InvalidRequestError, SamplingParams
from berth_worker.engine.scheduler import QueueFullError
from berth_worker.engine.stream import Completion, merge
from berth_worker.model.interface import ModelError
from berth_worker.server.memory import kv_cache_tokens
from berth_worker.server.options import Options
from berth_worker.server.worker import build_engine, engine_config

if TYPE_CHECKING:
    from berth_worker.engine.engine import Engine
    from berth_worker.model.interface import LoadedModel

MakeEngine = Callable[..., "Engine"]

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):",
    "Water boils at",
    "The three laws of motion are",
    "Dear Sir or Madam,",
    "1, 2, 3, 4,",
    "The quick brown fox",
]
GREEDY = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)


async def read(engine: Engine, prompt: str, params: SamplingParams = GREEDY) -> Completion:
    chunks = [chunk async for chunk in engine.submit(engine.tokenizer.encode(prompt), params)]
    whole = merge(chunks)
    assert whole.finish is not None
    return Completion(whole.text, whole.token_ids, whole.finish)


async def all_at_once(engine: Engine, prompts: Sequence[str], params: SamplingParams = GREEDY) -> list[Completion]:
    return list(await asyncio.gather(*(read(engine, prompt, params) for prompt in prompts)))


def outputs(completions: Sequence[Completion]) -> list[tuple[str, tuple[int, ...]]]:
    return [(c.text, c.token_ids) for c in completions]


async def eventually(condition: Callable[[], Any], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is awaited happens in the engine's thread
            await asyncio.sleep(0.002)


async def test_eight_prompts_at_once_get_what_each_gets_alone(make_engine: MakeEngine) -> None:
    together = await all_at_once(make_engine(), PROMPTS)
    fresh = make_engine()
    alone = [await asyncio.to_thread(fresh.generate, fresh.tokenizer.encode(p), GREEDY) for p in PROMPTS]
    assert outputs(together) == outputs(alone)
    assert all(len(c.token_ids) == 16 and c.finish.reason is FinishReason.LENGTH for c in together)


async def test_small_chunks_little_memory_and_a_warm_cache_change_no_token(make_engine: MakeEngine) -> None:
    params = dataclasses.replace(GREEDY, max_tokens=40)
    roomy = await all_at_once(make_engine(), PROMPTS[:5], params)
    tight = make_engine(max_running=5, token_budget=5, max_context_tokens=128, kv_cache_tokens=160)
    assert outputs(await all_at_once(tight, PROMPTS[:5], params)) == outputs(roomy)
    assert tight._scheduler.preemptions > 0, "ten blocks are too few for five requests of four: some was recomputed"
    again = await all_at_once(tight, PROMPTS[:5], params)
    assert outputs(again) == outputs(roomy)


async def test_a_second_turn_finds_the_first_in_the_cache_and_says_the_same_as_without(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()
    history = " ".join(PROMPTS * 3)
    first = await read(engine, history)
    warm = await read(engine, history + first.text + " Then")
    cold = await read(make_engine(), history + first.text + " Then")
    assert warm.finish.cached_prompt_tokens >= first.finish.prompt_tokens // 16 * 16
    assert (warm.text, cold.finish.cached_prompt_tokens) == (cold.text, 0)


async def test_a_session_stays_in_the_cache_while_other_traffic_passes(make_engine: MakeEngine) -> None:
    engine = make_engine(max_context_tokens=256, kv_cache_tokens=256)
    encode = engine.tokenizer.encode
    params = dataclasses.replace(GREEDY, max_tokens=4)
    history = encode(" ".join(PROMPTS))
    first = await asyncio.to_thread(engine.generate, history, params, session_id="agent")
    stats = engine.stats()
    assert (stats.sessions_retained, stats.blocks_retained, stats.blocks_held) == (1, blocks_for(len(history) + 3), 0)
    for prompt in PROMPTS[:5]:
        await asyncio.to_thread(engine.generate, encode(prompt * 6), params)
    turn = [*history, *first.token_ids, *encode(" Then")]
    warm = await asyncio.to_thread(engine.generate, turn, params, session_id="agent")
    assert warm.finish.cached_prompt_tokens == len(history) + 3


def test_two_turns_that_go_on_in_copies_of_one_block_say_to_the_bit_what_each_says_alone(
    make_engine: MakeEngine,
) -> None:
    params = dataclasses.replace(GREEDY, max_tokens=6, logprobs=3)
    history = list(range(5, 42))
    engine = make_engine()
    first = engine.generate(history, params)
    for new in (7, 9):
        turn = [*history, *first.token_ids, new, 8]
        warm, cold = engine.generate(turn, params), make_engine().generate(turn, params)
        assert (warm.finish.cached_prompt_tokens, cold.finish.cached_prompt_tokens) == (42, 0)
        assert (warm.token_ids, warm.logprobs) == (cold.token_ids, cold.logprobs)


async def test_a_seeded_sample_does_not_depend_on_its_neighbours(make_engine: MakeEngine) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.0, top_p=0.95, seed=11)
    engine = make_engine()
    alone = await read(engine, PROMPTS[0], params)
    crowd = await all_at_once(engine, PROMPTS, params)
    other = await read(engine, PROMPTS[0], dataclasses.replace(params, seed=12))
    assert alone.token_ids == crowd[0].token_ids != other.token_ids


async def test_pieces_add_up_to_the_text_of_the_tokens(make_engine: MakeEngine) -> None:
    engine = make_engine()
    stream = engine.submit(engine.tokenizer.encode(PROMPTS[1]), GREEDY)
    pieces = [chunk async for chunk in stream]
    tokens = [token for piece in pieces for token in piece.token_ids]
    assert len(pieces) > 8, "it streams"
    assert "".join(piece.text for piece in pieces) == engine.tokenizer.decode(tokens)
    finish = pieces[-1].finish
    assert finish is not None
    assert finish.completion_tokens == len(tokens) == 16
    assert min(finish.queue_seconds, finish.prefill_seconds, finish.decode_seconds) >= 0


async def test_a_stop_string_ends_the_text_before_it_and_a_stop_token_with_it(make_engine: MakeEngine) -> None:
    engine = make_engine()
    whole = await read(engine, PROMPTS[6])
    stop = whole.text[9:12]
    cut = await read(engine, PROMPTS[6], dataclasses.replace(GREEDY, stop=(stop, "no such text")))
    assert (cut.text, cut.finish.reason) == (whole.text[: whole.text.index(stop)], FinishReason.STOP)
    token = whole.token_ids[4]
    ended = await read(engine, PROMPTS[6], dataclasses.replace(GREEDY, stop_token_ids=(token,)))
    assert ended.token_ids == whole.token_ids[: whole.token_ids.index(token) + 1]
    assert ended.finish.reason is FinishReason.STOP


async def test_the_models_own_end_of_turn_ends_the_request(make_engine: MakeEngine) -> None:
    engine = make_engine()
    prompt = engine.tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}])
    ids = engine.tokenizer.encode(prompt, add_special_tokens=False)
    answer = await asyncio.to_thread(engine.generate, ids, SamplingParams(temperature=0, max_tokens=100))
    assert answer.finish.reason is FinishReason.STOP
    assert answer.token_ids[-1] in engine.tokenizer.eos_ids
    assert "Paris" in answer.text
    assert "<|im_end|>" not in answer.text


async def test_a_cancelled_request_frees_its_blocks_and_the_others_go_on(make_engine: MakeEngine) -> None:
    engine = make_engine()
    long = engine.submit(engine.tokenizer.encode(PROMPTS[1]), SamplingParams(temperature=0, ignore_eos=True))
    other = asyncio.create_task(read(engine, PROMPTS[0]))
    await anext(aiter(long))
    long.cancel()
    last = merge([chunk async for chunk in long])
    assert last.finish is not None
    assert last.finish.reason is FinishReason.ABORT
    assert (await other).finish.reason is FinishReason.LENGTH
    assert (engine.stats().blocks_held, engine.idle) == (0, True)
    long.cancel()  # too late: nothing happens


async def test_a_waiting_request_can_be_cancelled(make_engine: MakeEngine, gated: Any) -> None:
    engine = make_engine(max_running=1)
    gated.close()
    running = engine.submit([1], GREEDY)
    waiting = engine.submit([2], GREEDY)
    waiting.cancel()
    gated.gate.set()
    last = merge([chunk async for chunk in waiting])
    assert last.token_ids == ()
    assert merge([chunk async for chunk in running]).finish is not None


async def test_the_queue_is_full_at_its_limit_and_free_again_after(make_engine: MakeEngine, gated: Any) -> None:
    engine = make_engine(max_running=2, max_waiting=1)
    gated.close()
    streams = [engine.submit([i], GREEDY) for i in range(3)]
    with pytest.raises(QueueFullError, match="at most 2 run and 1 wait"):
        engine.submit([4], GREEDY)
    gated.gate.set()
    for stream in streams:
        assert [chunk async for chunk in stream][-1].finish is not None
    assert (await read(engine, PROMPTS[0])).finish.reason is FinishReason.LENGTH


async def test_nothing_is_accepted_after_refuse_new_and_what_runs_finishes(make_engine: MakeEngine, gated: Any) -> None:
    engine = make_engine()
    gated.close()
    running = engine.submit([1, 2, 3], GREEDY)
    engine.refuse_new()
    with pytest.raises(NotAcceptingError, match="going down"):
        engine.submit([1], GREEDY)
    gated.gate.set()
    assert len(merge([chunk async for chunk in running]).token_ids) == 16
    assert engine.stop() == 0


async def test_stopping_says_so_to_whoever_is_cut_off(make_engine: MakeEngine) -> None:
    engine = make_engine()
    stream = engine.submit([1, 2, 3], SamplingParams(temperature=0, ignore_eos=True))
    await anext(aiter(stream))
    assert await asyncio.to_thread(engine.stop) == 1
    finish = merge([chunk async for chunk in stream]).finish
    assert finish is not None
    assert (finish.reason, finish.error[:24]) == (FinishReason.ABORT, "the worker went down bef")


async def test_logits_without_numbers_fail_their_request_alone(make_engine: MakeEngine, gated: Any) -> None:
    engine = make_engine()

    def spoil_first_row(logits: Any) -> Any:
        logits = logits.clone()
        logits[0] = float("nan")
        return logits

    gated.close()
    gated.fault = spoil_first_row
    bad, good = engine.submit([1], GREEDY), engine.submit([2], GREEDY)
    await eventually(lambda: engine.stats().running + engine.stats().waiting == 2)
    gated.gate.set()
    failed = merge([chunk async for chunk in bad]).finish
    gated.fault = None
    assert failed is not None
    assert (failed.reason, "NonFiniteLogitsError" in failed.error) == (FinishReason.ERROR, True)
    assert merge([chunk async for chunk in good]).finish is not None
    assert engine.unhealthy() is None
    assert (await read(engine, PROMPTS[0])).finish.reason is FinishReason.LENGTH


async def test_a_model_that_fails_ends_every_request_and_makes_the_engine_unhealthy(
    make_engine: MakeEngine, gated: Any
) -> None:
    engine = make_engine(max_running=1)

    def fail(_: Any) -> Any:
        raise MemoryError("no more")

    gated.fault = fail
    streams = [engine.submit([1], GREEDY), engine.submit([2], GREEDY)]
    ends = [merge([chunk async for chunk in stream]) for stream in streams]
    assert [end.finish.error for end in ends if end.finish] == ["engine failed: MemoryError: no more"] * 2
    assert engine.unhealthy() == "engine failed: MemoryError: no more"
    with pytest.raises(NotAcceptingError, match="engine failed: MemoryError"):
        engine.submit([3], GREEDY)


async def test_a_step_that_never_ends_makes_the_engine_unhealthy(make_engine: MakeEngine, gated: Any) -> None:
    engine = make_engine(stall_seconds=0.05)
    gated.close()
    stream = engine.submit([1], GREEDY)
    await eventually(engine.unhealthy)
    assert "engine stuck: a step runs for" in str(engine.unhealthy())
    gated.gate.set()
    assert merge([chunk async for chunk in stream]).finish is not None
    assert engine.unhealthy() is None


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        ([], None, "prompt: empty; at least one token"),
        ([1] * 512, None, "prompt: 512 tokens are too many; at most 511, to generate one in a context of 512"),
        ([1, -1], None, r"prompt\[1\]: token -1 is out of range; 0 to 49151"),
        ([1, 2, 49152], None, r"prompt\[2\]: token 49152 is out of range; 0 to 49151"),
        ([1] * 500, 13, "max_tokens: 13 is out of range; 1 to 12 after a prompt of 500 tokens in a context of 512"),
    ],
)
def test_a_request_that_cannot_fit_is_refused_with_the_numbers(
    make_engine: MakeEngine, prompt: list[int], max_tokens: int | None, message: str
) -> None:
    engine = make_engine(start=False)
    with pytest.raises(InvalidRequestError, match=message):
        engine.generate(prompt, SamplingParams(max_tokens=max_tokens))


async def test_without_max_tokens_generation_fills_the_context_and_no_more(make_engine: MakeEngine) -> None:
    engine = make_engine(max_context_tokens=32, kv_cache_tokens=32)
    full = await asyncio.to_thread(engine.generate, [1] * 20, SamplingParams(temperature=0, ignore_eos=True))
    assert (len(full.token_ids), full.finish.reason) == (12, FinishReason.LENGTH)


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="kv_cache_tokens: 64 is less than max_context_tokens"):
        EngineConfig(max_context_tokens=128, kv_cache_tokens=64)


def test_limits_follow_model_and_memory_where_no_option_says_otherwise(loaded: LoadedModel) -> None:
    per_token = loaded.model.kv_bytes_per_block // 16
    plenty = engine_config(Options(), loaded, available=2**50)
    assert (plenty.max_context_tokens, plenty.kv_cache_tokens) == (8192, 16 * 8192)
    little = engine_config(Options(), loaded, available=2000 * per_token)
    assert (little.max_context_tokens, little.kv_cache_tokens) == (1000, 1000)
    with pytest.raises(ValueError, match=r"--max-context-tokens: 9000 is more than the model was trained for \(8192"):
        engine_config(Options(max_context_tokens=9000), loaded, available=2**50)
    with pytest.raises(ValueError, match="--max-context-tokens: 512 does not fit in a KV cache of 256 tokens"):
        engine_config(Options(max_context_tokens=512, kv_cache_tokens=256), loaded, available=2**50)
    with pytest.raises(ValueError, match="no room for a KV cache"):
        engine_config(Options(), loaded, available=10 * per_token)


def test_a_kv_cache_that_is_asked_for_and_does_not_fit_is_refused_before_the_model_is_loaded() -> None:
    with pytest.raises(ModelError, match=r"need .* GiB of memory .* for 10,000,000,000 tokens of KV"):
        build_engine(Options(kv_cache_tokens=10**10))


def test_the_cache_takes_what_is_wanted_or_half_of_the_memory() -> None:
    assert kv_cache_tokens(1000.0, wanted=50, available=10**6) == 50
    assert kv_cache_tokens(1000.0, wanted=5000, available=10**6) == 500


async def test_an_idle_engine_uses_no_cpu(make_engine: MakeEngine) -> None:
    engine = make_engine()
    await read(engine, PROMPTS[0])
    before, began = time.process_time(), time.monotonic()
    await asyncio.sleep(0.5)
    assert time.process_time() - before < 0.25 * (time.monotonic() - began)
