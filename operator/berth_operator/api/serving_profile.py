"""How fast is a model on a class?  `ServingProfile`: speed by concurrency, measured, published or estimated."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from berth_operator.api.hardware_class import RuntimeName
from berth_operator.api.inference_pool import DnsName
from berth_operator.api.meta import ApiModel, Resource, cel
from berth_operator.api.quantities import PositiveDecimalString, PositiveDuration

CpuQuantity = Annotated[str, Field(max_length=16, pattern=r"^([0-9]+m|[0-9]+(\.[0-9]+)?)$")]
MemoryQuantity = Annotated[str, Field(max_length=16, pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$")]


class ProvenanceMethod(StrEnum):
    """How the figures came to be."""

    MEASURED = "Measured"
    PUBLISHED = "Published"
    ESTIMATED = "Estimated"


class ReplicaResources(ApiModel):
    """What one replica requests."""

    cpu: CpuQuantity | None = None
    memory: MemoryQuantity | None = None
    accelerators: int | None = Field(None, ge=0, le=64, description="Devices of the class's accelerators.resource")


class ServingPoint(ApiModel):
    """Decode speed of one replica at one concurrency and context length."""

    concurrency: int = Field(ge=1, le=100_000, description="Requests decoding at once")
    context_tokens: int = Field(ge=1, le=10_000_000, description="Tokens of context of each")
    decode_tokens_per_second: PositiveDecimalString = Field(description="All requests together")
    inter_token_latency_p99: PositiveDuration = Field(alias="interTokenLatencyP99")


class Provenance(ApiModel):
    """Where the figures come from."""

    method: ProvenanceMethod
    source: str = Field(max_length=1024)
    date: str | None = Field(None, max_length=32, pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")


class ServingProfileSpec(ApiModel):
    """Speed of one model, quantization and runtime on one hardware class; figures are of one replica."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "self.points.all(p, self.points.exists_one(q,"
                " q.concurrency == p.concurrency && q.contextTokens == p.contextTokens))",
                "points must be unique by concurrency and contextTokens",
            ),
            (
                "!has(self.replicasPerNode) || self.replicasPerNode == 1 || has(self.resources)",
                "replicasPerNode above 1 needs resources, what one replica takes: without them each pod takes a whole"
                " node",
            ),
            (
                "!has(self.nodesPerReplica) || self.nodesPerReplica == 1"
                " || !has(self.replicasPerNode) || self.replicasPerNode == 1",
                "nodesPerReplica and replicasPerNode exclude each other: a replica spans nodes, or several share one",
            ),
            (
                "!has(self.nodesPerReplica) || self.nodesPerReplica == 1 || !has(self.resources)",
                "resources must be unset where nodesPerReplica is above 1: such a replica takes whole nodes",
            ),
            (
                "!has(self.nodesPerReplica) || self.nodesPerReplica == 1 || self.runtime != 'Berth'",
                "nodesPerReplica above 1 needs a runtime whose replica can span nodes: VLLM or Custom; runtime Berth"
                " serves from one node",
            ),
        )
    )
    model: DnsName
    quantization: Literal["Int8", "Int4", "BF16"]
    hardware_class: DnsName
    runtime: RuntimeName
    resources: ReplicaResources | None = Field(None, description="Per replica; unset: a whole node")
    replicas_per_node: int | None = Field(None, ge=1, le=1000, description="Default 1")
    nodes_per_replica: int | None = Field(
        None, ge=1, le=64, description="Nodes that one replica spans; at most the class's maxNodesPerReplica. Default 1"
    )
    points: list[ServingPoint] = Field(min_length=1, max_length=32)
    prefill_tokens_per_second: PositiveDecimalString
    kv_cache_tokens: int = Field(ge=1, description="Tokens of context that one replica can hold in all")
    cold_start: PositiveDuration | None = None
    max_context_tokens: int | None = Field(None, ge=1)
    provenance: Provenance


class ServingProfile(Resource):
    """Measured speed of one model on one hardware class and runtime, by concurrency."""

    kind: Literal["ServingProfile"] = "ServingProfile"
    spec: ServingProfileSpec
