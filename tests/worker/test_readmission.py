"""Do all of those who were refused together get in, and no later than there is room for them?"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from berth_worker.engine.readmission import LEAST_SECONDS, MOST_SECONDS, Readmission

MODEL = "smollm2-135m-instruct"
SLOTS, QUEUE = 16, 64


@dataclass
class Crowd:
    """Clients that all ask a worker at once, on a virtual clock; each gives up after so many tries."""

    clients: int
    lasts: Callable[[random.Random], float]
    """Seconds that a request runs."""
    tries: int = 5
    again: Callable[[float], float] | None = None
    """When a refused one asks again; what the worker tells it if None."""
    chance: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311 - no secret
    failed: int = 0
    seconds: float = 0.0
    told: list[float] = field(default_factory=list)

    def run(self, *before: float) -> Crowd:
        """before: how long requests had run that ended earlier."""
        readmission = Readmission(self.chance.random)
        for ran in before:
            readmission.ended(ran)
        waiting: deque[int] = deque()
        running: dict[int, float] = {}
        order = itertools.count()
        due = [(self.chance.uniform(0, 0.2), next(order), client, 1) for client in range(self.clients)]
        heapq.heapify(due)
        while due:
            now, _, client, attempt = heapq.heappop(due)
            if attempt == 0:
                readmission.ended(now - running.pop(client))
                self.seconds = now
            elif len(running) + len(waiting) < SLOTS + QUEUE:
                waiting.append(client)
            elif attempt == self.tries:
                self.failed += 1
            else:
                self.told.append(readmission.seconds(now, [now - began for began in running.values()]))
                wait = self.told[-1] if self.again is None else self.again(now)
                heapq.heappush(due, (now + wait, next(order), client, attempt + 1))
            while waiting and len(running) < SLOTS:
                running[waiting[0]] = now
                heapq.heappush(due, (now + self.lasts(self.chance), next(order), waiting.popleft(), 0))
        return self


STEADY: dict[str, tuple[float, Callable[[random.Random], float]]] = {
    "short": (0.2, lambda _: 0.2),
    "even": (2, lambda _: 2),
    "uneven": (2, lambda chance: chance.expovariate(1 / 2)),
    "long": (10, lambda _: 10),
    "long and uneven": (10, lambda chance: chance.expovariate(1 / 10)),
}


@pytest.mark.parametrize("kind", STEADY)
@pytest.mark.parametrize("known", [False, True])
def test_two_hundred_who_ask_at_once_are_all_served(kind: str, known: bool) -> None:
    mean, lasts = STEADY[kind]
    crowd = Crowd(200, lasts).run(*[mean] * 20 if known else [])
    assert crowd.failed == 0
    busy = 200 * mean / SLOTS
    assert crowd.seconds < 1.5 * busy + 10, "the model hardly waits for clients that it has sent away"
    if mean >= 2:
        assert Crowd(200, lasts, again=lambda _: 1.0).run().failed > 50, "as all of them coming back after 1 s"


def test_who_knows_how_long_requests_run_needs_few_tries() -> None:
    for mean, lasts in STEADY.values():
        crowd = Crowd(200, lasts, tries=3).run(*[mean] * 20)
        assert crowd.failed <= 4


def test_those_refused_together_come_back_one_by_one() -> None:
    readmission = Readmission(lambda: 0.0)
    for _ in range(16):
        readmission.ended(8.0)
    told = [readmission.seconds(100.0, [1.0] * 16) for _ in range(40)]
    assert told[0] == pytest.approx(0.625), "16 requests of 8 s: two end each second, and some room is left"
    assert all(later - earlier == pytest.approx(0.625) for earlier, later in itertools.pairwise(told))
    assert readmission.seconds(100.0 + told[-1] + 50, [1.0] * 16) == pytest.approx(0.625), "long after all have come"


def test_requests_that_run_longer_than_any_before_count() -> None:
    readmission = Readmission(lambda: 0.0)
    readmission.ended(1.0)
    assert readmission.seconds(0.0, [40.0] * 2) == pytest.approx(25.0)
    assert Readmission(lambda: 0.0).seconds(0.0, [8.0] * 4) == pytest.approx(5.0), "none has ended: half of their time"


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.999])
def test_nobody_is_told_to_come_at_once_or_later_than_clients_wait(chance: float) -> None:
    for lasts in (0.001, 1.0, 1000.0):
        readmission = Readmission(lambda: chance)
        readmission.ended(lasts)
        for _ in range(500):
            assert LEAST_SECONDS <= readmission.seconds(0.0, [0.0]) <= MOST_SECONDS


async def test_two_hundred_of_openais_clients_are_all_answered(serving: Any, gated: Any) -> None:
    """The engine's own queue and the client's own way of trying again."""
    statuses: Counter[int] = Counter()

    async def count(response: Any) -> None:
        statuses[response.status_code] += 1

    http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [count]})
    async with serving(max_running=8, max_waiting=32) as running:
        url = str(running.http.base_url.join("/v1"))
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=4, http_client=http) as client:

            async def ask(index: int) -> Any:
                return await client.completions.create(
                    model=MODEL, prompt=[5, index], max_tokens=8, temperature=0, extra_body={"ignore_eos": True}
                )

            await asyncio.gather(*map(ask, range(8)))
            gated.close()
            asking = asyncio.gather(*map(ask, range(200)), return_exceptions=True)
            async with asyncio.timeout(60):
                while running.engine.stats().refused < 160:  # noqa: ASYNC110 - it counts in no event loop
                    await asyncio.sleep(0.002)
            gated.gate.set()
            answers = await asking
    assert [answer for answer in answers if isinstance(answer, BaseException)] == []
    assert statuses[200] == 208
    assert statuses[429] >= 160
