"""What goes into a plan and what comes out?  Plain immutable data; `plan(Snapshot) -> Plan` is a pure function."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

from berth_operator.api import (
    CapacityType,
    Effective,
    HardwareClass,
    InferencePool,
    Quantization,
    ReplicaResources,
    ServingProfile,
)


@dataclass(frozen=True, slots=True)
class RunningPlacement:
    """What runs now: replicas of a pool on a class and capacity type, as the Deployment and its pods show."""

    pool: str
    """`namespace/name`"""
    hardware_class: str
    capacity_type: CapacityType
    replicas: int
    ready_replicas: int
    scheduled_replicas: int | None = None
    """Pods that have a node, ready or still loading: what a Constrained class keeps.  None: take the ready ones."""
    leaving_replicas: int = 0
    """Pods whose node is going away; none of `scheduled_replicas`."""
    quantization: Quantization | None = None
    """What they serve, where known; a pool of quantization Any keeps it as it keeps its hardware."""
    nodes_per_replica: int = 1
    nodes: int | None = None
    """That its pods stand on; None: not looked at."""


@dataclass(frozen=True, slots=True)
class Stay:
    """Replicas that stay where they are, though the plan has no place for them."""

    pool: str
    hardware_class: str
    capacity_type: CapacityType
    replicas: int
    nodes: int
    """That they take where they share none."""
    replicas_per_node: int
    shared_for: str | None
    """Objective of the pools whose replicas may stand beside them; None: nobody's may."""
    usd_per_hour: Decimal | None = None
    """Of those nodes at the class's price; None: its class, or capacity, is there no more."""

    @property
    def resource(self) -> tuple[str, CapacityType]:
        """What it takes nodes of."""
        return self.hardware_class, self.capacity_type


