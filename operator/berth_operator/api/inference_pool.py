"""What does a user ask for?  `InferencePool`: one model, one workload, its objectives and its budget."""

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field

from berth_operator.api.meta import API_DEFAULT, ApiModel, Condition, Resource, cel, list_map
from berth_operator.api.names import EMBEDDED_MODEL, LABEL_SYNTAX
from berth_operator.api.quantities import (
    DURATION_PATTERN,
    CapacityType,
    DecimalString,
    Duration,
    Percent,
    PositiveDecimalString,
    PositiveDuration,
    Quantization,
)

DnsName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]


class WorkloadClass(StrEnum):
    """Sets the defaults of shape, objectives and spot use."""

    AGENTIC = "Agentic"
    INTERACTIVE = "Interactive"
    BATCH = "Batch"


class Model(ApiModel):
    """The model that every worker of the pool serves."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("self.name == oldSelf.name", "model.name is immutable: create a new pool for another model"),
            (
                f"has(self.source) || self.name == '{EMBEDDED_MODEL}'",
                f'model.source is required (only {EMBEDDED_MODEL} is built into the worker): write one such as "hf://ORG/NAME"',
            ),
        )
    )
    name: DnsName = Field(description="Model name that clients send; immutable. Example: llama-3.1-8b-instruct")
    source: str | None = Field(
        None,
        max_length=512,
        pattern=r"^(hf|s3|oci|pvc|file)://[^ ]+$",
        description="Where workers load it from: hf:// s3:// oci:// pvc:// or file://",
    )
    quantization: Quantization | None = Field(
        None, description="Weight format; default Int8. Any lets the plan choose."
    )


class Shape(ApiModel):
    """A typical request. Unset fields come from the workload class."""

    prompt_tokens: int | None = Field(None, ge=1, le=1_000_000, description="Tokens of prompt, cached ones included")
    output_tokens: int | None = Field(None, ge=1, le=100_000, description="Tokens generated")
    cached_prompt_percent: Percent | None = Field(None, description="Share of the prompt that is in the prefix cache")
    turns_per_session: int | None = Field(None, ge=1, le=10_000, description="Requests of one session")


class Demand(ApiModel):
    """How much traffic: requests per second, or sessions and the time they think between turns."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "has(self.requestsPerSecond) != (has(self.concurrentSessions) && self.concurrentSessions > 0)",
                "demand needs exactly one of requestsPerSecond and concurrentSessions (1 or more)",
            ),
            (
                "!has(self.thinkTime) || (has(self.concurrentSessions) && self.concurrentSessions > 0)",
                "demand.thinkTime needs demand.concurrentSessions",
            ),
        )
    )
    requests_per_second: PositiveDecimalString | None = None
    concurrent_sessions: int | None = Field(
        None,
        ge=0,
        le=10_000_000,
        description="Replicas of the scale subresource, so that kubectl scale, an HPA or KEDA can set it; 0 is unset",
        json_schema_extra={API_DEFAULT: 0},  # without a value the API server answers no GET of the scale subresource
    )
    think_time: Duration | None = Field(None, description="Mean pause between a session's turns; default 2s")


class Workload(ApiModel):
    """What the traffic looks like."""

    class_: WorkloadClass = Field(alias="class", description="Agentic, Interactive or Batch: sets the defaults")
    shape: Shape | None = None
    demand: Demand


class Objectives(ApiModel):
    """The latency promise. Unset fields come from the workload class."""

    time_to_first_token_p99: PositiveDuration | None = Field(None, alias="timeToFirstTokenP99")
    inter_token_latency_p99: PositiveDuration | None = Field(None, alias="interTokenLatencyP99")
    turn_latency_p99: PositiveDuration | None = Field(
        None, alias="turnLatencyP99", description="Default: timeToFirstTokenP99 + outputTokens x interTokenLatencyP99"
    )


