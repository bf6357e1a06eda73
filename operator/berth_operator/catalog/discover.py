"""Which hardware classes does a cluster call for?  Nodes and Karpenter NodePools in, proposals out.

Pure: JSON of the API server in, manifests out.  What is known of a node's chip comes from the catalog; labels, taints
and limits come from the cluster.  What the catalog does not know is named, never guessed.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from berth_operator.api import CapacityType
from berth_operator.api.names import ZONE_LABEL
from berth_operator.catalog.arm import FAMILIES, graviton
from berth_operator.catalog.entry import Entry, manifest
from berth_operator.catalog.matching import keeps_off
from berth_operator.catalog.nodepools import NodePool, read_node_pool

Object = Mapping[str, Any]

INSTANCE_TYPE: Final = "node.kubernetes.io/instance-type"
_CAPACITY_LABELS: Final[Mapping[str, Mapping[str, CapacityType]]] = {
    "karpenter.sh/capacity-type": {
        "on-demand": CapacityType.ON_DEMAND,
        "spot": CapacityType.SPOT,
        "reserved": CapacityType.RESERVED,
    },
    "eks.amazonaws.com/capacityType": {
        "ON_DEMAND": CapacityType.ON_DEMAND,
        "SPOT": CapacityType.SPOT,
        "CAPACITY_BLOCK": CapacityType.RESERVED,
    },
    "cloud.google.com/gke-provisioning": {
        "standard": CapacityType.ON_DEMAND,
        "spot": CapacityType.SPOT,
        "preemptible": CapacityType.SPOT,
    },
    "cloud.google.com/gke-spot": {"true": CapacityType.SPOT},
    "cloud.google.com/gke-preemptible": {"true": CapacityType.SPOT},
    "kubernetes.azure.com/scalesetpriority": {"spot": CapacityType.SPOT},
}
"""Label -> its values, as Karpenter, EKS, GKE and AKS set them."""
_CHIP_LABELS: Final[Mapping[str, Mapping[str, str]]] = {
    "cloud.google.com/gke-tpu-accelerator": {"tpu-v5p-slice": "TPU v5p"},
    "cloud.google.com/gke-accelerator": {"nvidia-l4": "L4", "nvidia-tesla-t4": "T4", "nvidia-h100-80gb": "H100 SXM"},
    "nvidia.com/gpu.product": {
        "NVIDIA-L4": "L4",
        "Tesla-T4": "T4",
        "NVIDIA-A10G": "A10G",
        "NVIDIA-L40S": "L40S",
        "NVIDIA-H100-80GB-HBM3": "H100 SXM",
        "NVIDIA-B200": "B200",
    },
    "amd.com/gpu.product-name": {"AMD_Instinct_MI300X_OAM": "MI300X"},
}
"""Label -> its values -> chip of the catalog, as GKE and the vendors' feature discovery set them."""
_CONTROL_PLANE: Final = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
"""Taints of nodes that are no place for workers."""
_REMEDY: Final = "where it should serve, too, write a class of another name for it, with its own labels"
_AWS: Final = ("karpenter.k8s.aws", "eks.amazonaws.com")
"""Groups of Karpenter's node classes, and prefixes of its labels: on AWS, and in EKS Auto Mode."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found."""

    proposals: tuple[dict[str, Any], ...] = ()
    """HardwareClass manifests."""
    remarks: tuple[str, ...] = ()
    """What a person must know or do."""


