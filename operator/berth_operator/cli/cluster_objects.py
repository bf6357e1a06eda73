"""What does the cluster hold that a plan is made from?  Read with the user's own kubeconfig, never written."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from berth_operator.api import HardwareClass, InferencePool, ServingProfile
from berth_operator.api.names import LEADER_WORKER_SET, MANAGED_BY, MANAGED_BY_LABEL
from berth_operator.cluster.connection import config
from berth_operator.cluster.groups import as_seen, replicas_of
from berth_operator.cluster.kube import ApiError, Kube, kubeconfig_exists
from berth_operator.cluster.observe import (
    Invalid,
    Observation,
    child_decoder,
    decode_hardware_class,
    decode_namespace,
    decode_pool,
    decode_serving_profile,
    decode_worker,
)
from berth_operator.cluster.resources import (
    DEPLOYMENTS,
    HARDWARE_CLASSES,
    LEADER_WORKER_SETS,
    NAMESPACES,
    NODES,
    PODS,
    POOLS,
    SERVING_PROFILES,
    Resource,
)
from berth_operator.node_check import NODE_POOLS
from berth_operator.surroundings import belonging


@dataclass(frozen=True, slots=True)
class ClusterNodes:
    """Nodes and Karpenter NodePools, as far as the user may read them."""

    nodes: Sequence[dict[str, Any]] = ()
    node_pools: Sequence[dict[str, Any]] = ()
    read: bool = False
    remarks: tuple[str, ...] = ()


def read_cluster(kubeconfig: Path | None, *, nodes: bool = False) -> tuple[Observation, ClusterNodes]:
    """Everything in the cluster that a plan is made from, and its nodes where they are asked for.

    Raises berth_operator.cluster.kube.ApiError when the API server refuses or is out of reach; not being allowed to
    read nodes is a remark.
    """
    return asyncio.run(_read(kubeconfig, nodes))


async def read_nodes(kube: Kube) -> ClusterNodes:
    """Nodes, and NodePools where Karpenter is installed.  Raises ApiError."""
    nodes = (await kube.list(NODES)).items
    try:
        return ClusterNodes(nodes, (await kube.list(NODE_POOLS)).items, read=True)
    except ApiError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return ClusterNodes(nodes, read=True)
        raise


async def _nodes_if_allowed(kube: Kube) -> ClusterNodes:
    try:
        return await read_nodes(kube)
    except ApiError as error:
        if error.status == HTTPStatus.FORBIDDEN:
            return ClusterNodes(remarks=("nodes may not be read, so whether each class has some was not checked",))
        raise


def namespace_in_context(kubeconfig: Path | None) -> str:
    """The namespace that kubectl would use: that of the kubeconfig's current context, else `default`."""
    if not kubeconfig_exists(str(kubeconfig) if kubeconfig else None):
        return "default"
    try:
        _, active = config.list_kube_config_contexts(config_file=str(kubeconfig) if kubeconfig else None)
    except (config.ConfigException, OSError):
        return "default"
    context: Mapping[str, Any] = (active or {}).get("context") or {}
    return str(context.get("namespace") or "default")


async def _if_allowed(kube: Kube, resource: Resource) -> Sequence[dict[str, Any]] | None:
    """Ours; None where the kind is not installed or may not be read."""
    try:
        return (await kube.list(resource, labels=f"{MANAGED_BY_LABEL}={MANAGED_BY}")).items
    except ApiError as error:
        if error.status in (HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN):
            return None
        raise


async def _read(kubeconfig: Path | None, with_nodes: bool) -> tuple[Observation, ClusterNodes]:
    async with await Kube.connect(str(kubeconfig) if kubeconfig else None) as kube:

        async def listed(resource: Resource, labels: str = "") -> Sequence[dict[str, Any]]:
            return (await kube.list(resource, labels=labels)).items

        pools, classes, profiles, namespaces, deployments = await asyncio.gather(
            listed(POOLS),
            listed(HARDWARE_CLASSES),
            listed(SERVING_PROFILES),
            listed(NAMESPACES),
            listed(DEPLOYMENTS, f"{MANAGED_BY_LABEL}={MANAGED_BY}"),
        )
        groups = await _if_allowed(kube, LEADER_WORKER_SETS)
        pods = await _if_allowed(kube, PODS)
        nodes = await _nodes_if_allowed(kube) if with_nodes else ClusterNodes()
    decoded = (
        [decode_pool(item) for item in pools]
        + [decode_hardware_class(item) for item in classes]
        + [decode_serving_profile(item) for item in profiles]
    )
    decoded = [item for item in decoded if isinstance(item, Invalid) or item.metadata.deletion_timestamp is None]
    found = [*map(child_decoder(DEPLOYMENTS), deployments), *map(child_decoder(LEADER_WORKER_SETS), groups or ())]
    spaces = {item["metadata"]["name"]: decode_namespace(item) for item in namespaces}
    ending = {name for name, namespace in spaces.items() if namespace.terminating}
    of_cluster = tuple(p for p in decoded if isinstance(p, InferencePool) and p.metadata.namespace not in ending)
    workers = replicas_of(worker for worker in map(decode_worker, pods or ()) if worker)
    if pods is None:
        remark = "pods may not be read: of hardware that cannot be had, what is ready counts as what has a node"
        nodes = replace(nodes, remarks=(*nodes.remarks, remark))
    observed = Observation(
        pools=of_cluster,
        hardware_classes=tuple(item for item in decoded if isinstance(item, HardwareClass)),
        serving_profiles=tuple(item for item in decoded if isinstance(item, ServingProfile)),
        invalid=tuple(item for item in decoded if isinstance(item, Invalid)),
        children=belonging(found if pods is None else as_seen(found, workers), of_cluster),
        workers=workers,
        workers_read=pods is not None,
        available=frozenset() if groups is None else frozenset({LEADER_WORKER_SET}),
        namespace_labels={name: namespace.labels for name, namespace in spaces.items()},
    )
    return observed, nodes
