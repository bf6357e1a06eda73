"""Do workers that hang, dribble or lie cost their own pool an answer, by name, and nobody else anything?"""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from berth_operator.api import CapacityType, InferencePool, Quantization
from berth_operator.cluster.observe import Worker
from berth_operator.load.page import LieError
from berth_operator.load.scrape import MOST_BYTES, Limits, Scraper, UnreadableError
from berth_operator.load.watch import Watch, WatchSettings

MakePool = Callable[..., InferencePool]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
QUICK = Limits(total_s=0.5, connect_s=0.5)


def text(running: float = 0, finished: float = 0, waiting: float = 0) -> str:
    return (
        f"vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\n"
        f"vllm:request_success_total {finished}\n"
    )


class Told:
    """A worker's page, as a test sets it."""

    def __init__(self) -> None:
        self.text = text()

    async def __call__(self, _: web.Request) -> web.Response:
        return web.Response(text=self.text)


async def endless(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    try:
        while True:
            await answer.write(b"# nothing of interest\n" * 2000)
    except (ConnectionError, asyncio.CancelledError):
        return answer


async def dribbling(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    try:
        for byte in text() * 100:
            await answer.write(byte.encode())
            await asyncio.sleep(0.05)
    except (ConnectionError, asyncio.CancelledError):
        pass
    return answer


async def silent(_: web.Request) -> web.Response:
    await asyncio.sleep(3600)
    return web.Response()


async def bomb(_: web.Request) -> web.Response:
    return web.Response(body=b"\x1f\x8b" + b"0" * 100, headers={"Content-Encoding": "gzip"})


async def elsewhere(_: web.Request) -> web.Response:
    raise web.HTTPFound("http://127.0.0.1:1/metrics")


async def sick(_: web.Request) -> web.Response:
    return web.Response(text="NaN is not my name", status=500)


Serve = Callable[[Handler], Awaitable[int]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve /metrics on a free loopback port."""
    runners: list[web.AppRunner] = []

    async def start(handler: Handler) -> int:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await handler(request)

        application = web.Application()
        application.router.add_get("/metrics", handle)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return int(runner.addresses[0][1])

    yield start
    await asyncio.gather(*(runner.cleanup() for runner in runners))


@pytest.fixture
async def scraper() -> AsyncIterator[Scraper]:
    """Patient, because a machine may be slow and workers here answer."""
    async with Scraper(Limits(total_s=30, connect_s=30)) as made:
        yield made


@pytest.fixture
async def hasty() -> AsyncIterator[Scraper]:
    async with Scraper(QUICK) as made:
        yield made


def worker(pool: str, port: int, name: str = "w0") -> Worker:
    return Worker(
        pool=f"default/{pool}",
        hardware_class="graviton4",
        capacity_type=CapacityType.ON_DEMAND,
        node="node-0",
        ready=True,
        unschedulable=False,
        deleting=False,
        name=name,
        address="127.0.0.1",
        ports={"http": port},
        quantization=Quantization.INT8,
    )


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Fleet:
    """Pools with workers on loopback, and their watch by a clock of the test's own."""

    def __init__(self, scraper: Scraper, pools: list[InferencePool], workers: list[Worker]) -> None:
        self.clock = Clock()
        self.pools, self.workers = pools, workers
        self.sampled: list[str] = []
        self.watch = Watch(
            scraper,
            lambda: self.pools,
            lambda: self.workers,
            WatchSettings(every_s=5.0),
            on_sample=lambda pool: self.sampled.append(pool.metadata.name),
            clock=self.clock,
        )

    async def rounds(self, count: int = 1, between: Callable[[], None] = lambda: None) -> None:
        for _ in range(count):
            between()
            self.clock.now += 5.0
            await asyncio.gather(*self.watch.begin_round())

    def rate(self, name: str = "agents") -> float | None:
        return self.watch.seen(self.pool(name)).requests_per_second

    def pool(self, name: str) -> InferencePool:
        return next(pool for pool in self.pools if pool.metadata.name == name)


LIARS = {
    "endless": (endless, f"/metrics has more than {MOST_BYTES} bytes", LieError),
    "dribbling": (dribbling, "/metrics was not read within 0.5 s", UnreadableError),
    "silent": (silent, "/metrics was not read within 0.5 s", UnreadableError),
    "bomb": (bomb, "/metrics is compressed", LieError),
    "elsewhere": (elsewhere, "/metrics answers 302: 200 was expected", UnreadableError),
    "sick": (sick, "/metrics answers 500: 200 was expected", UnreadableError),
}


@pytest.mark.parametrize("case", sorted(LIARS))
async def test_a_bad_page_is_cut_off_and_named(serve: Serve, scraper: Scraper, hasty: Scraper, case: str) -> None:
    handler, words, kind = LIARS[case]
    port = await serve(handler)
    with pytest.raises(kind) as found:
        await (hasty if "within" in words else scraper).read(f"127.0.0.1:{port}")
    assert words in str(found.value)


async def test_a_port_where_nobody_listens_is_named(serve: Serve, scraper: Scraper) -> None:
    with pytest.raises(UnreadableError, match="cannot be read"):
        await scraper.read("127.0.0.1:1")


async def test_bodies_without_end_cost_bounded_memory(serve: Serve, scraper: Scraper) -> None:
    port = await serve(endless)
    tracemalloc.start()
    for _ in range(5):
        with pytest.raises(LieError):
            await scraper.read(f"127.0.0.1:{port}")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * MOST_BYTES


async def test_demand_is_summed_over_a_pools_workers(make_pool: MakePool, serve: Serve, scraper: Scraper) -> None:
    one, two = Told(), Told()
    workers = [worker("agents", await serve(one), "w0"), worker("agents", await serve(two), "w1")]
    fleet = Fleet(scraper, [make_pool(scaling={"mode": "Observed"})], workers)
    count = 0

    def more() -> None:
        nonlocal count
        count += 10
        one.text, two.text = text(2, count), text(1, 3 * count)

    await fleet.rounds(20, more)
    assert fleet.rate() == pytest.approx((10 + 30) / 5, rel=0.1)
    assert fleet.watch.troubles("default/agents").texts == ()
    assert len(fleet.sampled) == 20


LIES = ["NaN", "-4", "1e18", "many", "+Inf"]


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_is_named_and_moves_nothing(make_pool: MakePool, serve: Serve, scraper: Scraper, lie: str) -> None:
    honest, liar = Told(), Told()
    workers = [worker("agents", await serve(honest), "honest"), worker("agents", await serve(liar), "liar")]
    fleet = Fleet(scraper, [make_pool(scaling={"mode": "Observed"})], workers)
    count = 0

    def more() -> None:
        nonlocal count
        count += 20
        honest.text, liar.text = text(2, count), text(2, count)

    await fleet.rounds(70, more)
    before = fleet.watch.seen(fleet.pool("agents"))
    assert before.peak_requests_per_second is not None

    def lying() -> None:
        more()
        liar.text = f"vllm:num_requests_running {lie}\nvllm:num_requests_waiting 0\nvllm:request_success_total {lie}\n"

    await fleet.rounds(20, lying)
    troubles = fleet.watch.troubles("default/agents")
    assert troubles.lies and len(troubles.texts) == 1 and troubles.texts[0].startswith("worker liar: ")
    after = fleet.watch.seen(fleet.pool("agents"))
    assert after.requests_per_second and before.requests_per_second
    assert after.requests_per_second <= before.requests_per_second * 1.01
    assert after.peak_requests_per_second is None, "what the liar hides may be traffic: demand must not fall"
    await fleet.rounds(20, more)
    assert fleet.watch.troubles("default/agents").texts == ()


async def test_counters_that_fall_again_and_again_are_a_lie(
    make_pool: MakePool, serve: Serve, scraper: Scraper
) -> None:
    told, turn = Told(), 0
    fleet = Fleet(scraper, [make_pool(scaling={"mode": "Observed"})], [worker("agents", await serve(told))])

    def flip() -> None:
        nonlocal turn
        turn += 1
        told.text = text(0, 5000 * (turn % 2))

    await fleet.rounds(30, flip)
    assert "counters fall again and again" in fleet.watch.troubles("default/agents").texts[0]
    assert fleet.watch.seen(fleet.pool("agents")).peak_requests_per_second is None


async def test_a_worker_that_started_again_is_no_liar(make_pool: MakePool, serve: Serve, scraper: Scraper) -> None:
    told = Told()
    fleet = Fleet(scraper, [make_pool(scaling={"mode": "Observed"})], [worker("agents", await serve(told))])
    for finished in (1000, 1010, 3, 13, 23, 33):
        told.text = text(1, finished)
        await fleet.rounds()
    assert fleet.watch.troubles("default/agents").texts == ()
    assert fleet.rate() == pytest.approx(10 / 5, rel=0.4)


async def test_a_pool_of_liars_delays_nobody_else(make_pool: MakePool, serve: Serve, scraper: Scraper) -> None:
    """A hundred workers that hang, and one pool beside them that is read as ever."""
    told, hanging = Told(), await serve(silent)
    bad = [worker("bad", hanging, f"w{i}") for i in range(100)]
    pools = [make_pool("bad", scaling={"mode": "Observed"}), make_pool(scaling={"mode": "Observed"})]
    fleet = Fleet(scraper, pools, [*bad, worker("agents", await serve(told))])
    tasks = fleet.watch.begin_round()
    (good,) = (task for task in tasks if "agents" in task.get_name())
    await good
    assert fleet.sampled == ["agents"]
    others = [task for task in tasks if task is not good]
    assert not any(task.done() for task in others)
    fleet.clock.now += 5
    again = fleet.watch.begin_round()
    assert [task.get_name() for task in again] == ["read workers of default/agents"]
    for task in others:
        task.cancel()
    await asyncio.gather(*again, *others, return_exceptions=True)


async def test_who_fails_is_asked_less_and_less_often(make_pool: MakePool, scraper: Scraper) -> None:
    asked: list[str] = []

    class Failing:
        async def read(self, address: str) -> Any:
            asked.append(address)
            raise UnreadableError("no")

    fleet = Fleet(scraper, [make_pool(scaling={"mode": "Observed"})], [worker("agents", 1)])
    fleet.watch._reader = Failing()
    await fleet.rounds(120)  # ten minutes
    assert 10 <= len(asked) <= 16
    assert fleet.watch.troubles("default/agents").texts == ("worker w0: no",)


async def test_what_old_workers_said_is_forgotten_with_them(
    make_pool: MakePool, serve: Serve, scraper: Scraper
) -> None:
    told = Told()
    fleet = Fleet(scraper, [make_pool(scaling={"mode": "Observed"})], [worker("agents", await serve(told))])
    await fleet.rounds(3)
    assert fleet.rate() == 0
    fleet.workers = []
    await fleet.rounds()
    assert fleet.rate() is None
    assert not fleet.watch._known and not fleet.watch._histories


async def test_pools_whose_demand_is_declared_are_read_now_and_then_for_their_speed(
    make_pool: MakePool, serve: Serve, scraper: Scraper
) -> None:
    told = Told()
    fleet = Fleet(scraper, [make_pool()], [worker("agents", await serve(told))])
    await fleet.rounds(9)
    assert len(fleet.sampled) == 3
    assert fleet.rate() is None
    assert list(fleet.watch.evidence("default/agents")) == [("graviton4", Quantization.INT8)]
