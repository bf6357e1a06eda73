"""What does the cluster hold that a plan is made from?  Read with the user's own kubeconfig, never written."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kubernetes_asyncio import config

from berth_operator.api import HardwareClass, InferencePool, ServingProfile
from berth_operator.api.names import MANAGED_BY, MANAGED_BY_LABEL
from berth_operator.cluster.kube import Kube
from berth_operator.cluster.observe import (
    Invalid,
    Observation,
    child_decoder,
    decode_hardware_class,
    decode_namespace,
    decode_pool,
    decode_serving_profile,
)
from berth_operator.cluster.resources import (
    DEPLOYMENTS,
    HARDWARE_CLASSES,
    NAMESPACES,
    POOLS,
    SERVING_PROFILES,
    Resource,
)


def read_cluster(kubeconfig: Path | None) -> Observation:
    """Everything in the cluster that a plan is made from.

    Raises berth_operator.cluster.kube.ApiError when the API server refuses or is out of reach.
    """
    return asyncio.run(_read(kubeconfig))


def namespace_in_context(kubeconfig: Path | None) -> str:
    """The namespace that kubectl would use: that of the kubeconfig's current context, else `default`."""
    try:
        _, active = config.list_kube_config_contexts(config_file=str(kubeconfig) if kubeconfig else None)
    except (config.ConfigException, OSError):
        return "default"
    context: Mapping[str, Any] = (active or {}).get("context") or {}
    return str(context.get("namespace") or "default")


async def _read(kubeconfig: Path | None) -> Observation:
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
    decoded = (
        [decode_pool(item) for item in pools]
        + [decode_hardware_class(item) for item in classes]
        + [decode_serving_profile(item) for item in profiles]
    )
    decoded = [item for item in decoded if isinstance(item, Invalid) or item.metadata.deletion_timestamp is None]
    decode_child = child_decoder(DEPLOYMENTS)
    spaces = {item["metadata"]["name"]: decode_namespace(item) for item in namespaces}
    ending = {name for name, namespace in spaces.items() if namespace.terminating}
    return Observation(
        pools=tuple(p for p in decoded if isinstance(p, InferencePool) and p.metadata.namespace not in ending),
        hardware_classes=tuple(item for item in decoded if isinstance(item, HardwareClass)),
        serving_profiles=tuple(item for item in decoded if isinstance(item, ServingProfile)),
        invalid=tuple(item for item in decoded if isinstance(item, Invalid)),
        children=tuple(decode_child(item) for item in deployments),
        namespace_labels={name: namespace.labels for name, namespace in spaces.items()},
    )
