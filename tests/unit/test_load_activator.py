"""Do a sleeping pool's clients wait, wake it, and get every byte of their worker's answer?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from berth_operator.api import CapacityType, InferencePool
from berth_operator.cluster.observe import Worker
from berth_operator.load.activator import Activator
from berth_operator.render import activation_slice

POOL = "default/agents"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


class Stage:
    """An activator on loopback, workers that a test brings, and who has knocked."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self.knocks: list[str] = []
        self.knocked = asyncio.Event()
        self.activator = Activator("192.0.2.1", lambda _: self.workers, self._knock, listen="127.0.0.1")
        self._servers: list[asyncio.Server] = []

    def _knock(self, pool: str) -> None:
        self.knocks.append(pool)
        self.knocked.set()

    async def worker(self, serve: Handler, port_name: str = "http") -> None:
        """A worker becomes ready."""
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self._servers.append(server)
        self.workers = [worker(port_name, server.sockets[0].getsockname()[1])]

    async def client(self, port_name: str = "http") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        doors = await self.activator.open(POOL)
        return await asyncio.open_connection("127.0.0.1", doors.ports[port_name])

    async def close(self) -> None:
        await self.activator.close()
        for server in self._servers:
            server.close()


def worker(port_name: str, port: int) -> Worker:
    return Worker(
        pool=POOL,
        hardware_class="graviton4",
        capacity_type=CapacityType.ON_DEMAND,
        node="node-0",
        ready=True,
        unschedulable=False,
        deleting=False,
        name="w0",
        address="127.0.0.1",
        ports={port_name: port},
    )


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    made = Stage()
    yield made
    await made.close()


async def shouting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each line in capitals, until the client has no more."""
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()


@pytest.fixture(autouse=True)
async def patience() -> AsyncIterator[None]:
    async with asyncio.timeout(30):
        yield


@pytest.mark.parametrize("port_name", ["http", "grpc"])
async def test_a_client_waits_wakes_the_pool_and_is_answered(stage: Stage, port_name: str) -> None:
    reader, writer = await stage.client(port_name)
    writer.write(b"hello\n")
    await stage.knocked.wait()
    assert stage.knocks == [POOL]
    assert stage.activator.knocking(POOL)
    await stage.worker(shouting, port_name)
    assert await reader.readline() == b"HELLO\n"
    assert not stage.activator.knocking(POOL)
    writer.write(b"and again\n")  # the connection goes on
    assert await reader.readline() == b"AND AGAIN\n"
    writer.write_eof()
    assert await reader.read() == b""


async def test_a_hundred_clients_are_all_answered_and_none_twice(stage: Stage) -> None:
    clients = [await stage.client() for _ in range(100)]
    for i, (_, writer) in enumerate(clients):
        writer.write(f"request {i}\n".encode())
    await stage.knocked.wait()
    await stage.worker(shouting)
    for i, (reader, writer) in enumerate(clients):
        assert await reader.readline() == f"REQUEST {i}\n".encode()
        writer.close()


async def test_bytes_pass_unchanged_both_ways_however_many(stage: Stage) -> None:
    sent = bytes(range(256)) * 16_384  # 4 MiB: far more than any buffer on the way

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(10_000):
            writer.write(data)
            await writer.drain()
        writer.close()

    reader, writer = await stage.client()
    await stage.worker(echo)

    async def send() -> None:
        for start in range(0, len(sent), 50_000):
            writer.write(sent[start : start + 50_000])
            await writer.drain()
        writer.write_eof()

    sending = asyncio.create_task(send())
    assert await reader.read(-1) == sent
    await sending


async def test_a_probe_that_sends_nothing_wakes_nobody(stage: Stage) -> None:
    _, writer = await stage.client()
    writer.close()
    await writer.wait_closed()
    _, writer = await stage.client()
    writer.write(b"x\n")
    await stage.knocked.wait()
    assert len(stage.knocks) == 1


async def test_a_client_that_gives_up_no_longer_knocks(stage: Stage) -> None:
    _, writer = await stage.client()
    writer.write(b"hello\n")
    await stage.knocked.wait()
    writer.close()
    while stage.activator.knocking(POOL):  # noqa: ASYNC110 - what is awaited is state, with the fixture's limit
        await asyncio.sleep(0.01)


async def test_a_worker_that_takes_no_connection_yet_is_tried_again(stage: Stage) -> None:
    stage.workers = [worker("http", 1)]  # ready, says Kubernetes; nobody listens
    reader, writer = await stage.client()
    writer.write(b"hello\n")
    await stage.knocked.wait()
    await stage.worker(shouting)
    assert await reader.readline() == b"HELLO\n"


async def test_doors_stay_where_they_are_and_close_when_nobody_needs_them(stage: Stage) -> None:
    first = await stage.activator.open(POOL)
    assert await stage.activator.open(POOL) is first
    stage.activator.keep_only({POOL})
    _, writer = await stage.client()
    writer.close()
    stage.activator.keep_only(set())
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", first.ports["http"])


async def test_the_slice_adds_the_doors_to_the_pools_service(
    stage: Stage, make_pool: Callable[..., InferencePool]
) -> None:
    doors = await stage.activator.open(POOL)
    manifest = activation_slice(make_pool(), doors.address, doors.ports)
    assert manifest["metadata"]["labels"]["kubernetes.io/service-name"] == "agents"
    assert manifest["endpoints"] == [{"addresses": ["192.0.2.1"], "conditions": {"ready": True}}]
    assert {p["name"]: p["port"] for p in manifest["ports"]} == doors.ports
    assert manifest["addressType"] == "IPv4"
    assert activation_slice(make_pool(), "2001:db8::1", doors.ports)["addressType"] == "IPv6"
