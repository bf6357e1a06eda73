"""How long do running streams wait for their next token while another request's prompt of 2,000 tokens is read?

Four streams decode through the engine; the time between two tokens of a stream, as a reader of the stream sees it, is a
gap.  Speculation is off, so that a gap is one step.  Beside the gaps: how fast the prompt is read then, against alone.

    python benchmarks/prefill_gap.py [--quick] [--json FILE] [--threads N]
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from dataclasses import dataclass, field

from _common import Report, options, p99, progress
from berth_worker.engine.engine import Engine
from berth_worker.engine.request import SamplingParams
from ours import embedded_engine, token_ids

STREAMS, PROMPT, CONTEXT = 4, 2000, 4096
_IDLE_TOKENS = 64


@dataclass
class Round:
    """What one round gave."""

    alone: float = 0.0
    """Prompt tokens a second with nothing else running."""
    beside: float = 0.0
    """The same beside the streams."""
    idle_gaps: list[float] = field(default_factory=list)
    """Seconds between tokens of a stream while no prompt is read."""
    busy_gaps: list[float] = field(default_factory=list)
    """While one is."""


class Streams:
    """Streams that decode until they are cancelled, and when each token came."""

    def __init__(self, engine: Engine, prompts: list[list[int]]) -> None:
        params = SamplingParams(max_tokens=CONTEXT - 200, temperature=0.0, ignore_eos=True)
        self.times: list[list[float]] = [[] for _ in prompts]
        self._came = asyncio.Event()
        self._tasks = [
            asyncio.create_task(self._read(engine, prompt, params, index)) for index, prompt in enumerate(prompts)
        ]

    async def _read(self, engine: Engine, prompt: list[int], params: SamplingParams, index: int) -> None:
        stream = engine.submit(prompt, params)
        try:
            async for chunk in stream:
                self.times[index] += [time.perf_counter()] * bool(chunk.token_ids)
                self._came.set()
        finally:
            stream.cancel()

    async def until(self, tokens: int) -> None:
        """Wait until every stream has so many tokens."""
        while min(map(len, self.times)) < tokens:
            self._came.clear()
            await self._came.wait()

    def gaps(self, begin: float, end: float) -> list[float]:
        """Gaps that end between two times."""
        return [b - a for times in self.times for a, b in itertools.pairwise(times) if begin < b <= end]

    async def close(self) -> None:
        """Cancel them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def read_prompt(engine: Engine, prompt: list[int]) -> float:
    """Tokens a second from submitting a prompt to its first token."""
    began = time.perf_counter()
    async for _ in engine.submit(prompt, SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)):
        pass
    return len(prompt) / (time.perf_counter() - began)


async def one_round(engine: Engine, prompts: list[list[int]]) -> Round:
    found = Round(alone=await read_prompt(engine, prompts[0]))
    streams = Streams(engine, prompts[2:])
    try:
        await streams.until(8)
        began = time.perf_counter()
        await streams.until(8 + _IDLE_TOKENS)
        middle = time.perf_counter()
        found.beside = await read_prompt(engine, prompts[1])
        end = time.perf_counter()
        found.idle_gaps, found.busy_gaps = streams.gaps(began, middle), streams.gaps(middle, end)
    finally:
        await streams.close()
    return found


async def run(engine: Engine, rounds: int, prompts_of: list[list[list[int]]]) -> list[Round]:
    found = []
    for number in range(rounds):
        progress(f"gap: round {number + 1}/{rounds}")
        found.append(await one_round(engine, prompts_of[number]))
    progress("")
    return found


def main() -> None:
    chosen = options(__doc__).parse_args()
    rounds = 2 if chosen.quick else 7
    report = Report(chosen.threads)
    model, engine = embedded_engine(report, chosen.threads, CONTEXT)

    def prompts(number: int) -> list[list[int]]:
        """Two long prompts and one of 32 tokens a stream, none of which was seen before."""
        sizes = [PROMPT, PROMPT, *[32] * STREAMS]
        return [token_ids(model, size, 100_003 * number + 977 * i + 1) for i, size in enumerate(sizes)]

    try:
        asyncio.run(run(engine, 1, [prompts(0)]))  # the engine learns what steps cost
        found = asyncio.run(run(engine, rounds, [prompts(number + 1) for number in range(rounds)]))
    finally:
        engine.stop()

    idle = statistics.median(p99(r.idle_gaps) for r in found)
    busy = statistics.median(p99(r.busy_gaps) for r in found)
    report.figure("gap_idle_p99_ms", 1000 * idle)
    report.figure("gap_idle_median_ms", 1000 * statistics.median(gap for r in found for gap in r.idle_gaps))
    report.figure("gap_prefill_p99_ms", 1000 * busy)
    report.figure("gap_prefill_p99_best_ms", 1000 * min(p99(r.busy_gaps) for r in found))
    report.figure("gap_prefill_p99_all_ms", 1000 * p99([gap for r in found for gap in r.busy_gaps]))
    report.figure("gap_bar_ms", 1000 * max(2 * idle, 0.02))
    report.speeds("prefill2000_alone", [r.alone for r in found])
    report.speeds("prefill2000_beside_4_streams", [r.beside for r in found])
    report.figure("prefill_gap_speed_kept", statistics.median(r.beside / r.alone for r in found))
    report.figure("prefill_gap_over_bar", busy / max(2 * idle, 0.02))
    report.write(chosen.json)


if __name__ == "__main__":
    main()