@dataclass(frozen=True, slots=True)
class AtFault:
    """A class that is there, and that no plan may use: what it says cannot be true."""

    name: str
    message: str
    """Field, what was found, what would be right."""
    hardware: HardwareClass | None = None
    """None: it does not even parse."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a plan depends on. Same snapshot, same plan."""

    now: datetime
    pools: tuple[InferencePool, ...] = ()
    hardware_classes: tuple[HardwareClass, ...] = ()
    serving_profiles: tuple[ServingProfile, ...] = ()
    running: tuple[RunningPlacement, ...] = ()
    namespace_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By namespace, for `HardwareClass.spec.namespaceSelector`."""
    at_fault: tuple[AtFault, ...] = ()
    """Classes that are none of `hardware_classes`."""
    unreadable: frozenset[str] = frozenset()
    """Pools (`namespace/name`) that are there and do not parse: what they run stays."""
    spanning: bool = True
    """Whether replicas may span nodes: LeaderWorkerSets can be made."""


class Verdict(StrEnum):
    """What became of a candidate (a class and capacity type) of a pool."""

    CHOSEN = "Chosen"
    TOO_EXPENSIVE = "TooExpensive"
    TOO_SLOW = "TooSlow"
    DOES_NOT_FIT = "DoesNotFit"
    NOT_ALLOWED = "NotAllowed"
    NO_CAPACITY = "NoCapacity"
    CONSTRAINED = "Constrained"
    LIMITED_BY_POLICY = "LimitedByPolicy"
    NOT_COMPARABLE = "NotComparable"
    AT_FAULT = "AtFault"


@dataclass(frozen=True, slots=True)
class ReplicaCapacity:
    """What one replica of a pool carries on a class within the pool's objectives."""

    turns_per_second: float
    concurrency: int
    """Requests decoding at once at that rate."""
    time_to_first_token_p99: float
    """Seconds, predicted at that rate; likewise below."""
    inter_token_latency_p99: float
    turn_latency_p99: float
    kv_cache_tokens: int
    estimated: bool
    """True: roofline estimate; False: from a serving profile."""
    token_budget: int = 0
    """Tokens a step at most, as its runtime is told; 0: it is not, and keeps a pace."""
    pace_seconds: float = 0.0
    """p99 between tokens that its runtime is told to keep: what is promised, or less; 0: it has a token budget."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Replicas of one pool on one hardware class and capacity type: one Deployment, or one LeaderWorkerSet."""

    pool: str
    hardware_class: str
    capacity_type: CapacityType
    replicas: int
    nodes: int
    """That it takes where it shares none."""
    usd_per_hour: Decimal
    """Of all nodes that it pays; zero for Reserved."""
    watts: int | None
    traffic_percent: int
    """Share of the pool's served traffic; the placements of a pool add up to 100."""
    quantization: Quantization
    """Int8, Int4 or BF16: never Any."""
    capacity: ReplicaCapacity
    resources: ReplicaResources | None
    """Of one replica; None: a whole node each, or several."""
    replicas_per_node: int
    nodes_per_replica: int = 1
    """Above 1, `replicas_per_node` is 1."""
    shareable: bool = False
    """Its replicas may stand beside other pools': they say what they take of a node, and leave room."""
    paid: Fraction | None = None
    """Nodes that it pays where it shares some with other pools; None: all."""
    beside: int = 0
    """Other pools on the nodes that it stands on."""

    @property
    def paid_nodes(self) -> Fraction:
        """Nodes that it pays; those of all pools of a class and capacity type add up to whole ones."""
        return Fraction(self.nodes) if self.paid is None else self.paid

    @property
    def shared_with(self) -> str:
        """In words, with whom its nodes are shared; empty where with nobody."""
        if not self.beside:
            return ""
        others = "1 other pool" if self.beside == 1 else f"{self.beside} other pools"
        return f"shares a node with {others}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One class and capacity type considered for a pool, with the reason for its verdict."""

    hardware_class: str
    capacity_type: CapacityType
    verdict: Verdict
    reason: str
    """One sentence that names the binding number."""
    usd_per_million_tokens: Decimal | None
    """Price of generated tokens at the load that one replica carries within objectives."""
    estimated: bool | None
    """By roofline; None: no speed was looked at."""
    limited_until: str | None = None
    """Until when no more of it can be had than what runs, where its class is constrained."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a pool is not accepted or not met: a condition's reason and message."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """The plan of one pool."""

    pool: str
    effective: Effective
    not_accepted: Problem | None = None
    """The spec cannot work: nothing is placed."""
    placements: tuple[Placement, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    usd_per_hour: Decimal = Decimal(0)
    usd_per_million_tokens: Decimal | None = None
    """At the planned load, whole nodes included."""
    gpu_only_usd_per_hour: Decimal | None = None
    """Lower bound on the cheapest GPU-only plan of the same demand; None: no GPU class can serve it."""
    watts: int | None = None
    served_requests_per_second: float = 0.0
    unserved_requests_per_second: float = 0.0
    shortfall: Problem | None = None
    """Why demand is unserved: no capacity, budget, replica bound."""
    over_budget: Problem | None = None
    kept: Problem | None = None
    """Why a cheaper plan was not taken (minSavings, cooldown)."""
    yields: frozenset[tuple[str, CapacityType]] = frozenset()
    """Hardware that it runs on, might be placed on, and whose nodes the plan gives to others: nothing of it stays."""
    resume_usd_per_hour: Decimal | None = None
    """Of a suspended pool: what serving its demand would cost now; None: nothing could serve it."""


@dataclass(frozen=True, slots=True)
class ShadowPrice:
    """What one more node of a limited class would save: a small fleet, a whole node; a large one, at the margin."""

    hardware_class: str
    capacity_type: CapacityType
    usd_per_hour: Decimal
    at_least: bool = False
    """It may save more: the search for the best plan with that node was not finished."""
    marginal: bool = False
    """What a hair of a node is worth, by the duals of a large fleet: a whole one may save less, or more."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """What the pools of one priority go without, and must."""

    priority: int
    unserved: float
    """Sum of the shares of their demands."""
    bound: float
    """No plan that serves the more important ones as well leaves less."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The placements of every pool, from one solve over one snapshot."""

    pools: Mapping[str, PoolPlan]
    gap: float
    """Relative gap between this plan's cost and the solver's lower bound; 0 is proven optimal."""
    solver_status: str
    """Optimal; Feasible, where the search ended before the proof (see `gap`); or why some pools could not be solved."""
    staying: tuple[Stay, ...] = ()
    """What runs and stays beside the placements, whose nodes count as theirs do."""
    shadow_prices: tuple[ShadowPrice, ...] = ()
    shortages: tuple[Shortage, ...] = ()
    """By falling priority, where a large fleet goes short; small ones go as short as they must, and no more."""
