"""What is in force?  A pool's spec with its class's defaults filled in, and what is wrong with it on its own."""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal, TypeVar

from berth_operator.api.inference_pool import HardwareMatch, InferencePoolSpec, WorkloadClass
from berth_operator.api.quantities import Quantization, format_decimal, format_duration, format_rate

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _ClassDefaults:
    prompt_tokens: int
    output_tokens: int
    cached_prompt_percent: int
    turns_per_session: int
    time_to_first_token_p99: timedelta
    inter_token_latency_p99: timedelta
    spot_max_traffic_percent: int
    min_on_demand_replicas: int
    survive_loss_percent: int


# An agent's turn is short and mostly cached; a person reads about 5 to 10 tokens/s, so 80 ms a token never makes
# them wait; a batch job has minutes.
_DEFAULTS = {
    WorkloadClass.AGENTIC: _ClassDefaults(
        3000, 180, 90, 12, timedelta(milliseconds=800), timedelta(milliseconds=60), 70, 1, 70
    ),
    WorkloadClass.INTERACTIVE: _ClassDefaults(
        1000, 250, 30, 4, timedelta(seconds=1), timedelta(milliseconds=80), 50, 1, 70
    ),
    WorkloadClass.BATCH: _ClassDefaults(2000, 400, 0, 1, timedelta(seconds=60), timedelta(seconds=1), 100, 0, 0),
}


