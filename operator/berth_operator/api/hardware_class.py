"""What can a worker run on?  `HardwareClass`: one kind of node with its chip, memory, price, power and selector."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from berth_operator.api.meta import LIST_SET, ApiModel, Condition, Resource, Toleration, cel, list_map
from berth_operator.api.names import ZONE_LABEL
from berth_operator.api.quantities import CapacityType, DecimalString

Labels = dict[str, Annotated[str, Field(max_length=63)]]
_LABEL_VALUE = r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"


class HardwareKind(StrEnum):
    """What computes: the node's CPU, a GPU, or another accelerator."""

    CPU = "CPU"
    GPU = "GPU"
    ACCELERATOR = "Accelerator"


class RuntimeName(StrEnum):
    """What serves on this class."""

    BERTH = "Berth"
    VLLM = "VLLM"
    CUSTOM = "Custom"


class Accelerators(ApiModel):
    """Devices of one node, as Kubernetes counts them."""

    resource: str = Field(max_length=253, pattern=r"^[a-z0-9.-]+/[a-zA-Z0-9._-]+$", description="e.g. nvidia.com/gpu")
    count: int = Field(ge=1, le=64)


class Compute(ApiModel):
    """Dense peak of one node (CPU) or of all its devices, as the data sheet has it; for roofline estimates."""

    bf16_tflops: int | None = Field(None, alias="bf16Tflops", ge=1, description="Dense bf16 TFLOP/s of the node")
    int8_tops: int | None = Field(None, alias="int8Tops", ge=1, description="Dense int8 TOP/s of the node")


class Capacity(ApiModel):
    """One way to get nodes of this class."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                f"!has(self.zones) || !has(self.selector) || !('{ZONE_LABEL}' in self.selector)",
                f"zones and a selector of {ZONE_LABEL} say the same: keep one of them",
            )
        )
    )
    type: CapacityType
    selector: Labels | None = Field(None, max_length=16, description="Node labels of this capacity")
    tolerations: list[Toleration] | None = Field(None, max_length=16)
    zones: list[Annotated[str, Field(max_length=63, pattern=_LABEL_VALUE)]] | None = Field(
        None,
        min_length=1,
        max_length=16,
        json_schema_extra=LIST_SET,
        description=f"Values of {ZONE_LABEL} that workers may run in. Where several are stated, spot workers are"
        " spread over them, and a plan survives the loss of any one; unset: it counts the class as one zone",
    )
    max_nodes: int | None = Field(None, ge=0, le=100_000, description="Unset: no limit. 0: none to be had")
    usd_per_hour: DecimalString = Field(description="Price of one node")
    interruptions_per_hour: DecimalString | None = Field(None, description="Expected interruptions of one spot node")


class Runtime(ApiModel):
    """One runtime a class."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("self.name != 'Custom' || has(self.image)", "runtime.image is required when runtime.name is Custom")
        )
    )
    name: RuntimeName
    image: str | None = Field(None, max_length=512, description="Default: the operator's worker image, or vLLM's own")
    args: list[Annotated[str, Field(max_length=1024)]] | None = Field(None, max_length=64)


class NamespaceSelector(ApiModel):
    """Namespaces whose pools may use the class, by label; unset means all."""

    match_labels: Labels | None = Field(None, max_length=16)


class HardwareClassSpec(ApiModel):
    """One kind of node. Figures are of one whole node."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "self.kind == 'CPU' || has(self.accelerators)",
                "accelerators is required unless kind is CPU",
            ),
            ("self.kind != 'CPU' || !has(self.accelerators)", "accelerators must be unset when kind is CPU"),
            (
                "!has(self.maxNodesPerReplica) || self.maxNodesPerReplica == 1 || self.runtime.name != 'Berth'",
                "maxNodesPerReplica above 1 needs a runtime whose replica can span nodes: VLLM or Custom; runtime Berth"
                " serves from one node",
            ),
        )
    )
    vendor: str = Field(max_length=63)
    chip: str = Field(max_length=63)
    kind: HardwareKind
    architecture: Literal["arm64", "amd64"]
    cpus: int = Field(ge=1, le=4096, description="vCPUs of the node")
    memory_gib: int = Field(
        alias="memoryGiB",
        ge=1,
        le=65536,
        description="Memory that holds weights and KV: the node's (CPU), or all its devices'",
    )
    memory_bandwidth_gbps: int = Field(
        alias="memoryBandwidthGBps", ge=1, le=1_000_000, description="GB/s, of the memory above, in all"
    )
    compute: Compute | None = None
    power_watts: int | None = Field(None, ge=1, le=1_000_000, description="Node at load; unset where not published")
    accelerators: Accelerators | None = None
    capacity: list[Capacity] = Field(min_length=1, max_length=3, json_schema_extra=list_map("type"))
    namespace_selector: NamespaceSelector | None = None
    runtime: Runtime
    max_nodes_per_replica: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Nodes that one replica of a model too large for a node may span, by LeaderWorkerSet. Default 1",
    )
    interconnect_gbps: int | None = Field(
        None,
        alias="interconnectGbps",
        ge=1,
        le=100_000,
        description="Gbit/s between two nodes of a replica, each way, for estimates. Default 10",
    )
    source: str | None = Field(None, max_length=512, description="Where the figures come from, with a date")


class ConstrainedCapacity(ApiModel):
    """A capacity type that cannot be had for now."""

    type: CapacityType
    since: str = Field(description="When it was first found short")
    until: str = Field(description="When it is tried again; a past one: it is being tried, and not yet forgotten")
    back_off: str = Field(description="Twice as long each time that it is found short again")
    message: str | None = Field(None, max_length=1024, description="What was found")


class AvoidedCapacity(ConstrainedCapacity):
    """A capacity type that new placements keep off where they can: written so that no node takes its pods."""

    reason: str = Field(description="NoMatchingNode or UntoleratedTaint")


class PriceInForce(ApiModel):
    """The price that plans use."""

    type: CapacityType
    usd_per_hour: str
    source: str
    as_of: str | None = None


class HardwareClassStatus(ApiModel):
    """Observed state of a hardware class."""

    observed_generation: int | None = Field(None, json_schema_extra={"format": "int64"})
    conditions: list[Condition] | None = Field(None, max_length=32, json_schema_extra=list_map("type"))
    constrained: list[ConstrainedCapacity] | None = Field(None, max_length=3, json_schema_extra=list_map("type"))
    avoided: list[AvoidedCapacity] | None = Field(None, max_length=3, json_schema_extra=list_map("type"))
    prices: list[PriceInForce] | None = Field(None, max_length=3, json_schema_extra=list_map("type"))
    nodes_in_use: int | None = None


class HardwareClass(Resource):
    """One kind of node that a worker can run on."""

    kind: Literal["HardwareClass"] = "HardwareClass"
    spec: HardwareClassSpec
    status: HardwareClassStatus = Field(default_factory=HardwareClassStatus)

    def capacity_of(self, capacity_type: CapacityType) -> Capacity | None:
        """The entry of `spec.capacity` for a capacity type, if there is one."""
        return next((c for c in self.spec.capacity if c.type == capacity_type), None)