@dataclass(slots=True)
class _Found:
    """Ways to get nodes of one entry."""

    entry: Entry
    capacities: dict[CapacityType, dict[str, Any]] = field(default_factory=dict)
    zones: dict[CapacityType, set[str]] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(capacity type, why) -> nodes that the proposal does not select, or does not tolerate."""
    also: list[str] = field(default_factory=list)
    """NodePools that may make more of it, which the proposal does not select, in words."""


def discover(catalog: Mapping[str, Entry], nodes: Sequence[Object], node_pools: Sequence[Object]) -> Discovery:
    """Propose a class for each kind of node that the cluster has, or that Karpenter may make, and the catalog knows.

    A way to get nodes that is seen on nodes goes before one that only a NodePool allows.  Where nodes of a kind have
    different taints, those with the fewest count: what is set aside for others is tolerated only where all of it is.
    """
    remarks: list[str] = []
    found: dict[str, _Found] = {}
    unknown: Counter[str] = Counter()
    other: Counter[str] = Counter()
    for node in sorted(filter(_for_workers, nodes), key=lambda node: len(_lasting_taints(node))):
        entry = entry_of_node(catalog, node)
        if entry is None:
            unknown[_kind_of(node)] += 1
            continue
        if (there := _devices(entry, node)) is not None:
            other[f"{_kind_of(node)} with {there}, where {entry.name} has {_asked(entry)}"] += 1
            continue
        slot = found.setdefault(entry.name, _Found(entry))
        kind, label = capacity_type_of(labels_of(node))
        capacity = slot.capacities.setdefault(kind, _of_node(entry, kind, node, label))
        if missing := _missing(capacity["selector"], labels_of(node)):
            slot.left_out[kind.value, f"not labelled {missing}"] += 1
        elif foreign := [
            t["key"] for t in _lasting_taints(node) if _toleration(t) not in capacity.get("tolerations", ())
        ]:
            slot.left_out[kind.value, f"set aside by taint {', '.join(sorted(foreign))}"] += 1
        else:
            slot.seen[kind.value] += 1
            slot.zones.setdefault(kind, set()).update(v for k, v in labels_of(node).items() if k == ZONE_LABEL)
    for node_pool in map(read_node_pool, node_pools):
        if node_pool.cloud and node_pool.cloud not in _AWS:
            remarks.append(
                f"NodePool {node_pool.name} makes nodes by {node_pool.cloud}, and the catalog knows AWS alone: what it"
                " may make is not proposed"
            )
            continue
        for entry, kind, capacity in _offered(catalog, node_pool):
            slot = found.setdefault(entry.name, _Found(entry))
            taken = slot.capacities.setdefault(kind, capacity)
            made = {**node_labels(entry), **capacity["selector"]}
            if missing := _missing(taken["selector"], made):
                slot.also.append(f"NodePool {node_pool.name} may make {kind.value} nodes not labelled {missing}")
            slot.zones.setdefault(kind, set(node_pool.values_of(ZONE_LABEL)))
            slot.seen[f"NodePool {node_pool.name}"] += 1
    for kind_of_node, count in sorted(unknown.items()):
        remarks.append(
            f"{count} x {kind_of_node}: not in the catalog, so not proposed; where it should serve models, write a"
            " HardwareClass with its memory, bandwidth and price (`berth hardware list -o yaml` shows the form)"
        )
    remarks += [
        f"{count} x {what}: not proposed; is the device plugin missing, or are devices cut (MIG) or shared?"
        for what, count in sorted(other.items())
    ]
    if not nodes and not node_pools:
        remarks.append("the cluster has neither nodes nor Karpenter NodePools: there is nothing to propose from")
    proposals = [_proposal(found[name], remarks) for name in sorted(found)]
    return Discovery(tuple(proposals), tuple(remarks))


# --- Nodes ----------------------------------------------------------------------------------------------------------


def labels_of(item: Object) -> Mapping[str, str]:
    """Labels of an object."""
    found: Mapping[str, str] = item["metadata"].get("labels") or {}
    return found


def _for_workers(node: Object) -> bool:
    """Whether workers may be there at all: on Linux, and no control plane."""
    taints = {taint["key"] for taint in (node.get("spec") or {}).get("taints") or ()}
    return labels_of(node).get("kubernetes.io/os", "linux") == "linux" and taints.isdisjoint(_CONTROL_PLANE)


def _lasting_taints(node: Object) -> list[Object]:
    """What a pod has to tolerate to be there for good; taints that come and go with a node's state are none of that."""
    return [t for t in (node.get("spec") or {}).get("taints") or () if keeps_off(t)]


def _missing(selector: Mapping[str, str], labels: Mapping[str, str]) -> str:
    """What a selector asks for that the labels do not say; empty where they are selected."""
    return ", ".join(f"{key}={value}" for key, value in sorted(selector.items()) if labels.get(key) != value)


