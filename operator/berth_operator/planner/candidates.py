"""What could serve a pool?  Each class and capacity type either becomes options for the program, or gets a reason.

The checks are an ordered chain; the first that objects decides, so that a reason names what to change first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, TypeVar

from berth_operator.api import (
    Capacity,
    CapacityType,
    ConstrainedCapacity,
    Effective,
    HardwareClass,
    HardwareKind,
    ProvenanceMethod,
    Quantization,
    ReplicaResources,
    ServingProfile,
)
from berth_operator.api.inference_pool import HardwareMatch
from berth_operator.planner import spans
from berth_operator.planner.architectures import ARCHITECTURES, Architecture
from berth_operator.planner.capacity import Load, TooSlow, replica_capacity, unloaded_turn_seconds
from berth_operator.planner.speed import (
    GIB,
    Speed,
    best_profile,
    estimable,
    profile_speed,
    roofline_speed,
)
from berth_operator.planner.stages import stage_share
from berth_operator.planner.types import AtFault, ReplicaCapacity, Verdict

E = TypeVar("E", bound=ConstrainedCapacity)

NO_WATTS: Final = "spec.powerWatts is unset, and the pool's objective is Power"

Resource = tuple[str, CapacityType]
"""What pools share: nodes of a class and capacity type."""


@dataclass(frozen=True, slots=True)
class Option:
    """A class, capacity type and quantization that can serve a pool within its objectives."""

    hardware_class: str
    capacity_type: CapacityType
    quantization: Quantization
    vendor: str
    kind: HardwareKind
    capacity: ReplicaCapacity
    replicas_per_node: int
    resources: ReplicaResources | None
    node_usd_per_hour: Decimal
    """What a node adds to the bill: 0 for Reserved."""
    list_usd_per_hour: Decimal
    """As the class has it; tells two reserved classes apart."""
    node_watts: int | None
    unloaded_turn_seconds: float
    zones: int = 1
    """That spot nodes of it are spread over; 1 where that is not known, and for others."""
    own_replica_limit: int | None = None
    """Replicas that this pool may have of it: what runs now, while the class is constrained."""
    constrained_until: str | None = None
    nodes_per_replica: int = 1
    """Above 1, `replicas_per_node` is 1 and `resources` None."""
    spans_because: str = ""
    """The arithmetic, where a replica spans nodes."""
    parts: int = 1
    """Of a node it takes, and pays, one of so many; the rest is others' (`sharing`).  Prices are of the whole node."""

    @property
    def replica_usd_per_hour(self) -> Decimal:
        """The least that a first replica adds to the bill: all nodes that it spans, else a whole one."""
        return self.node_usd_per_hour * self.nodes_per_replica

    def nodes_for(self, replicas: int) -> int:
        """Whole nodes that so many replicas take."""
        return -(-replicas // (self.replicas_per_node * self.parts)) * self.nodes_per_replica

    def replicas_on(self, nodes: int) -> int:
        """The most replicas that so many nodes hold."""
        return nodes // self.nodes_per_replica * self.replicas_per_node * self.parts

    @property
    def shareable(self) -> bool:
        """Its replicas may stand beside others': they say what they take and leave room, and no zone is prescribed."""
        return self.replicas_per_node > 1 and self.resources is not None and self.zones == 1

    @property
    def resource(self) -> Resource:
        """What it takes nodes of."""
        return self.hardware_class, self.capacity_type

    @property
    def spot(self) -> bool:
        """Nodes can be taken away at short notice."""
        return self.capacity_type is CapacityType.SPOT


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why a class and capacity type cannot serve a pool."""

    hardware_class: str
    capacity_type: CapacityType
    verdict: Verdict
    reason: str
    estimated: bool | None = None
    """None: no speed was looked at."""
    too_slow: TooSlow | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """Everything considered for one pool."""

    options: tuple[Option, ...] = ()
    unfit: tuple[Unfit, ...] = ()
    none_but: tuple[AtFault, ...] = ()
    """Where there is nothing to consider: the classes that are there, and that no plan may use."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A replica of a pool on a class, and what it carries."""

    quantization: Quantization
    capacity: ReplicaCapacity
    replicas_per_node: int
    resources: ReplicaResources | None
    unloaded_turn_seconds: float
    nodes_per_replica: int = 1
    spans_because: str = ""


@dataclass(frozen=True, slots=True)
class NoFit:
    """Why a replica does not fit, or is too slow."""

    verdict: Verdict
    reason: str
    estimated: bool | None
    """None: no speed was looked at."""
    slow: TooSlow | None = None

    @staticmethod
    def too_slow(slow: TooSlow, *, estimated: bool) -> "NoFit":
        """An objective that does not hold."""
        return NoFit(Verdict.TOO_SLOW, slow.reason, estimated, slow)


Judgement = Fit | NoFit


@dataclass(frozen=True, slots=True)
class PoolContext:
    """What judging a pool's candidates takes beside the class."""

    effective: Effective
    namespace: str
    namespace_labels: Mapping[str, str]
    profiles: tuple[ServingProfile, ...]
    """Of the pool's model."""
    now: datetime
    scheduled: Mapping[Resource, int] = field(default_factory=dict)
    """Replicas of the pool that have a node now: what a constrained class keeps."""
    judged: Mapping[tuple[str, Quantization], Judgement] = field(default_factory=dict)
    """By class name and quantization, what was judged beforehand with that of other pools."""
    spanning: bool = True
    """Whether replicas may span nodes."""
    running_nodes: Mapping[str, int] = field(default_factory=dict)
    """By class name, the nodes that each of the pool's replicas spans there now."""


@dataclass(frozen=True, slots=True)
class _Type:
    """What a class has of a capacity type, which is the same for all pools."""

    kind: CapacityType
    max_nodes: int | None
    usd_per_hour: Decimal
    node_usd_per_hour: Decimal
    """As in `Option`, likewise `zones`."""
    zones: int
    until: str | None
    """Constrained until then."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A class, looked at once for all pools."""

    name: str
    hardware: HardwareClass
    types: tuple[_Type, ...]
    """In canonical order."""


def offers_of(classes: Iterable[HardwareClass], now: datetime) -> tuple[Offer, ...]:
    """What pools may choose from, in canonical order (class name)."""
    return tuple(
        Offer(
            hardware.metadata.name,
            hardware,
            tuple(_type(hardware, c, now) for c in sorted(hardware.spec.capacity, key=lambda c: c.type.value)),
        )
        for hardware in sorted(classes, key=lambda c: c.metadata.name)
    )


def _type(hardware: HardwareClass, capacity: Capacity, now: datetime) -> _Type:
    kind, usd = capacity.type, capacity.usd_per_hour
    return _Type(
        kind=kind,
        max_nodes=capacity.max_nodes,
        usd_per_hour=usd,
        node_usd_per_hour=Decimal(0) if kind is CapacityType.RESERVED else usd,
        zones=len(capacity.zones or ()) or 1 if kind is CapacityType.SPOT else 1,
        until=constrained_until(hardware, kind, now) if hardware.status.constrained else None,
    )


def candidates_of(classes: Iterable[HardwareClass], context: PoolContext) -> Candidates:
    """Judge every class and capacity type for a pool, in canonical order (class name, capacity type)."""
    return candidates_among(offers_of(classes, context.now), context)


def candidates_among(offers: Iterable[Offer], context: PoolContext) -> Candidates:
    """The same of classes that were looked at already, at the context's time."""
    options: list[Option] = []
    unfit: list[Unfit] = []
    wanted = quantizations(context)
    for offer in offers:
        judged = _judge(offer.hardware, wanted, context)
        for one in offer.types:
            found = judged if isinstance(judged, NoFit) else _options(offer, one, judged, context)
            if isinstance(found, NoFit):
                unfit.append(Unfit(offer.name, one.kind, found.verdict, found.reason, found.estimated, found.slow))
            else:
                options.extend(found)
    return Candidates(tuple(options), tuple(unfit))


def _judge(hardware: HardwareClass, wanted: Sequence[Quantization], context: PoolContext) -> list[Fit] | NoFit:
    """What of a class would serve a pool, whatever the capacity type."""
    if objection := not_allowed(hardware, context):
        return NoFit(Verdict.NOT_ALLOWED, objection, None)
    if context.effective.objective == "Power" and hardware.spec.power_watts is None:
        return NoFit(Verdict.NOT_COMPARABLE, NO_WATTS, None)
    judged = [_judge_quantization(hardware, q, context) for q in wanted]
    fitting = [j for j in judged if isinstance(j, Fit)]
    return fitting or min((j for j in judged if isinstance(j, NoFit)), key=lambda j: _CLOSENESS[j.verdict])


def _options(offer: Offer, one: _Type, fitting: Sequence[Fit], context: PoolContext) -> list[Option] | NoFit:
    """Options of a capacity type, as long as there are nodes of it."""
    most = one.max_nodes
    if most is not None:
        least = min([fit.nodes_per_replica for fit in fitting])
        if most < least:
            short = f": a replica spans {least}" if least > 1 else ""
            reason = f"maxNodes of {one.kind.value} is {most}{short}"
            return NoFit(Verdict.NO_CAPACITY, reason, fitting[0].capacity.estimated)
    own_limit = context.scheduled.get((offer.name, one.kind), 0) if one.until else None
    if own_limit == 0:
        reason = f"{one.kind.value} nodes could not be had; tried again after {one.until}"
        return NoFit(Verdict.CONSTRAINED, reason, fitting[0].capacity.estimated)
    spec = offer.hardware.spec
    return [
        Option(
            hardware_class=offer.name,
            capacity_type=one.kind,
            quantization=fit.quantization,
            vendor=spec.vendor,
            kind=spec.kind,
            capacity=fit.capacity,
            replicas_per_node=fit.replicas_per_node,
            resources=fit.resources,
            node_usd_per_hour=one.node_usd_per_hour,
            list_usd_per_hour=one.usd_per_hour,
            node_watts=spec.power_watts,
            unloaded_turn_seconds=fit.unloaded_turn_seconds,
            zones=one.zones,
            own_replica_limit=own_limit,
            constrained_until=one.until,
            nodes_per_replica=fit.nodes_per_replica,
            spans_because=fit.spans_because,
        )
        for fit in fitting
        if most is None or fit.nodes_per_replica <= most
    ]


# --- Allowed? -------------------------------------------------------------------------------------------------------


def not_allowed(hardware: HardwareClass, context: PoolContext) -> str | None:
    """Why policy keeps a pool off a class; None when it does not."""
    effective, name = context.effective, hardware.metadata.name
    if effective.deny and matches(effective.deny, hardware):
        return f"spec.placement.hardware.deny matches {name}"
    if (
        effective.allow
        and (effective.allow.names or effective.allow.selector)
        and not matches(effective.allow, hardware)
    ):
        return f"spec.placement.hardware.allow does not match {name}"
    return _namespace_refused(hardware, context)


def _namespace_refused(hardware: HardwareClass, context: PoolContext) -> str | None:
    selector = hardware.spec.namespace_selector
    wanted = selector.match_labels if selector else None
    if not wanted:
        return None
    missing = {k: v for k, v in sorted(wanted.items()) if context.namespace_labels.get(k) != v}
    if missing:
        labels = ", ".join(f"{k}={v}" for k, v in missing.items())
        return f"its namespaceSelector needs namespace {context.namespace} to be labelled {labels}"
    return None


def matches(match: HardwareMatch, hardware: HardwareClass) -> bool:
    """A class is matched by its name or by carrying all labels; an empty match matches nothing."""
    if hardware.metadata.name in (match.names or []):
        return True
    selector = match.selector or {}
    return bool(selector) and all(hardware.metadata.labels.get(k) == v for k, v in selector.items())


def in_force(entries: Iterable[E] | None, now: datetime) -> list[E]:
    """The capacity types that cannot be had now; those whose back-off has ended are tried again."""
    return [entry for entry in entries or () if (until := api_time(entry.until)) and until > now]


def constrained_until(hardware: HardwareClass, capacity_type: CapacityType, now: datetime) -> str | None:
    """Until when a capacity type cannot be had, if it cannot now."""
    found = (entry.until for entry in in_force(hardware.status.constrained, now) if entry.type is capacity_type)
    return next(found, None)


def api_time(text: str | None) -> datetime | None:
    """A time as the API has it; one without an offset is UTC, one that cannot be read is none."""
    try:
        parsed = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return parsed.replace(tzinfo=UTC) if parsed and parsed.tzinfo is None else parsed


# --- Fits and fast enough? ------------------------------------------------------------------------------------------


_CLOSENESS = {Verdict.TOO_SLOW: 0, Verdict.DOES_NOT_FIT: 1, Verdict.NOT_COMPARABLE: 2}
"""Of several quantizations that fail, the one nearest to serving gives the reason."""


def quantizations(context: PoolContext) -> list[Quantization]:
    """What a pool may serve: its own format, or for Any, Int8 and BF16, and Int4 where a profile shows that a 4-bit
    checkpoint exists (rounding an ordinary one to 4 bits costs too much quality to do it unasked)."""
    wanted = context.effective.quantization
    if wanted is not Quantization.ANY:
        return [wanted]
    four_bit = any(p.spec.quantization == Quantization.INT4.value for p in context.profiles)
    return [Quantization.INT8, Quantization.BF16, *([Quantization.INT4] if four_bit else [])]


def _judge_quantization(hardware: HardwareClass, quantization: Quantization, context: PoolContext) -> Fit | NoFit:
    known = context.judged.get((hardware.metadata.name, quantization))
    return _judge_alone(hardware, quantization, context) if known is None else known


def _judge_alone(hardware: HardwareClass, quantization: Quantization, context: PoolContext) -> Fit | NoFit:
    model, load = context.effective.model, Load.of(context.effective)
    name, runtime = hardware.metadata.name, hardware.spec.runtime.name
    profile = best_profile(context.profiles, model, quantization, name, runtime)
    if profile:
        return _judge_profile(profile, quantization, load, hardware, context)
    pair = f"model {model}, quantization {quantization.value}, hardwareClass {name} and runtime {runtime.value}"
    architecture = ARCHITECTURES.get(model)
    if architecture is None:
        return NoFit(
            Verdict.NOT_COMPARABLE, f"no ServingProfile for {pair}, and the model is not in the catalogue", True
        )
    if objection := estimable(hardware.spec):
        return NoFit(Verdict.NOT_COMPARABLE, f"{objection}: supply a ServingProfile for {pair}", True)
    if arithmetic := spans.too_large(hardware.spec, architecture, quantization, load.context_tokens):
        fits = {}
        for nodes in spans.widths(hardware.spec, architecture, quantization, load.context_tokens):
            speed = roofline_speed(hardware.spec, architecture, quantization, load.mean_context_tokens, nodes)
            fits[nodes] = replica_capacity(speed, load), unloaded_turn_seconds(speed, load)
        return span_fit(hardware, architecture, quantization, context, arithmetic, fits)
    speed = roofline_speed(hardware.spec, architecture, quantization, load.mean_context_tokens)
    capacity, unloaded = replica_capacity(speed, load), unloaded_turn_seconds(speed, load)
    if isinstance(capacity, TooSlow):
        return NoFit.too_slow(capacity, estimated=True)
    return Fit(quantization, capacity, 1, None, unloaded)


def span_fit(
    hardware: HardwareClass,
    architecture: Architecture,
    quantization: Quantization,
    context: PoolContext,
    too_large_for_one: str,
    judged: Mapping[int, tuple[ReplicaCapacity | TooSlow, float]],
) -> Fit | NoFit:
    """Whether a replica that does not fit a node fits several.  `judged`: by number of nodes, what was found."""
    spec, load = hardware.spec, Load.of(context.effective)
    if not judged:
        most = spans.most_nodes(spec)
        rest = spans.too_large(spec, architecture, quantization, load.context_tokens, most) if most > 1 else None
        return NoFit(
            Verdict.DOES_NOT_FIT, f"{too_large_for_one}; over {most} nodes {rest}" if rest else too_large_for_one, True
        )
    least = min(judged)
    if not context.spanning:
        reason = f"{too_large_for_one}; {least} nodes a replica would hold it, but {spans.NOT_INSTALLED}"
        return NoFit(Verdict.DOES_NOT_FIT, reason, True)
    able = {n: capacity for n, (capacity, _) in judged.items() if isinstance(capacity, ReplicaCapacity)}
    if not able:
        slow = next(found for found, _ in judged.values() if isinstance(found, TooSlow))
        return NoFit(Verdict.TOO_SLOW, f"over {least} nodes {slow.reason}", True, slow)
    demand, percent = float(context.effective.requests_per_second), context.effective.min_savings_percent
    nodes = spans.chosen(able, demand, context.running_nodes.get(hardware.metadata.name), percent)
    share = stage_share(architecture.layers, nodes)
    weights = architecture.stage_bytes(quantization, spec.runtime.name, share) / GIB
    kv = able[nodes].kv_cache_tokens * architecture.kv_bytes_per_token(spec.runtime.name) * share / GIB
    because = f"{too_large_for_one}; over {nodes}, weights {weights:.1f} GiB + KV {kv:.1f} GiB each"
    return Fit(quantization, able[nodes], 1, None, judged[nodes][1], nodes, because)


def _judge_profile(
    profile: ServingProfile, quantization: Quantization, load: Load, hardware: HardwareClass, context: PoolContext
) -> Fit | NoFit:
    speed = judge_profile(profile, load, hardware, context)
    if isinstance(speed, NoFit):
        return speed
    return profile_fit(profile, quantization, replica_capacity(speed, load), unloaded_turn_seconds(speed, load))


def judge_profile(profile: ServingProfile, load: Load, hardware: HardwareClass, context: PoolContext) -> Speed | NoFit:
    """A profile's speed at a load's context, where it allows one request of it."""
    name, spec = profile.metadata.name, profile.spec
    if objection := spans.objection(hardware, spec.nodes_per_replica or 1, spanning=context.spanning):
        return NoFit(Verdict.DOES_NOT_FIT, f"by ServingProfile {name} {objection}", False)
    longest = min(spec.kv_cache_tokens, spec.max_context_tokens or spec.kv_cache_tokens)
    if load.context_tokens > longest:
        reason = (
            f"one request is {load.prompt_tokens} + {load.output_tokens} = {load.context_tokens} tokens"
            f" > {longest} that ServingProfile {name} allows"
        )
        return NoFit(Verdict.DOES_NOT_FIT, reason, False)
    return profile_speed(profile, load.mean_context_tokens, hardware.spec.runtime)


def profile_fit(
    profile: ServingProfile,
    quantization: Quantization,
    capacity: ReplicaCapacity | TooSlow,
    unloaded: float,
) -> Fit | NoFit:
    """What a profile's replica carries, in the form of a judgement."""
    if isinstance(capacity, TooSlow):
        return NoFit.too_slow(capacity, estimated=profile.spec.provenance.method is ProvenanceMethod.ESTIMATED)
    nodes = profile.spec.nodes_per_replica or 1
    because = f"by ServingProfile {profile.metadata.name}" if nodes > 1 else ""
    per_node, resources = profile.spec.replicas_per_node or 1, profile.spec.resources
    return Fit(quantization, capacity, per_node, resources, unloaded, nodes, because)
