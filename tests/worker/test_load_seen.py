"""Does the operator read the real worker's load as it is, and does a client that it held reach the real worker?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from berth_operator.api import CapacityType
from berth_operator.cluster.observe import Worker
from berth_operator.load.activator import Activator
from berth_operator.load.page import growth
from berth_operator.load.scrape import Limits, Scraper
from berth_worker.proto.berth.v1 import generation_pb2 as pb
from berth_worker.proto.berth.v1 import generation_pb2_grpc as pb_grpc

MODEL = "smollm2-135m-instruct"
ASKED: dict[str, Any] = {
    "model": MODEL,
    "prompt": "The capital of France is Paris. " * 8,
    "max_tokens": 12,
    "temperature": 0,
}
POOL = "default/agents"


@pytest.fixture
async def scraper() -> AsyncIterator[Scraper]:
    async with Scraper(Limits(total_s=30, connect_s=30)) as made:
        yield made


async def test_what_the_real_worker_did_is_what_is_read(serving: Any, gated: Any, scraper: Scraper) -> None:
    async with serving(max_running=2, max_waiting=1) as running:
        address = f"127.0.0.1:{running.http_server.port}"
        before = await scraper.read(address)
        assert before.in_flight == 0
        for _ in range(2):
            assert (await running.http.post("/v1/completions", json=ASKED, timeout=60)).status_code == 200
        grown = growth(before, await scraper.read(address), 1.0)
        assert grown is not None
        assert (grown.finished, grown.generated_tokens, grown.refused) == (2, 24, 0)
        assert grown.gaps > 0
        assert grown.gap_seconds > 0
        assert 0 < grown.cache_hits < grown.prompt_tokens <= grown.cache_queries  # the second prompt was found

        gated.close()
        held = [asyncio.create_task(running.http.post("/v1/completions", json=ASKED, timeout=60)) for _ in range(3)]
        async with asyncio.timeout(30):
            while (await scraper.read(address)).in_flight < 3:  # noqa: ASYNC110 - it is the worker that moves
                await asyncio.sleep(0.01)
        assert (await running.http.post("/v1/completions", json=ASKED)).status_code == 429
        full = await scraper.read(address)
        assert (full.in_flight, full.refused) == (3, 1)
        gated.gate.set()
        await asyncio.gather(*held)


class Door:
    """The way in of a sleeping pool; `wake` makes the real worker ready."""

    def __init__(self, running: Any) -> None:
        self._running = running
        self._ready: list[Worker] = []
        self.knocked = asyncio.Event()
        self.activator = Activator("192.0.2.1", lambda _: self._ready, lambda _: self.knocked.set(), listen="127.0.0.1")

    async def port(self, name: str) -> int:
        return (await self.activator.open(POOL)).ports[name]

    def wake(self) -> None:
        ports = {"http": self._running.http_server.port, "grpc": self._running.server.port}
        where = {"hardware_class": "graviton4", "capacity_type": CapacityType.ON_DEMAND, "node": "node-0"}
        state = {"ready": True, "unschedulable": False, "deleting": False}
        self._ready = [Worker(POOL, **where, **state, name="w0", address="127.0.0.1", ports=ports)]  # type: ignore[arg-type]


async def test_streams_pass_through_a_door_as_they_come(serving: Any) -> None:
    async with serving() as running:
        door = Door(running)
        url = f"http://127.0.0.1:{await door.port('http')}/v1/completions"
        async with httpx.AsyncClient(timeout=60) as client:
            asked = asyncio.create_task(client.post(url, json=ASKED | {"stream": True}))
            await door.knocked.wait()
            assert not asked.done()
            door.wake()
            events = [line.removeprefix("data: ") for line in (await asked).text.splitlines() if line]
            assert events[-1] == "[DONE]"
            text = "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
            direct = await running.http.post("/v1/completions", json=ASKED, timeout=60)
            assert text == direct.json()["choices"][0]["text"]
        await door.activator.close()


async def test_grpc_clients_that_wait_are_answered(serving: Any) -> None:
    async with serving() as running:
        door = Door(running)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{await door.port('grpc')}") as channel:
            request = pb.GenerateRequest(text="1, 2, 3, 4,", sampling={"max_tokens": 8, "temperature": 0})
            call = pb_grpc.GenerationStub(channel).Generate(request, wait_for_ready=True, timeout=60)
            answered = asyncio.create_task(_tokens(call))
            await door.knocked.wait()
            door.wake()
            assert await answered == await _tokens(running.stub.Generate(request))
        await door.activator.close()


async def _tokens(call: Any) -> list[int]:
    return [token async for response in call for token in response.token_ids]
