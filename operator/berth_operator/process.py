"""What runs in one operator process?  Connection, reflectors, Lease, loop and metrics, started and stopped together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import prometheus_client

from berth_operator.api import InferencePool
from berth_operator.autoscaler import Karpenter
from berth_operator.cluster.cluster import Cluster
from berth_operator.cluster.kube import Kube
from berth_operator.cluster.lease import Lease
from berth_operator.cluster.observe import Worker
from berth_operator.cluster.presence import Presence, Release, both_serve
from berth_operator.evacuator import Evacuator
from berth_operator.executor import Executor, ExecutorSettings
from berth_operator.garbage import Garbage
from berth_operator.kopf_import import kopf
from berth_operator.load.activator import Activator
from berth_operator.load.scrape import Scraper
from berth_operator.load.traffic import Traffic
from berth_operator.load.watch import Watch
from berth_operator.loop import Loop, LoopSettings
from berth_operator.node_check import NodeCheck
from berth_operator.prices.feed import PriceFeed
from berth_operator.settings import Settings
from berth_operator.telemetry import Telemetry

log = logging.getLogger(__name__)


class Operator:
    """One replica of the operator.  `ending` is set when it must end, and `failed` tells whether by its own fault."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self._registry)
        prometheus_client.GCCollector(registry=self._registry)
        self._telemetry = Telemetry(self._registry)
        self._tasks: list[asyncio.Task[None]] = []
        self.ending = asyncio.Event()
        self.failed = False

    async def prepare(self) -> None:
        """Listen for scrapes and find the API server.

        Raises OSError when it cannot listen, ApiError without a way, AwsPriceError when AWS's prices are wanted and
        boto3 is not installed.
        """
        host, port = self._settings.metrics_address
        self._server, _ = prometheus_client.start_http_server(port, host, self._registry)
        self._kube = await Kube.connect(self._settings.kubeconfig)
        settings = self._settings
        self._cluster = Cluster(
            self._kube,
            self._wake,
            settings.watch_namespaces,
            settings.integrations,
            settings.discover_s,
            watch_nodes=settings.watch_nodes,
            activator=bool(settings.load.activator_address),
        )
        classes = self._cluster.known_hardware_classes
        self._feed = PriceFeed(self._kube, self._settings.feeds, classes, self._wake)
        self._nodes = NodeCheck(self._kube, classes, self._wake, self._settings.node_check_s)
        self._karpenter = Karpenter(self._kube, self._wake)
        duration = self._settings.lease_duration_s
        self._lease = Lease(
            self._kube,
            self._settings.namespace,
            self._settings.identity,
            on_change=self._wake,
            name=self._settings.lease_name,
            owner=self._settings.lease_name,  # the chart calls its Deployment so
            duration_s=duration,
            renew_every_s=duration / 5,
        )
        self._presence = Presence(
            self._kube,
            Release(f"{settings.namespace}/{settings.lease_name}", frozenset(settings.watch_namespaces)),
            self._lease.held,
            on_change=self._wake,
            every_s=settings.presence_s,
        )

    async def start(self) -> None:
        """Begin to follow the cluster and, as leader, to plan; returns at once.  Comes after `prepare`."""
        if self._settings.leader_elect:
            self._kube.may_write, self._kube.write_seconds = self._lease.held, self._lease.seconds_left
        settings = self._settings
        self._scraper = Scraper()
        self._watch = Watch(
            self._scraper,
            self._cluster.known_pools,
            self._cluster.observed_workers,
            settings.load.watch,
            on_sample=self._sampled,
            active=self._kube.may_write,
        )
        self._activator = self._make_activator()
        self._traffic = Traffic(self._watch, self._activator)
        self._executor = Executor(
            self._cluster,
            self._telemetry,
            ExecutorSettings(settings.render, settings.prices, settings.shortage, settings.max_moves),
            on_refreshed=self._wake,
            quotes=(lambda: self._feed.quotes) if settings.feeds.any else None,
            unmatched=lambda: self._nodes.faults,
            traffic=self._traffic,
            nodes=lambda: self._nodes.there,
            refusals=self._karpenter.refusals,
            beside=lambda namespace: both_serve(namespace, self._presence.own, self._presence.others),
        )
        pace = LoopSettings(settings.debounce_s, settings.interval_s)
        about = self._cluster, self._executor, self._telemetry, pace
        self._loop = Loop(*about, leading=self._kube.may_write, on_quiet=Garbage().look)
        self._evacuator = Evacuator(self._cluster, self._kube.may_write, self._executor.stand_in)
        self._run("reflectors", self._cluster.run())
        if settings.feeds.any:
            self._run("prices", self._feed.run())
        if settings.node_check_s:
            self._run("nodes", self._nodes.run())
        self._run("load", self._watch.run())
        if settings.karpenter:
            self._run("karpenter", self._karpenter.run())
        self._run("loop", self._loop.run())
        self._run("evacuation", self._evacuator.run())
        if self._settings.leader_elect:
            self._run("lease", self._lease.run())
            self._run("presence", self._presence.run())

    async def stop(self) -> None:
        """Stop writing, then give up the Lease and close every connection."""
        for task in self._tasks:
            task.remove_done_callback(self._ended)
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._lease.held():
            await self._presence.leave()
        await self._lease.release()
        if self._activator:
            await self._activator.close()
        await self._scraper.close()
        await self._kube.close()
        await asyncio.to_thread(self._server.shutdown)
        self.ending.set()  # kopf waits five seconds for whoever still waits for it
        log.info("stopped")

    async def connection(self) -> kopf.ConnectionInfo:
        """How to reach the API server, and as whom, in kopf's terms."""
        configuration = self._kube.configuration
        token = await configuration.get_api_key_with_prefix("BearerToken")
        return kopf.ConnectionInfo(
            server=str(configuration.host),
            ca_path=configuration.ssl_ca_cert,
            insecure=not configuration.verify_ssl,
            token=token.removeprefix("Bearer ") if token else None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
        )

    def health(self) -> str:
        """What the liveness endpoint says.  Raises RuntimeError when only a restart helps."""
        if self._loop.stuck:
            raise RuntimeError("the loop is stuck in one pass")
        return "leading" if self._kube.may_write() else "standing by"

    def _wake(self) -> None:
        self._loop.mark_dirty()
        self._evacuator.mark_dirty()

    def _make_activator(self) -> Activator | None:
        address = self._settings.load.activator_address
        if not address:
            return None
        listen = self._settings.load.activator_listen
        return Activator(address, self._ready_workers, self._knocked, listen=listen)

    def _ready_workers(self, pool: str) -> list[Worker]:
        found = (w for w in self._cluster.observed_workers() if w.pool == pool)
        return [worker for worker in found if worker.ready and worker.traffic and not worker.deleting]

    def _knocked(self, pool: str) -> None:
        self._traffic.knock(pool)
        self._wake()

    def _sampled(self, pool: InferencePool) -> None:
        if self._traffic.matters(pool):
            self._wake()

    def _run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        log.error("%s ended: the operator cannot go on", task.get_name(), exc_info=error)
        self.failed = True
        self.ending.set()