class HardwareMatch(ApiModel):
    """Hardware classes by name or by label; both empty match nothing."""

    names: list[DnsName] | None = Field(None, max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"})
    selector: dict[str, Annotated[str, Field(max_length=63)]] | None = Field(
        None, max_length=16, description="Labels that a HardwareClass must carry"
    )


class HardwareChoice(ApiModel):
    """Which hardware classes may serve the pool: all, less what `allow` leaves out, less what `deny` matches."""

    allow: HardwareMatch | None = None
    deny: HardwareMatch | None = None


class SpotPolicy(ApiModel):
    """How far to rely on spot. Shares are of traffic."""

    max_traffic_percent: Percent | None = None
    min_on_demand_replicas: int | None = Field(None, ge=0, le=10_000)
    survive_loss_percent: Percent | None = Field(
        None, description="Losing any one spot class in one zone leaves at least this share of capacity"
    )


class Diversity(ApiModel):
    """Limits on depending on one vendor."""

    max_traffic_percent_per_vendor: Annotated[int, Field(ge=1, le=100)] | None = None


class Disruption(ApiModel):
    """When a cheaper plan is worth a move."""

    min_savings_usd_per_hour: DecimalString | None = None
    min_savings_percent: Percent | None = None
    cooldown: Duration | None = None


class PlacementPolicy(ApiModel):
    """How placements are chosen."""

    objective: Literal["Cost", "Power", "Latency"] | None = None
    hardware: HardwareChoice | None = None
    spot: SpotPolicy | None = None
    mode: Literal["Apply", "Recommend"] | None = Field(None, description="Recommend: plan and status only, no workers")
    diversity: Diversity | None = None
    disruption: Disruption | None = None


class Budget(ApiModel):
    """What the pool may cost."""

    max_usd_per_hour: PositiveDecimalString
    on_exceeded: Literal["Shed", "Overspend"] | None = Field(
        None,
        description="Shed (default): fewer replicas, demand above them is refused by workers. Overspend: keep serving",
    )


class KedaScaling(ApiModel):
    """KEDA sets `workload.demand.concurrentSessions` from what a Prometheus has of the workers."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "!has(self.minSessions) || self.minSessions <= self.maxSessions",
                "scaling.keda.minSessions must not be above scaling.keda.maxSessions",
            )
        )
    )
    server_address: str = Field(
        max_length=512, pattern=r"^https?://[^ ]+$", description="Of a Prometheus that scrapes the workers"
    )
    query: str | None = Field(
        None, min_length=1, max_length=4096, description="PromQL of the sessions at work. Unset: from workers' metrics"
    )
    min_sessions: int | None = Field(None, ge=1, le=10_000_000, description="Default 1")
    max_sessions: int = Field(ge=1, le=10_000_000)


class Scaling(ApiModel):
    """Replica bounds and what drives them."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "!has(self.keda) || !has(self.mode) || self.mode == 'Declared'",
                "scaling.keda sets the demand: leave scaling.mode Declared, or leave scaling.keda out",
            ),
            (
                "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
                "scaling.minReplicas must not be above scaling.maxReplicas",
            ),
        )
    )
    mode: Literal["Declared", "Observed"] | None = None
    min_replicas: int | None = Field(None, ge=0, le=10_000)
    max_replicas: int | None = Field(None, ge=1, le=10_000)
    scale_to_zero_after: PositiveDuration | None = Field(None, description="Unset: never to zero")
    keda: KedaScaling | None = Field(None, description="A KEDA ScaledObject of the pool; unset: none is made")


class ParentRef(ApiModel):
    """A Gateway API parent."""

    group: str | None = Field(None, max_length=253)
    kind: str | None = Field(None, max_length=63)
    namespace: str | None = Field(None, max_length=63)
    name: str = Field(min_length=1, max_length=253)
    section_name: str | None = Field(None, max_length=253)


class EndpointPicker(ApiModel):
    """The Gateway API Inference Extension's endpoint picker service."""

    name: str = Field(min_length=1, max_length=253)
    port: int | None = Field(None, ge=1, le=65535)


_Hostnames = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=253, pattern=r"^(\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]],
    Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"}),
]


class Routing(ApiModel):
    """Routes to the pool, where the chart's integrations allow them."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "!has(self.hostnames) && !has(self.grpcHostnames) || has(self.parentRefs)",
                "routing.hostnames and routing.grpcHostnames need routing.parentRefs: name the Gateway",
            ),
            (
                "!has(self.grpcHostnames) || has(self.hostnames)"
                " && self.grpcHostnames.all(g, self.hostnames.all(h, g != h))",
                "routing.grpcHostnames needs routing.hostnames that are others: a Gateway lets HTTP and gRPC routes"
                " share no host name",
            ),
        )
    )
    parent_refs: list[ParentRef] | None = Field(
        None, min_length=1, max_length=16, description="Gateways that an HTTPRoute of the pool attaches to"
    )
    hostnames: _Hostnames | None = Field(None, min_length=1, description="Of the HTTPRoute. Unset: the listener's own")
    grpc_hostnames: _Hostnames | None = Field(
        None,
        min_length=1,
        description="Of a GRPCRoute to berth.v1.Generation, at the same parents. Unset: none is made",
    )
    endpoint_picker: EndpointPicker | None = Field(
        None, description="Service by which the Gateway API Inference Extension chooses a worker for each request"
    )


class LocalObjectReference(ApiModel):
    """A name in the pool's namespace."""

    name: str = Field(min_length=1, max_length=253)


