"""The real model, loaded once for all tests of the worker, and a whole worker in the test's own event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import openai
import pytest
from berth_worker.engine.limits import EngineConfig
from berth_worker.proto.berth.v1 import generation_pb2_grpc as pb_grpc
from berth_worker.server.grpc_face import GrpcServer
from berth_worker.server.http_face import HttpServer
from berth_worker.server.metrics import Metrics
from berth_worker.server.worker import Worker

if TYPE_CHECKING:
    import torch
    from berth_worker.engine.batch import Batch
    from berth_worker.engine.engine import Engine
    from berth_worker.model.interface import KVCache, LoadedModel, Logits, Model

MODEL = "smollm2-135m-instruct"
pytest.register_assert_rewrite("scheduler_harness")


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    """The embedded Llama as it is served by default."""
    from berth_worker.model import load  # noqa: PLC0415 - torch takes seconds: not for tests that need no model

    return load(MODEL, quantization="Int8", threads=2)


class Gated:
    """The real model behind a gate: closed, a step waits in the model; `fault` may spoil or fail a step."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.config = model.config
        self.kv_bytes_per_block = model.kv_bytes_per_block
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.fault: Callable[[torch.Tensor], torch.Tensor] | None = None

    def new_cache(self, num_blocks: int) -> KVCache:
        return self._model.new_cache(num_blocks)

    def forward(self, batch: Batch, cache: KVCache) -> Logits:
        self.entered.set()
        assert self.gate.wait(60), "a test left the gate closed"
        logits = self._model.forward(batch, cache)
        return logits if self.fault is None else logits.of(self.fault(logits.values))

    def close(self) -> None:
        """Let the next step wait; returns once the engine may be anywhere before it."""
        self.gate.clear()
        self.entered.clear()


@pytest.fixture
def gated(loaded: LoadedModel) -> Iterator[Gated]:
    model = Gated(loaded.model)
    yield model
    model.gate.set()


@pytest.fixture
def make_engine(loaded: LoadedModel, gated: Gated) -> Iterator[Callable[..., Engine]]:
    """Engines over the gated real model, with small limits unless a test says otherwise; stopped after the test."""
    from berth_worker.engine.engine import Engine  # noqa: PLC0415 - as above

    engines: list[Engine] = []

    def make(*, start: bool = True, observer: Any = None, **limits: Any) -> Engine:
        config = EngineConfig(
            **{"max_running": 8, "max_waiting": 8, "max_context_tokens": 512, "kv_cache_tokens": 4096} | limits
        )
        engine = Engine(gated, loaded.tokenizer, config, observer=observer)
        engines.append(engine)
        if start:
            engine.start()
        return engine

    yield make
    gated.gate.set()
    for engine in engines:
        engine.stop()


@dataclass
class Running:
    """A worker that answers on loopback."""

    worker: Worker
    server: GrpcServer
    channel: grpc.aio.Channel
    stub: pb_grpc.GenerationStub
    http: httpx.AsyncClient
    http_server: HttpServer

    @property
    def engine(self) -> Engine:
        assert self.worker.engine is not None
        return self.worker.engine


Serving = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def serving(make_engine: Callable[..., Engine]) -> Serving:
    """`async with serving(max_running=2) as running:` both faces on free ports; load=False leaves it loading."""

    @asynccontextmanager
    async def serve(*, load: bool = True, **limits: Any) -> AsyncIterator[Running]:
        worker = Worker()
        http_server = HttpServer(worker, "127.0.0.1", 0)
        server = GrpcServer(worker, "127.0.0.1", 0)
        http_server.start()
        await server.start()
        if load:
            limits = {"max_context_tokens": 512, "kv_cache_tokens": 4096} | limits
            metrics = Metrics(MODEL, EngineConfig(**limits))
            engine = make_engine(start=False, observer=metrics, **limits)
            metrics.watch(engine)
            worker.serve(engine, MODEL, metrics)
            await server.show_health()
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_server.port}") as http,
        ):
            try:
                yield Running(worker, server, channel, pb_grpc.GenerationStub(channel), http, http_server)
            finally:
                await server.stop(0)
                await http_server.stop()

    return serve


@pytest.fixture
def talking(serving: Any) -> Callable[..., Any]:
    """`async with talking() as (client, running):` OpenAI's client, on loopback and without retries."""

    @asynccontextmanager
    async def talk(**limits: Any) -> AsyncIterator[tuple[openai.AsyncOpenAI, Any]]:
        async with serving(**limits) as running:
            url = str(running.http.base_url.join("/v1"))
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
                yield client, running

    return talk


@pytest.fixture(scope="module")
def one_worker(loaded: LoadedModel) -> Iterator[str]:
    """The address of a worker that serves, in a thread of its own, all tests that it refuses."""
    from berth_worker.engine.engine import Engine  # noqa: PLC0415 - torch takes seconds

    config = EngineConfig(max_context_tokens=512, kv_cache_tokens=1024)
    engine = Engine(loaded.model, loaded.tokenizer, config)
    worker, started, end = Worker(), threading.Event(), threading.Event()
    addresses = []

    async def serve() -> None:
        server = HttpServer(worker, "127.0.0.1", 0)
        server.start()
        worker.serve(engine, MODEL, Metrics(MODEL, config))
        addresses.append(f"http://127.0.0.1:{server.port}")
        started.set()
        await asyncio.to_thread(end.wait)
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(30)
    yield addresses[0]
    end.set()
    thread.join()
    engine.stop()
