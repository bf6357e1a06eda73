"""What does the catalog know of one kind of node?  Figures of the data sheet, and the `HardwareClass` made of them."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal

from berth_operator.api import CapacityType, HardwareClass, HardwareKind, format_decimal

WHAT_IF_LABEL: Final = "berth.dev/what-if"
"""`true` on a class that no plan of a cluster can use: see its `berth.dev/what-if-because` annotation."""
WHAT_IF_ANNOTATION: Final = "berth.dev/what-if-because"
PROVIDER_LABEL: Final = "berth.dev/provider"
CHIP_WATTS_ANNOTATION: Final = "berth.dev/chip-watts"
"""Board limits of the node's chips, hosts left out: not `spec.powerWatts`, which is the whole node's."""

PRICES_AS_OF: Final = "2026-07-20"
SPOT_PRICE: Final = "Spot: set to on demand, its upper bound, not a market price."


@dataclass(frozen=True, slots=True)
class Entry:
    """One kind of node.  Figures are of the whole node; None where nothing is published."""

    name: str
    vendor: str
    chip: str
    kind: HardwareKind
    architecture: Literal["arm64", "amd64"]
    cpus: int
    memory_gib: int
    bandwidth_gbps: int
    source: str
    """Where figures come from, with what was assumed; the price's own source is added."""
    instance_type: str | None = None
    usd_per_hour: Decimal | None = None
    """On demand; None: no price could be stated."""
    bf16_tflops: int | None = None
    int8_tops: int | None = None
    chip_watts: int | None = None
    accelerators: tuple[str, int] | None = None
    """Resource name and number, as Kubernetes counts them."""
    provider: str = "aws"
    selector: tuple[tuple[str, str], ...] = ()
    """Node labels beside those that follow from `instance_type`."""
    image: str | None = None
    price_as_of: str = PRICES_AS_OF
    what_if: str | None = None
    """Why no plan of a cluster may use it as it ships; None: it may."""
    rentable: bool = True

    @property
    def price_text(self) -> str | None:
        """USD per hour as the API writes it."""
        return None if self.usd_per_hour is None else format_decimal(self.usd_per_hour)


def hardware_class(entry: Entry) -> HardwareClass:
    """The entry as an object that an API server takes.

    A what-if entry gets `maxNodes: 0` and, where it has no price, a price of 0 that no plan can use.
    """
    return HardwareClass.model_validate(manifest(entry))


def manifest(entry: Entry) -> dict[str, Any]:
    """The entry as a Kubernetes manifest."""
    metadata: dict[str, Any] = {"name": entry.name, "labels": labels(entry)}
    annotations = {}
    if entry.chip_watts is not None:
        annotations[CHIP_WATTS_ANNOTATION] = str(entry.chip_watts)
    if entry.what_if:
        annotations[WHAT_IF_ANNOTATION] = entry.what_if
    if annotations:
        metadata["annotations"] = annotations
    return {"apiVersion": "berth.dev/v1alpha1", "kind": "HardwareClass", "metadata": metadata, "spec": spec(entry)}


def labels(entry: Entry) -> dict[str, str]:
    """Labels by which pools and people select classes: tier, provider, what-if."""
    tier = {HardwareKind.CPU: "cpu", HardwareKind.GPU: "gpu", HardwareKind.ACCELERATOR: "accelerator"}[entry.kind]
    marked = {WHAT_IF_LABEL: "true"} if entry.what_if else {}
    return {"tier": tier, PROVIDER_LABEL: entry.provider, **marked}


def spec(entry: Entry) -> dict[str, Any]:
    """`spec` of the class."""
    compute = {"bf16Tflops": entry.bf16_tflops, "int8Tops": entry.int8_tops}
    body: dict[str, Any] = {
        "vendor": entry.vendor,
        "chip": entry.chip,
        "kind": entry.kind.value,
        "architecture": entry.architecture,
        "cpus": entry.cpus,
        "memoryGiB": entry.memory_gib,
        "memoryBandwidthGBps": entry.bandwidth_gbps,
    }
    if any(compute.values()):
        body["compute"] = {key: value for key, value in compute.items() if value is not None}
    if entry.accelerators:
        body["accelerators"] = {"resource": entry.accelerators[0], "count": entry.accelerators[1]}
    runtime = {"name": "Berth" if entry.kind is HardwareKind.CPU else "VLLM"}
    if entry.image:
        runtime["image"] = entry.image
    return {**body, "capacity": capacities(entry), "runtime": runtime, "source": full_source(entry)}


def capacities(entry: Entry) -> list[dict[str, Any]]:
    """The ways to get such nodes, with the labels that Karpenter gives them."""
    price = entry.price_text or "0"
    types = [CapacityType.ON_DEMAND]
    if entry.provider == "aws" and not entry.what_if:
        types.append(CapacityType.SPOT)
    if entry.provider == "own":
        types = [CapacityType.RESERVED]
    return [_capacity(entry, kind, price) for kind in types]


def _capacity(entry: Entry, kind: CapacityType, price: str) -> dict[str, Any]:
    body: dict[str, Any] = {"type": kind.value, "usdPerHour": price}
    if entry.what_if:
        body["maxNodes"] = 0
    selector = dict(entry.selector)
    if entry.instance_type:
        selector["node.kubernetes.io/instance-type"] = entry.instance_type
    if entry.provider == "aws":
        selector["karpenter.sh/capacity-type"] = "spot" if kind is CapacityType.SPOT else "on-demand"
    if selector:
        body["selector"] = selector
    if entry.accelerators:
        body["tolerations"] = [{"key": entry.accelerators[0], "operator": "Exists", "effect": "NoSchedule"}]
    return body


def full_source(entry: Entry) -> str:
    """`spec.source`: the figures', the price's and the power's."""
    parts = [entry.source]
    if entry.usd_per_hour is None:
        parts.append("Price: none stated; 0 stands for that, and maxNodes 0 keeps plans off it.")
    else:
        on_demand = f"On demand: AWS us-east-1, {entry.price_as_of}, from karpenter-provider-aws."
        parts.append(f"{on_demand} {SPOT_PRICE}")
    if entry.chip_watts is None:
        parts.append("Power: not published.")
    else:
        parts.append(f"Power: {entry.chip_watts} W the chips; the node's is not published.")
    return " ".join(parts)