class EnvFrom(ApiModel):
    """Environment of workers from a Secret or ConfigMap in the pool's namespace."""

    prefix: str | None = Field(None, max_length=63)
    secret_ref: LocalObjectReference | None = None
    config_map_ref: LocalObjectReference | None = None


def _keys_fit(field: str) -> tuple[str, str]:
    """CEL: labels or annotations have keys that Kubernetes takes."""
    return (
        f"!has(self.{field}) || self.{field}.all(k, k.matches('^([-A-Za-z0-9.]{{1,253}}/)?{LABEL_SYNTAX}$'))",
        f"worker.{field} has a key that Kubernetes does not take: write one such as example.com/team",
    )


class WorkerTemplate(ApiModel):
    """What users add to worker pods."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            _keys_fit("labels"),
            _keys_fit("annotations"),
            (
                f"!has(self.labels) || self.labels.all(k, self.labels[k].matches('^({LABEL_SYNTAX})?$'))",
                "worker.labels has a value that no label can have: letters, digits, '-', '_' and '.', the first and the"
                " last a letter or digit",
            ),
        )
    )

    labels: dict[str, Annotated[str, Field(max_length=63)]] | None = Field(None, max_length=32)
    annotations: dict[str, Annotated[str, Field(max_length=4096)]] | None = Field(None, max_length=32)
    service_account_name: str | None = Field(None, max_length=253)
    image_pull_secrets: list[LocalObjectReference] | None = Field(None, max_length=8)
    env_from: list[EnvFrom] | None = Field(None, max_length=16)
    priority_class_name: str | None = Field(None, max_length=253)
    runtime_class_name: str | None = Field(None, max_length=253)


def _is_duration(field: str) -> str:
    """CEL: the optional field is set and well formed (an ill-formed one already has an error of its own)."""
    return f"has({field}) && {field}.matches(r'{DURATION_PATTERN}')"


_GAP, _FIRST, _TURN = (
    f"self.objectives.{name}" for name in ("interTokenLatencyP99", "timeToFirstTokenP99", "turnLatencyP99")
)
_TURN_FITS = (
    f"!(has(self.objectives) && has(self.workload.shape) && has(self.workload.shape.outputTokens)"
    f" && {_is_duration(_GAP)} && {_is_duration(_TURN)})"
    f" || self.workload.shape.outputTokens * duration({_GAP}).getMilliseconds() <= duration({_TURN}).getMilliseconds()"
)
_FIRST_FITS = (
    f"!(has(self.objectives) && {_is_duration(_FIRST)} && {_is_duration(_TURN)})"
    f" || duration({_FIRST}) <= duration({_TURN})"
)


class InferencePoolSpec(ApiModel):
    """Desired state of an InferencePool."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                _TURN_FITS,
                "objectives contradict each other: outputTokens x interTokenLatencyP99 is longer than turnLatencyP99;"
                " raise turnLatencyP99 or lower the others",
            ),
            (
                "!has(self.scaling) || !has(self.scaling.keda) || has(self.workload.demand.concurrentSessions)"
                " && self.workload.demand.concurrentSessions > 0",
                "scaling.keda sets workload.demand.concurrentSessions: state the demand by it (1 or more)",
            ),
            (_FIRST_FITS, "objectives.timeToFirstTokenP99 must not be longer than objectives.turnLatencyP99"),
        )
    )
    model: Model
    workload: Workload
    objectives: Objectives | None = None
    placement: PlacementPolicy | None = None
    budget: Budget | None = None
    scaling: Scaling | None = None
    priority: int | None = Field(
        None, ge=-1_000_000, le=1_000_000, description="Who keeps shared hardware in a shortage"
    )
    routing: Routing | None = None
    worker: WorkerTemplate | None = None
    suspend: bool | None = Field(None, description="true: no workers; the plan shows what resuming costs")


