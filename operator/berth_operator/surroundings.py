"""What around a pool bears on it, and what does its user have to know of that?  Pure.

Whose children are whose, and conditions that are there only while there is something to say: an object that could not
be written, an autoscaler that pulls at a child, routes that no gateway takes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from berth_operator.api import InferencePool
from berth_operator.api.meta import Facts
from berth_operator.api.names import GRPC_ROUTE, HTTP_ROUTE, INFERENCE_EXTENSION_POOL, SCALED_OBJECT
from berth_operator.cluster.neighbours import Autoscaler
from berth_operator.cluster.observe import Child
from berth_operator.cluster.resources import WORKLOADS
from berth_operator.history import SERVED_BY_OTHERS
from berth_operator.render import LiveDeployment

Manifest = Mapping[str, Any]

_INTEGRATIONS: Final = {
    HTTP_ROUTE: ("spec.routing.parentRefs", "gatewayAPI"),
    GRPC_ROUTE: ("spec.routing.grpcHostnames", "gatewayAPI"),
    INFERENCE_EXTENSION_POOL: ("spec.routing.endpointPicker", "inferenceExtension"),
    SCALED_OBJECT: ("spec.scaling.keda", "keda"),
}
"""Kind -> the field that asks for it, and the chart's value under `integrations` that allows it."""


def belonging(children: Sequence[Child], pools: Iterable[InferencePool]) -> tuple[Child, ...]:
    """The children of pools that are there: their own, and orphans that go back to the pool of their name.

    An orphan was made by us, as its managed fields show, and has no controller, as after `kubectl delete
    --cascade=orphan`.  What still belongs to a deleted pool is the garbage collector's, and what somebody made with our
    labels is theirs: neither is counted as running, nor touched.  Children of pools that are not among `pools` stay.
    """
    uids = {(pool.metadata.namespace or "default", pool.metadata.name): pool.metadata.uid for pool in pools}
    out = []
    for child in children:
        uid = uids.get((child.namespace, child.pool))
        if uid is None or child.owner_uid == uid:
            out.append(child)
        elif child.owner_uid is None and child.managed_fields:
            out.append(replace(child, owner_uid=uid))
    return tuple(out)


def live_deployments(
    pools: Iterable[InferencePool], children: Iterable[Child]
) -> dict[str, tuple[LiveDeployment, ...]]:
    """The Deployments that run now, of each pool (`namespace/name`) with routes."""
    routed = {pool.metadata.uid: pool.key for pool in pools if pool.spec.routing}
    out: dict[str, tuple[LiveDeployment, ...]] = {}
    for child in children:
        if child.owner_uid in routed and child.resource in WORKLOADS and not child.deleting:
            key, placement = routed[child.owner_uid], child.name.rpartition("-")[2]
            live = LiveDeployment(child.name, placement, child.hardware_class, child.ready_replicas)
            out[key] = (*out.get(key, ()), live)
    return out


def conditions(
    pools: Iterable[InferencePool],
    rendered: Mapping[str, Sequence[Manifest] | None],
    children: Sequence[Child],
    autoscalers: Sequence[Autoscaler],
    available: Collection[str],
    refused: Mapping[Hashable, tuple[str, str]],
    beside: Callable[[str], str | None] = lambda _: None,
) -> dict[str, dict[str, Facts]]:
    """Type -> facts of the conditions that each pool (`namespace/name`) has just now.

    `rendered`: what each pool is to have.  `available`: kinds of others that may be rendered.  `refused`: reason and
    message of writes that somebody has to mend, by (kind, namespace, name).  `beside`: in words, which other releases
    of ours serve a namespace.
    """
    owned: dict[str, list[Child]] = {}
    for child in children:
        owned.setdefault(child.owner_uid or "", []).append(child)
    aims = {(scaler.kind, scaler.namespace, scaler.target): scaler for scaler in autoscalers}
    out = {}
    for pool in pools:
        own, manifests = owned.get(pool.metadata.uid, []), rendered.get(pool.key) or ()
        told = beside(pool.metadata.namespace or "default")
        said: dict[str, Facts | None] = {
            SERVED_BY_OTHERS: ("True", "OtherRelease", told) if told else None,
            "Applied": _applied(manifests, refused) if refused else None,
            "DemandScaled": _demand_scaled(pool, available) if manifests else None,
            "ScaledByOthers": _scaled_by_others(pool, own, aims) if aims else None,
            "Routed": _routed(pool, own, available) if manifests else None,
        }
        if facts := {kind: fact for kind, fact in said.items() if fact}:
            out[pool.key] = facts
    return out


def _applied(manifests: Iterable[Manifest], refused: Mapping[Hashable, tuple[str, str]]) -> Facts | None:
    found = []
    for manifest in manifests:
        metadata = manifest["metadata"]
        if failure := refused.get((manifest["kind"], metadata["namespace"], metadata["name"])):
            found.append((failure[0], f"{manifest['kind']} {metadata['name']}: {failure[1]}"))
    return ("False", found[0][0], "; ".join(message for _, message in found)) if found else None


def _scaled_by_others(
    pool: InferencePool, own: Iterable[Child], aims: Mapping[tuple[str, str, str], Autoscaler]
) -> Facts | None:
    found = [(aims[child.key].name, f"{child.resource.kind} {child.name}") for child in own if child.key in aims]
    if not found:
        return None
    pairs = "; ".join(f"HorizontalPodAutoscaler {scaler} aims at {child}" for scaler, child in sorted(found))
    return (
        "True",
        "HorizontalPodAutoscaler",
        f"{pairs}: its replicas are the plan's and are set back each time; let it scale InferencePool"
        f" {pool.metadata.name} (spec.workload.demand.concurrentSessions), or delete it",
    )


def _routed(pool: InferencePool, own: Sequence[Child], available: Collection[str]) -> Facts | None:
    routing = pool.spec.routing
    if routing is None:
        return None
    wanted = [
        kind
        for kind, asked in (
            (HTTP_ROUTE, routing.parent_refs),
            (GRPC_ROUTE, routing.grpc_hostnames),
            (INFERENCE_EXTENSION_POOL, routing.endpoint_picker),
        )
        if asked
    ]
    for kind in wanted:
        if kind not in available:
            return _not_available(kind)
    routes = [child for child in own if child.resource.group_kind in wanted]
    for child in routes:
        if child.parents.refusal:
            return ("False", "Refused", f"{child.resource.kind} {child.name}: {child.parents.refusal}")
    waiting = [child for child in routes if not child.parents.accepted]
    if waiting or not routes:
        names = ", ".join(f"{child.resource.kind} {child.name}" for child in waiting) or "the routes"
        return ("Unknown", "Pending", f"no gateway has accepted {names} yet")
    return ("True", "Accepted", "gateways have accepted " + ", ".join(f"{c.resource.kind} {c.name}" for c in routes))


def _demand_scaled(pool: InferencePool, available: Collection[str]) -> Facts | None:
    wanted = pool.spec.scaling is not None and pool.spec.scaling.keda is not None
    return _not_available(SCALED_OBJECT) if wanted and SCALED_OBJECT not in available else None


def _not_available(kind: str) -> Facts:
    field, value = _INTEGRATIONS[kind]
    name, _, group = kind.partition(".")
    return (
        "False",
        "NotAvailable",
        f"{field}: no {name} is made: install the CRDs of {group}, and set the chart's integrations.{value}.enabled to"
        " true",
    )
