"""What does the loop see of Kubernetes?  One object: follow the cluster, observe it, write children and statuses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

from berth_operator.api import HardwareClass, InferencePool, ServingProfile
from berth_operator.api.names import MANAGED_BY, MANAGED_BY_LABEL, POOL_LABEL
from berth_operator.cluster.apply import Applier
from berth_operator.cluster.discovery import Discovery
from berth_operator.cluster.groups import as_seen, replicas_of
from berth_operator.cluster.kube import PAGE, ApiError, Kube
from berth_operator.cluster.neighbours import decode_autoscaler
from berth_operator.cluster.node_watch import NodeWatch
from berth_operator.cluster.observe import (
    Child,
    Invalid,
    Observation,
    Worker,
    child_decoder,
    decode_hardware_class,
    decode_namespace,
    decode_pool,
    decode_serving_profile,
    decode_worker,
)
from berth_operator.cluster.reflector import Reflector
from berth_operator.cluster.resources import (
    AUTOSCALERS,
    CHILDREN,
    ENDPOINT_SLICES,
    HARDWARE_CLASSES,
    NAMESPACES,
    PODS,
    POOLS,
    SERVING_PROFILES,
    Object,
    Resource,
)

T = TypeVar("T")

_AUTOSCALERS_SECONDS: Final = 3.0
_POOLS_PAGE: Final = 50
"""A pool's status is long: some 50 KB once it is parsed."""
_UNDECLARED: Final = "field not declared in schema"
"""What the API server says of a status with a field that its CRD has not."""
_OURS = f"{MANAGED_BY_LABEL}={MANAGED_BY},{POOL_LABEL}"


