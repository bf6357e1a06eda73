"""What happens to the fleet, and what is assumed about it?  A scenario as a person writes it, checked.

Every figure here is an assumption of whoever wrote the scenario; `berth simulate` prints them all.
"""

from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from berth_operator.api import CapacityType
from berth_operator.api.meta import ApiModel
from berth_operator.api.quantities import (
    DecimalString,
    Duration,
    Percent,
    PositiveDecimalString,
    PositiveDuration,
)


class Bursts(ApiModel):
    """Short surges on top of the day's shape; they come at random, to each pool by itself."""

    per_day: DecimalString = Decimal(1)
    times: PositiveDecimalString = Decimal(2)
    """Of the demand at that time."""
    duration: PositiveDuration = timedelta(minutes=30)


class DemandShape(ApiModel):
    """A pool's demand over a week, as shares of what its spec declares, which is taken for the peak."""

    trough_percent: Annotated[int, Field(ge=1, le=100)] = 20
    """Of the peak, in the small hours; a cosine over the day between the two."""
    peak_hour: Annotated[int, Field(ge=0, le=23)] = 15
    weekend_percent: Annotated[int, Field(ge=1, le=200)] = 50
    """Of a working day; days 6 and 7 of each week."""
    noise_percent: Percent = 10
    """Standard deviation of each step, log-normal."""
    bursts: Bursts = Bursts()


class SpotMarket(ApiModel):
    """Spot prices and interruptions where classes do not say."""

    percent: Annotated[int, Field(ge=5, le=100)] | None = None
    """Of on demand, on average; unset: what each class has."""
    volatility_percent_per_day: Percent = 0
    """Standard deviation of a day's change; prices return to their mean within days and never exceed on demand."""
    interruptions_per_hour: DecimalString = Decimal("0.02")
    """Of one node, where its class does not say."""


class PriceMove(ApiModel):
    """A lasting change of a list price."""

    at: Duration
    hardware_class: str
    capacity_type: CapacityType
    times: PositiveDecimalString


class StockOut(ApiModel):
    """No new node of a kind is to be had for a while; those that run stay."""

    at: Duration
    lasts: PositiveDuration
    hardware_class: str
    capacity_type: CapacityType | None = None
    """Unset: all."""


class SpotReclaim(ApiModel):
    """All spot nodes of a class in one zone are taken at once: those of each pool's fullest, or all of them where the
    class states no zones."""

    at: Duration
    hardware_class: str


class Starts(ApiModel):
    """Time from asking for a node to a worker that serves: provisioning, pulling images, loading the model."""

    cpu: PositiveDuration = Field(timedelta(minutes=2), alias="CPU")
    gpu: PositiveDuration = Field(timedelta(minutes=6), alias="GPU")
    accelerator: PositiveDuration = Field(timedelta(minutes=8), alias="Accelerator")


def _divides_a_day(step: timedelta) -> timedelta:
    if timedelta(days=1) % step:
        raise ValueError("a day must be a whole number of steps: write one such as 15m or 1h")
    return step


class Scenario(ApiModel):
    """Days of demand and events, and what is assumed."""

    description: str = ""
    days: Annotated[int, Field(ge=1, le=60)] = 7
    step: Annotated[PositiveDuration, AfterValidator(_divides_a_day)] = timedelta(minutes=15)
    """Each policy decides once a step."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    copies: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Of every pool, each with demand of its own: how a large fleet is made of a small one."""
    times: PositiveDecimalString = Decimal(1)
    """What every pool's declared demand is multiplied by."""
    headroom_percent: Percent = 25
    """Beyond the demand of the last step: what each policy makes room for, ours included."""
    catalog: list[str] = Field(default_factory=list)
    """Classes of the catalog that can be had."""
    files: list[str] = Field(default_factory=list)
    """Files of pools, classes and profiles, relative to the scenario."""
    objects: list[dict[str, Any]] = Field(default_factory=list)
    """Pools, classes and profiles in place."""
    demand: DemandShape = DemandShape()
    demand_of: dict[str, DemandShape] = Field(default_factory=dict)
    """By pool name, instead of `demand`."""
    spot: SpotMarket = SpotMarket()
    price_moves: list[PriceMove] = Field(default_factory=list)
    stock_outs: list[StockOut] = Field(default_factory=list)
    spot_reclaims: list[SpotReclaim] = Field(default_factory=list)
    starts: Starts = Starts()
    watts_per_vcpu: DecimalString = Decimal("2.34")
    """Of CPU nodes that state no power: a news figure of 150 W for the 64 cores of a Graviton3."""

    @property
    def steps(self) -> int:
        """How many there are."""
        return int(timedelta(days=self.days) / self.step)

    @property
    def step_hours(self) -> float:
        """Length of one."""
        return self.step / timedelta(hours=1)
