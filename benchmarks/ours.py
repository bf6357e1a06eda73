"""How fast are our own steps?  Through Model.forward, in this process, with contexts that were really read before."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import models
from _common import Report, timed
from berth_worker.engine.batch import BLOCK_TOKENS, Batch
from berth_worker.engine.engine import Engine
from berth_worker.engine.limits import EngineConfig
from berth_worker.engine.request import SamplingParams
from berth_worker.model.interface import LoadedModel, Model
from berth_worker.model.load import load

__all__ = ["Decode", "EngineDecode", "Prefill", "embedded_engine", "token_ids"]

_CHUNK = 512


def token_ids(model: Model, count: int, seed: int = 0) -> list[int]:
    """Ids spread over the vocabulary."""
    return [(i * 7919 + seed) % model.config.vocab_size for i in range(count)]


def embedded_engine(report: Report, threads: int, context: int) -> tuple[Model, Engine]:
    """The embedded model and an engine that serves it, without speculation; it has room for eight such contexts."""
    loaded = load(models.EMBEDDED, threads=threads)
    report.note("berth", f"{loaded.name} {loaded.recipe} {loaded.path}")
    config = EngineConfig(max_context_tokens=context, kv_cache_tokens=8 * context, speculation="off")
    engine = Engine(loaded.model, loaded.tokenizer, config)
    gc.collect()
    gc.freeze()  # as the worker does: a collection that walks all of torch is a gap of 0.2 s
    engine.start()
    return loaded.model, engine


class Decode:
    """`batch` streams with `depth` tokens of context before them; `shared`: their contexts' full blocks are the same.

    The context is read once; each run decodes the same `steps` positions again.
    """

    def __init__(self, model: Model, batch: int, depth: int, steps: int, *, shared: bool = False) -> None:
        self._model, self._batch, self._depth, self._steps = model, batch, depth, steps
        common = depth // BLOCK_TOKENS if shared else 0
        own = -(-(depth + steps) // BLOCK_TOKENS) - common
        self._tables = [[*range(common), *range(common + i * own, common + (i + 1) * own)] for i in range(batch)]
        self._cache = model.new_cache(common + batch * own)
        context = token_ids(model, depth)
        for index, table in enumerate(self._tables):
            _read(model, self._cache, context, table, common * BLOCK_TOKENS if index else 0)

    def run(self) -> float:
        """Tokens a second of all streams together."""
        starts, rows = list(range(self._batch + 1)), list(range(self._batch))

        def steps() -> None:
            for length in range(self._depth + 1, self._depth + self._steps + 1):
                tokens, positions, lengths = ([value] * self._batch for value in (length, length - 1, length))
                self._model.forward(Batch(tokens, positions, starts, lengths, self._tables, rows), self._cache)

        return self._batch * self._steps / timed(steps)


class Prefill:
    """`tokens` tokens in one step on top of `depth` tokens, with the logits of the last one."""

    def __init__(self, model: Model, tokens: int, depth: int) -> None:
        blocks = list(range(-(-(depth + tokens) // BLOCK_TOKENS)))
        self._model, self._cache, self._tokens = model, model.new_cache(len(blocks)), tokens
        _read(model, self._cache, token_ids(model, depth), blocks, 0)
        end = depth + tokens
        self._step = Batch(
            token_ids(model, tokens, 1), list(range(depth, end)), [0, tokens], [end], [blocks], [tokens - 1]
        )

    def run(self) -> float:
        """Tokens a second."""
        return self._tokens / timed(lambda: self._model.forward(self._step, self._cache))


class EngineDecode:
    """`batch` streams through the engine: scheduler, greedy sampler, detokenizer and streams beside the steps."""

    def __init__(self, loaded: LoadedModel, batch: int, steps: int) -> None:
        config = EngineConfig(kv_cache_tokens=32 * 1024, max_context_tokens=1024, speculation="off")
        self._engine = Engine(loaded.model, loaded.tokenizer, config)
        self._engine.start()
        self._vocab, self._batch, self._turn = loaded.model, batch, 0
        self._params = SamplingParams(max_tokens=steps, temperature=0.0, ignore_eos=True)

    def run(self) -> float:
        """Tokens a second of all streams, from each one's first token to its last."""
        self._turn += 1
        prompts = [token_ids(self._vocab, 16, 1000 * self._turn + i) for i in range(self._batch)]
        with ThreadPoolExecutor(self._batch) as pool:
            done = list(pool.map(lambda prompt: self._engine.generate(prompt, self._params), prompts))
        return sum((d.finish.completion_tokens - 1) / d.finish.decode_seconds for d in done)

    def first_token(self, tokens: int) -> float:
        """Milliseconds from submitting a prompt that was never seen to its first token."""
        self._turn += 1
        prompt = token_ids(self._vocab, tokens, 1000 * self._turn)
        once = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        return 1000 * timed(lambda: self._engine.generate(prompt, once))

    def close(self) -> None:
        """End the engine's thread."""
        self._engine.stop()


def _read(model: Model, cache: object, context: list[int], table: list[int], start: int) -> None:
    for begin in range(start, len(context), _CHUNK):
        part = context[begin : begin + _CHUNK]
        end = begin + len(part)
        model.forward(Batch(part, list(range(begin, end)), [0, len(part)], [end], [table], []), cache)  # type: ignore[arg-type]