@dataclass(frozen=True, slots=True)
class Effective:
    """A pool's spec with every default resolved: what the planner plans with."""

    model: str
    quantization: Quantization
    workload_class: WorkloadClass
    prompt_tokens: int
    output_tokens: int
    cached_prompt_percent: int
    turns_per_session: int
    requests_per_second: Decimal
    """Arrivals; for declared sessions: sessions / (think time + turn latency objective), a lower bound on each
    session's cycle is the think time, so the objective stands for the time served (Little's law)."""
    concurrent_sessions: int | None
    think_time: timedelta
    time_to_first_token_p99: timedelta
    inter_token_latency_p99: timedelta
    turn_latency_p99: timedelta
    objective: Literal["Cost", "Power", "Latency"]
    allow: HardwareMatch | None
    deny: HardwareMatch | None
    spot_max_traffic_percent: int
    min_on_demand_replicas: int
    survive_loss_percent: int
    max_traffic_percent_per_vendor: int
    min_savings_usd_per_hour: Decimal
    min_savings_percent: int
    cooldown: timedelta
    mode: Literal["Apply", "Recommend"]
    max_usd_per_hour: Decimal | None
    on_exceeded: Literal["Shed", "Overspend"]
    min_replicas: int
    max_replicas: int | None
    priority: int
    suspend: bool

    def to_api(self) -> dict[str, Any]:
        """The `status.effective` form: only what a reader of the pool cannot see in its spec's own fields."""
        return {
            "quantization": self.quantization.value,
            "shape": {
                "promptTokens": self.prompt_tokens,
                "outputTokens": self.output_tokens,
                "cachedPromptPercent": self.cached_prompt_percent,
                "turnsPerSession": self.turns_per_session,
            },
            "requestsPerSecond": format_rate(self.requests_per_second),
            "objectives": {
                "timeToFirstTokenP99": format_duration(self.time_to_first_token_p99),
                "interTokenLatencyP99": format_duration(self.inter_token_latency_p99),
                "turnLatencyP99": format_duration(self.turn_latency_p99),
            },
            "spot": {
                "maxTrafficPercent": self.spot_max_traffic_percent,
                "minOnDemandReplicas": self.min_on_demand_replicas,
                "surviveLossPercent": self.survive_loss_percent,
            },
            "disruption": {
                "minSavingsUsdPerHour": format_decimal(self.min_savings_usd_per_hour),
                "minSavingsPercent": self.min_savings_percent,
                "cooldown": format_duration(self.cooldown),
            },
            "mode": self.mode,
        }


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def resolve(spec: InferencePoolSpec) -> Effective:
    """Fill in the defaults of the workload class.  Total: never raises on a spec that validated."""
    defaults = _DEFAULTS[spec.workload.class_]
    shape, objectives, placement = spec.workload.shape, spec.objectives, spec.placement
    spot = placement.spot if placement else None
    disruption = placement.disruption if placement else None
    hardware = placement.hardware if placement else None
    scaling = spec.scaling
    output_tokens = _or(shape.output_tokens if shape else None, defaults.output_tokens)
    first = _or(objectives.time_to_first_token_p99 if objectives else None, defaults.time_to_first_token_p99)
    gap = _or(objectives.inter_token_latency_p99 if objectives else None, defaults.inter_token_latency_p99)
    turn = _or(objectives.turn_latency_p99 if objectives else None, first + output_tokens * gap)
    demand = spec.workload.demand
    think = _or(demand.think_time, timedelta(seconds=2))
    if demand.requests_per_second is not None:
        rate = demand.requests_per_second
    else:
        cycle = Decimal(str((think + turn).total_seconds()))
        rate = Decimal(demand.concurrent_sessions or 0) / cycle
    min_replicas = _or(scaling.min_replicas if scaling else None, 1)
    max_replicas = scaling.max_replicas if scaling else None
    return Effective(
        model=spec.model.name,
        quantization=_or(spec.model.quantization, Quantization.INT8),
        workload_class=spec.workload.class_,
        prompt_tokens=_or(shape.prompt_tokens if shape else None, defaults.prompt_tokens),
        output_tokens=output_tokens,
        cached_prompt_percent=_or(shape.cached_prompt_percent if shape else None, defaults.cached_prompt_percent),
        turns_per_session=_or(shape.turns_per_session if shape else None, defaults.turns_per_session),
        requests_per_second=rate,
        concurrent_sessions=demand.concurrent_sessions or None,  # 0 is the API server's default for none
        think_time=think,
        time_to_first_token_p99=first,
        inter_token_latency_p99=gap,
        turn_latency_p99=turn,
        objective=_or(placement.objective if placement else None, "Cost"),
        allow=hardware.allow if hardware else None,
        deny=hardware.deny if hardware else None,
        spot_max_traffic_percent=_or(spot.max_traffic_percent if spot else None, defaults.spot_max_traffic_percent),
        min_on_demand_replicas=_or(spot.min_on_demand_replicas if spot else None, defaults.min_on_demand_replicas),
        survive_loss_percent=_or(spot.survive_loss_percent if spot else None, defaults.survive_loss_percent),
        max_traffic_percent_per_vendor=_or(
            placement.diversity.max_traffic_percent_per_vendor if placement and placement.diversity else None, 100
        ),
        min_savings_usd_per_hour=_or(disruption.min_savings_usd_per_hour if disruption else None, Decimal("0.10")),
        min_savings_percent=_or(disruption.min_savings_percent if disruption else None, 15),
        cooldown=_or(disruption.cooldown if disruption else None, timedelta(minutes=10)),
        mode=_or(placement.mode if placement else None, "Apply"),
        max_usd_per_hour=spec.budget.max_usd_per_hour if spec.budget else None,
        on_exceeded=_or(spec.budget.on_exceeded if spec.budget else None, "Shed"),
        min_replicas=min(min_replicas, max_replicas) if max_replicas is not None else min_replicas,
        max_replicas=max_replicas,
        priority=_or(spec.priority, 0),
        suspend=_or(spec.suspend, False),
    )


@dataclass(frozen=True, slots=True)
class SpecProblem:
    """One reason why a spec cannot work, in the form of a condition."""

    reason: str
    message: str


def spec_problems(effective: Effective) -> list[SpecProblem]:
    """What is contradictory once defaults are filled in (CEL has already checked what the user wrote)."""
    problems = []
    decode = effective.output_tokens * effective.inter_token_latency_p99
    if decode > effective.turn_latency_p99:
        problems.append(
            SpecProblem(
                "ObjectivesContradict",
                f"spec.objectives.turnLatencyP99: {format_duration(effective.turn_latency_p99)} is shorter than"
                f" {effective.output_tokens} tokens x {format_duration(effective.inter_token_latency_p99)} ="
                f" {format_duration(decode)}: raise turnLatencyP99 to at least that, or lower interTokenLatencyP99"
                " or outputTokens",
            )
        )
    if effective.time_to_first_token_p99 > effective.turn_latency_p99:
        problems.append(
            SpecProblem(
                "ObjectivesContradict",
                f"spec.objectives.timeToFirstTokenP99: {format_duration(effective.time_to_first_token_p99)}"
                f" is longer than turnLatencyP99 {format_duration(effective.turn_latency_p99)}:"
                " raise the one or lower the other",
            )
        )
    return problems