def _devices(entry: Entry, node: Object) -> str | None:
    """What a node has of the entry's devices, in words, where that is not what the entry has."""
    if entry.accelerators is None:
        return None
    resource, count = entry.accelerators
    found = str(((node.get("status") or {}).get("allocatable") or {}).get(resource, "0"))
    return None if found == str(count) else f"{found} {resource}"


def _asked(entry: Entry) -> int:
    return entry.accelerators[1] if entry.accelerators else 0


def entry_of_node(catalog: Mapping[str, Entry], node: Object) -> Entry | None:
    """What the catalog knows of a node: by its instance type, by its Graviton family, or by its devices."""
    labels = labels_of(node)
    instance_type = labels.get(INSTANCE_TYPE, "")
    for entry in catalog.values():
        if entry.instance_type == instance_type and instance_type:
            return entry
    return _graviton(instance_type) or _by_devices(catalog, node)


def _graviton(instance_type: str) -> Entry | None:
    """A Graviton of a size or family that the catalog has no price of."""
    family, _, size = instance_type.partition(".")
    if family not in FAMILIES:
        return None
    try:
        return graviton(family, size, None)
    except ValueError:  # metal
        return None


def _by_devices(catalog: Mapping[str, Entry], node: Object) -> Entry | None:
    """A node of another cloud or size with as many of the same chip: its price is not the catalog's."""
    labels = labels_of(node)
    chips = {known[labels[key]] for key, known in _CHIP_LABELS.items() if labels.get(key) in known}
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    for entry in catalog.values():
        if entry.chip in chips and entry.accelerators:
            resource, count = entry.accelerators
            if str(allocatable.get(resource)) == str(count):
                name = labels.get(INSTANCE_TYPE) or None
                because = f"its price is not {entry.name}'s: set capacity.usdPerHour and take maxNodes 0 away"
                return replace(
                    entry,
                    name=f"{entry.name}-{name}".lower().replace("_", "-") if name else f"{entry.name}-here",
                    provider="here",
                    instance_type=name,
                    usd_per_hour=None,
                    what_if=because,
                )
    return None


def capacity_type_of(labels: Mapping[str, str]) -> tuple[CapacityType, tuple[str, str] | None]:
    """How a node is paid for, and the label that says so; on demand where none does."""
    for key, known in _CAPACITY_LABELS.items():
        value = labels.get(key, "")
        if value in known:
            return known[value], (key, value)
    return CapacityType.ON_DEMAND, None


def _of_node(entry: Entry, kind: CapacityType, node: Object, label: tuple[str, str] | None) -> dict[str, Any]:
    labels = labels_of(node)
    selector = dict([label]) if label else {}
    for key in (INSTANCE_TYPE, *(key for key, _ in entry.selector)):
        if key in labels:
            selector[key] = labels[key]
    return _capacity(entry, kind, selector, _lasting_taints(node))


def _capacity(
    entry: Entry,
    kind: CapacityType,
    selector: Mapping[str, str],
    taints: Iterable[Object],
    max_nodes: int | None = None,
) -> dict[str, Any]:
    body: dict[str, Any] = {"type": kind.value, "usdPerHour": entry.price_text or "0"}
    if entry.what_if:
        max_nodes = 0
    if max_nodes is not None:
        body["maxNodes"] = max_nodes
    body["selector"] = dict(sorted(selector.items()))
    if tolerations := [_toleration(taint) for taint in taints]:
        body["tolerations"] = tolerations
    return body


def _toleration(taint: Object) -> dict[str, str]:
    value = {"operator": "Equal", "value": taint["value"]} if taint.get("value") else {"operator": "Exists"}
    effect = {"effect": taint["effect"]} if taint.get("effect") else {}
    return {"key": taint["key"], **value, **effect}


def _kind_of(node: Object) -> str:
    labels = labels_of(node)
    what = labels.get(INSTANCE_TYPE) or "nodes without an instance type"
    return f"{what} ({labels.get('kubernetes.io/arch', 'unknown architecture')})"


# --- NodePools ------------------------------------------------------------------------------------------------------