class PlacementStatus(ApiModel):
    """Replicas of the pool on one hardware class and capacity type: one Deployment, or one LeaderWorkerSet."""

    hardware_class: str
    capacity_type: CapacityType
    replicas: int
    nodes_per_replica: int | None = Field(None, description="Nodes that each of them spans, where more than one")
    ready_replicas: int = 0
    usd_per_hour: str
    traffic_percent: int


class PoolCost(ApiModel):
    """What the plan costs, and what the cheapest GPU-only plan of the same demand would."""

    usd_per_hour: str
    usd_per_million_tokens: str | None = None
    gpu_only_usd_per_hour: str | None = None
    savings_percent: int | None = None
    watts: int | None = None


class CandidateStatus(ApiModel):
    """Why a hardware class and capacity type was or was not taken."""

    hardware_class: str
    capacity_type: CapacityType
    verdict: str
    reason: str
    usd_per_million_tokens: str | None = None
    estimated: bool | None = Field(
        None, description="true: by roofline; false: from a ServingProfile; unset: not looked at"
    )


class DemandStatus(ApiModel):
    """The demand that is planned for, where it is not just what the spec declares."""

    requests_per_second: DecimalString
    source: Literal["Declared", "Observed"] = Field(description="Declared is the first guess, until more is known")
    declared_requests_per_second: DecimalString = Field(
        description="What the spec declared at that time: an edit of it is a new first guess"
    )
    idle_since: str | None = Field(
        None, description="No request since, once that is noteworthy", json_schema_extra={"format": "date-time"}
    )
    asleep_since: str | None = Field(
        None,
        description="Scaled to zero since; the first request wakes the pool",
        json_schema_extra={"format": "date-time"},
    )


class ProfileDrift(ApiModel):
    """A serving profile that the pool's own workers contradict."""

    profile: str
    hardware_class: str
    speed_percent: int = Field(description="Decode speed that workers show, in percent of the profile's")
    concurrency: int = Field(description="Requests decoding at once, about, at which that was seen")


class Decision(ApiModel):
    """Something that the operator decided or found, and that a person would want to know."""

    time: str = Field(json_schema_extra={"format": "date-time"})
    reason: str = Field(max_length=64, description="Such as Placed, Moved, FellBack, Returned, Refused, RolloutFailed")
    message: str = Field(max_length=1024)
    hardware: list[str] | None = Field(None, max_length=64, description="CLASS/TYPE of each placement since then")


class InferencePoolStatus(ApiModel):
    """Observed state; no field of it changes on every pass."""

    observed_generation: int | None = Field(None, json_schema_extra={"format": "int64"})
    conditions: list[Condition] | None = Field(None, max_length=32, json_schema_extra=list_map("type"))
    ready: str | None = Field(None, description="Ready and wanted replicas, for the READY column: 2/3")
    placement: str | None = Field(None, description="Placements in one line, for the PLACEMENT column")
    saved: str | None = Field(None, description="Savings against GPU-only, for the SAVED column: 63%")
    effective: dict[str, Any] | None = Field(
        None,
        description="Class defaults as resolved, in force now",
        json_schema_extra={"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    )
    placements: list[PlacementStatus] | None = Field(
        None, max_length=64, json_schema_extra=list_map("hardwareClass", "capacityType")
    )
    cost: PoolCost | None = None
    candidates: list[CandidateStatus] | None = Field(
        None, max_length=256, json_schema_extra=list_map("hardwareClass", "capacityType")
    )
    demand: DemandStatus | None = Field(
        None, description="Demand in force with scaling.mode Observed or scaling.scaleToZeroAfter; else the spec's"
    )
    drift: list[ProfileDrift] | None = Field(None, max_length=64, json_schema_extra=list_map("profile"))
    selector: str | None = Field(None, description="Label selector of the workers, for the scale subresource")
    concurrent_sessions: int | None = Field(
        None, description="Sessions planned for; status replicas of the scale subresource"
    )
    last_move_time: str | None = Field(
        None,
        description="When placements last changed hardware; starts the cooldown",
        json_schema_extra={"format": "date-time"},
    )
    history: list[Decision] | None = Field(None, max_length=16, description="The last decisions, oldest first")


class InferencePool(Resource):
    """One model, one workload, its objectives: Berth places it on the cheapest hardware that keeps them."""

    kind: Literal["InferencePool"] = "InferencePool"
    spec: InferencePoolSpec
    status: InferencePoolStatus = Field(default_factory=InferencePoolStatus)

    @cached_property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.metadata.namespace or 'default'}/{self.metadata.name}"

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's; the copy's key is its own."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("key", None)
        return copied