class Cluster:
    """The cluster as the loop knows it.  `on_change` is called whenever something that matters has changed."""

    def __init__(
        self,
        kube: Kube,
        on_change: Callable[[], None],
        namespaces: Sequence[str] = (),
        integrations: Iterable[str] = (),
        discover_every_s: float = 30.0,
        *,
        watch_nodes: bool = False,
        activator: bool = False,
    ) -> None:
        """`namespaces`: those whose pools are served; empty means all.  `integrations`: keys of OPTIONAL_CHILDREN.

        `watch_nodes`: for word that they go away.  `activator`: pools may have endpoints of ours.
        """

        def follow(
            resource: Resource,
            decode: Callable[[Object], T],
            labels: str = "",
            *,
            everywhere: bool = False,
            page: int = PAGE,
        ) -> Reflector[T]:
            scopes = () if everywhere else namespaces
            return Reflector(kube, resource, decode, namespaces=scopes, labels=labels, on_change=on_change, page=page)

        self.kube = kube
        self.pools = follow(POOLS, decode_pool, page=_POOLS_PAGE)
        self.hardware_classes = follow(HARDWARE_CLASSES, decode_hardware_class, everywhere=True)
        self.serving_profiles = follow(SERVING_PROFILES, decode_serving_profile, everywhere=True)
        self.namespaces = follow(NAMESPACES, decode_namespace)
        kinds = (*CHILDREN, ENDPOINT_SLICES) if activator else CHILDREN
        self.children = {resource: follow(resource, child_decoder(resource), _OURS) for resource in kinds}
        self.workers = follow(PODS, decode_worker, _OURS)
        self.autoscalers = follow(AUTOSCALERS, decode_autoscaler)
        self.discovery = Discovery(
            kube,
            integrations,
            lambda resource: follow(resource, child_decoder(resource), _OURS),
            self.children,
            on_change,
            discover_every_s,
        )
        self.nodes = NodeWatch(kube, self._hosts, on_change) if watch_nodes else None
        self.applier = Applier(kube, self.children)

    @property
    def _reflectors(self) -> list[Reflector[object]]:
        fixed = [self.pools, self.hardware_classes, self.serving_profiles, self.namespaces, self.workers]
        return [*fixed, *self.children.values()]  # type: ignore[list-item]

    async def run(self) -> None:
        """Follow everything until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in self._reflectors:
                group.create_task(reflector.run(), name=f"follow {reflector.resource}")
            group.create_task(self.autoscalers.run(), name=f"follow {AUTOSCALERS}")
            group.create_task(self.discovery.run(), name="discovery")
            if self.nodes:
                group.create_task(self.nodes.run(), name="follow nodes")

    async def wait_synced(self) -> None:
        """Return once everything has been listed; autoscalers, which need not be granted, within a moment or not."""
        await asyncio.gather(*(reflector.wait_synced() for reflector in self._reflectors), self.discovery.wait_asked())
        with suppress(TimeoutError):
            await asyncio.wait_for(self.autoscalers.wait_synced(), _AUTOSCALERS_SECONDS)

    @property
    def unsynced(self) -> list[str]:
        """Resources not listed yet."""
        return [str(reflector.resource) for reflector in self._reflectors if not reflector.synced]

    def observe(self) -> Observation:
        """The cluster now, less custom resources that are being deleted, alone or with their namespace."""
        ending = {name for (_, name), namespace in self.namespaces.items() if namespace.terminating}
        pools = [pool for (namespace, _), pool in self.pools.items() if namespace not in ending]
        raw = [*pools, *self.hardware_classes.values(), *self.serving_profiles.values()]
        children, workers = self.observed_children_and_workers()
        return Observation(
            pools=_alive(pools, InferencePool),
            hardware_classes=_alive(self.hardware_classes.values(), HardwareClass),
            serving_profiles=_alive(self.serving_profiles.values(), ServingProfile),
            invalid=tuple(item for item in raw if isinstance(item, Invalid)),
            children=children,
            workers=workers,
            namespace_labels={name: namespace.labels for (_, name), namespace in self.namespaces.items()},
            available=self.discovery.available,
            autoscalers=tuple(scaler for scaler in self.autoscalers.values() if scaler is not None),
        )

    def observed_children_and_workers(self) -> tuple[tuple[Child, ...], tuple[Worker, ...]]:
        """Every child, as far as its workers bear it out, and every worker."""
        workers = self.observed_workers()
        children = [child for reflector in self.children.values() for child in reflector.values()]
        return as_seen(children, workers), workers

    def observed_workers(self) -> tuple[Worker, ...]:
        """Every worker, with the notice of its node; of a replica that spans nodes one, with that of any."""
        workers = (worker for worker in self.workers.values() if worker is not None)
        if self.nodes is None:
            return replicas_of(workers)
        notice = self.nodes.notice
        return replicas_of(replace(w, notice=found) if (found := notice(w.node)) else w for w in workers)

    def _hosts(self) -> set[str]:
        return {worker.node for worker in self.workers.values() if worker is not None and worker.node}

    def known_pools(self) -> tuple[InferencePool, ...]:
        """Pools that parse and are not being deleted; none before the first list."""
        return _alive(self.pools.values(), InferencePool)

    def known_hardware_classes(self) -> tuple[HardwareClass, ...]:
        """Hardware classes that parse and are not being deleted; none before the first list."""
        return _alive(self.hardware_classes.values(), HardwareClass)

    async def write_pool_status(self, namespace: str | None, name: str, resource_version: str, status: Object) -> None:
        """Apply the status of a pool as of a resource version.  Raises ApiError: 409 when it has changed since."""
        self.pools.note(await self._write_status(POOLS, namespace, name, resource_version, status))

    async def write_hardware_class_status(self, name: str, resource_version: str, status: Object) -> None:
        """Apply the status of a class as of a resource version.  Raises ApiError: 409 when it has changed since."""
        self.hardware_classes.note(await self._write_status(HARDWARE_CLASSES, None, name, resource_version, status))

    async def _write_status(
        self, resource: Resource, namespace: str | None, name: str, resource_version: str, status: Object
    ) -> Object:
        metadata = {"name": name, "resourceVersion": resource_version}
        manifest = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": metadata | ({"namespace": namespace} if namespace else {}),
            "status": status,
        }
        try:
            return await self.kube.apply(resource, manifest, subresource="status")
        except ApiError as error:
            if _UNDECLARED not in str(error):
                raise
            text = (
                f"{error}: the CRDs are older than this operator: apply those of its chart (crds.install), or of crds/"
            )
            raise ApiError(error.status, text, reason=error.reason) from error


K = TypeVar("K", InferencePool, HardwareClass, ServingProfile)


def _alive(items: Iterable[object], kind: type[K]) -> tuple[K, ...]:
    found = (item for item in items if isinstance(item, kind) and item.metadata.deletion_timestamp is None)
    return tuple(sorted(found, key=lambda item: (item.metadata.namespace or "", item.metadata.name)))