def _offered(catalog: Mapping[str, Entry], node_pool: NodePool) -> Iterator[tuple[Entry, CapacityType, dict[str, Any]]]:
    """The catalog's instance types that a NodePool may make, each with every capacity type it may make them as."""
    for entry in catalog.values():
        if entry.provider != "aws" or not entry.instance_type or not node_pool.allows(node_labels(entry)):
            continue
        for word, kind in _CAPACITY_LABELS["karpenter.sh/capacity-type"].items():
            if not node_pool.allows_capacity_type(word):
                continue
            selector = {
                "karpenter.sh/nodepool": node_pool.name,
                "karpenter.sh/capacity-type": word,
                INSTANCE_TYPE: entry.instance_type,
            }
            most = node_pool.most_nodes(_takes(entry))
            yield entry, kind, _capacity(entry, kind, selector, node_pool.taints, most)


def _takes(entry: Entry) -> dict[str, float]:
    """What a node counts for in a NodePool's limits: of memory that of CPUs alone, as a GPU's is not its host's."""
    takes: dict[str, float] = {"cpu": entry.cpus, "nodes": 1}
    if entry.accelerators:
        takes[entry.accelerators[0]] = entry.accelerators[1]
    else:
        takes["memory"] = entry.memory_gib * 2**30
    return takes


def node_labels(entry: Entry) -> dict[str, str]:
    """The labels by which Karpenter on AWS tells instance types apart."""
    family, _, size = (entry.instance_type or "").partition(".")
    generation = "".join(c for c in family if c.isdigit())[:1]
    told = {
        "family": family,
        "size": size,
        "category": family.split(generation)[0] if generation else family,
        "generation": generation,
        "cpu": str(entry.cpus),
    }
    if entry.accelerators and entry.vendor == "Nvidia":
        told["gpu-manufacturer"] = "nvidia"
        told["gpu-name"] = entry.chip.split()[0].lower()
        told["gpu-count"] = str(entry.accelerators[1])
    return {
        INSTANCE_TYPE: entry.instance_type or "",
        "kubernetes.io/arch": entry.architecture,
        "kubernetes.io/os": "linux",
        **{f"{group}/instance-{key}": value for group in _AWS for key, value in told.items()},
    }


# --- Proposals ------------------------------------------------------------------------------------------------------


def _proposal(found: _Found, remarks: list[str]) -> dict[str, Any]:
    body = manifest(found.entry)
    order = list(CapacityType)
    kinds = sorted(found.capacities, key=order.index)
    body["spec"]["capacity"] = [found.capacities[kind] for kind in kinds]
    spot, zones = found.capacities.get(CapacityType.SPOT), sorted(found.zones.get(CapacityType.SPOT, ()))
    if spot and len(zones) > 1:
        spot["zones"] = zones
    on_demand = found.capacities.get(CapacityType.ON_DEMAND)
    if spot and on_demand and on_demand["selector"].items() <= spot["selector"].items() and "tolerations" not in spot:
        remarks.append(
            f"{found.entry.name}: no label tells its OnDemand nodes from Spot, so that workers meant for the one may"
            " stand on the other: label the OnDemand nodes and select that, or taint the Spot nodes"
        )
    if found.entry.what_if:
        remarks.append(f"{found.entry.name}: {found.entry.what_if}")
    for (kind_of_node, why), count in sorted(found.left_out.items()):
        nodes = f"{count} {kind_of_node} {'node is' if count == 1 else 'nodes are'}"
        remarks.append(f"{found.entry.name}: {nodes} {why}, and left out: {_REMEDY}")
    remarks += [f"{found.entry.name}: {what}, which are left out: {_REMEDY}" for what in found.also]
    unlimited = [kind.value for kind in kinds if "maxNodes" not in found.capacities[kind]]
    if unlimited and not any(name.startswith("NodePool ") for name in found.seen):
        counts = ", ".join(f"{found.seen[kind]} {kind}" for kind in unlimited)
        remarks.append(
            f"{found.entry.name}: {counts} seen; without an autoscaler set capacity.maxNodes, or plans count on more"
        )
    return body
