"""Which price counts?  The class's own, or a feed's newest sane quote; a feed that is dead or absurd changes nothing.

Pure.  A price comes from one of three sources: the HardwareClass itself, a ConfigMap, or AWS.  Whatever a feed says is
compared with the class's own price, which a person wrote: too far from it is refused.  A feed that falls silent, or is
refused, leaves the last good quote in force, with the time it is of; beyond a stated age it is stale, and a stale price
moves no placement (see `hold`).  The last good quote lives in HardwareClass status, so that it outlives a restart.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from berth_operator.api import Capacity, CapacityType, HardwareClass, PriceInForce, format_decimal, format_duration
from berth_operator.api.quantities import parse_decimal

STATIC: Final = "HardwareClass"
"""Source of a price that stands in the class itself."""

Key = tuple[str, CapacityType]
"""Name of a hardware class, and capacity type."""


@dataclass(frozen=True, slots=True)
class PricePolicy:
    """What to believe of a feed, and for how long."""

    max_age: timedelta = timedelta(hours=6)
    """Beyond it a price that a feed once gave is stale."""
    least_times: Decimal = Decimal("0.05")
    """Of the class's own price; spot has been seen at a tenth of on demand, hardly below."""
    most_times: Decimal = Decimal(10)
    ahead: timedelta = timedelta(minutes=5)
    """How far a quote's time may lie in the future: clocks differ."""
    dead_band: Decimal = Decimal("0.02")
    """Share by which a quote must differ from the price in force to change it: less would be plans for nothing."""


@dataclass(frozen=True, slots=True)
class Quote:
    """What a feed says that a node costs."""

    usd_per_hour: Decimal
    source: str
    as_of: datetime
    """With a time zone."""


@dataclass(frozen=True, slots=True)
class Quotes:
    """What all feeds say now, best source first where several speak of one key."""

    by_key: Mapping[Key, tuple[Quote, ...]] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    """Feeds that could not be read, and why."""


@dataclass(frozen=True, slots=True)
class Price:
    """The price that plans use."""

    usd_per_hour: Decimal
    source: str
    as_of: datetime | None = None
    """None for the class's own price, which has no age."""
    stale: bool = False
    refused: str | None = None
    """Why what a feed says now is not believed."""

    @property
    def live(self) -> bool:
        """From a feed."""
        return self.source != STATIC


@dataclass(frozen=True, slots=True)
class Priced:
    """Classes with the prices in force in them, and where those come from."""

    classes: tuple[HardwareClass, ...]
    prices: Mapping[Key, Price] = field(default_factory=dict)
    failures: tuple[str, ...] = ()

    @property
    def stale(self) -> dict[Key, Price]:
        """Prices that no placement may be moved for."""
        return {key: price for key, price in self.prices.items() if price.stale}

    def of(self, hardware_class: str) -> dict[CapacityType, Price]:
        """Prices of one class."""
        return {kind: price for (name, kind), price in self.prices.items() if name == hardware_class}


def price(classes: Iterable[HardwareClass], quotes: Quotes, now: datetime, policy: PricePolicy | None = None) -> Priced:
    """Put the prices in force into the classes.  Reserved nodes are already paid: no feed prices them."""
    policy = policy or PricePolicy()
    priced, prices = [], {}
    for hardware in classes:
        capacities = []
        for capacity in hardware.spec.capacity:
            key = (hardware.metadata.name, capacity.type)
            prices[key] = _in_force(hardware, capacity, quotes.by_key.get(key, ()), now, policy)
            capacities.append(capacity.model_copy(update={"usd_per_hour": prices[key].usd_per_hour}))
        spec = hardware.spec.model_copy(update={"capacity": capacities})
        priced.append(hardware.model_copy(update={"spec": spec}))
    return Priced(tuple(priced), prices, quotes.failures)


def own_prices(classes: Iterable[HardwareClass]) -> Priced:
    """Each class with its own price: no feed is followed."""
    kept = tuple(classes)
    return Priced(
        kept, {(h.metadata.name, c.type): Price(c.usd_per_hour, STATIC) for h in kept for c in h.spec.capacity}
    )


def in_status(priced: Mapping[CapacityType, Price]) -> list[PriceInForce]:
    """Prices as HardwareClass status has them."""
    return [
        PriceInForce(
            type=kind,
            usd_per_hour=format_decimal(found.usd_per_hour),
            source=found.source,
            as_of=_text(found.as_of) if found.as_of else None,
        )
        for kind, found in priced.items()
    ]


def settled_prices(
    old: Iterable[PriceInForce], new: Iterable[PriceInForce], policy: PricePolicy | None = None
) -> list[PriceInForce]:
    """New prices for status, but the old entry where only its time has moved a little.

    A quote confirmed every few minutes would otherwise be a write every few minutes.  An entry is renewed when its
    price or source changes, and before it is a quarter of the way to being stale.
    """
    policy = policy or PricePolicy()
    before = {entry.type: entry for entry in old}
    return [_settled(before.get(entry.type), entry, policy) for entry in new]


def _settled(old: PriceInForce | None, new: PriceInForce, policy: PricePolicy) -> PriceInForce:
    if old is None or (old.source, old.usd_per_hour) != (new.source, new.usd_per_hour):
        return new
    before, after = _time(old.as_of), _time(new.as_of)
    if before is None or after is None or after < before or after - before >= policy.max_age / 4:
        return new
    return old


def _in_force(
    hardware: HardwareClass, capacity: Capacity, offered: Iterable[Quote], now: datetime, policy: PricePolicy
) -> Price:
    own = Price(capacity.usd_per_hour, STATIC)
    if capacity.type is CapacityType.RESERVED:
        return own
    refused = None
    good: list[Quote] = []
    for quote in offered:
        objection = absurd(quote, hardware, capacity, now, policy)
        if objection is None:
            good.append(quote)
            break  # the best source that makes sense; a worse one is not asked
        refused = refused or objection
    if last := _last_good(hardware, capacity.type):
        good.append(last)
    if not good:
        return Price(own.usd_per_hour, STATIC, refused=refused)
    best = max(good, key=lambda quote: quote.as_of)  # the first of equals: a live quote before what status remembers
    stale = now - best.as_of > policy.max_age
    if stale and hardware.metadata.generation != (hardware.status.observed_generation or 0):
        return Price(own.usd_per_hour, STATIC, refused=refused)  # its owner has spoken since
    usd = last.usd_per_hour if last and _jitter(last.usd_per_hour, best.usd_per_hour, policy) else best.usd_per_hour
    return Price(usd, best.source, best.as_of, stale, refused)


def _jitter(in_force: Decimal, said: Decimal, policy: PricePolicy) -> bool:
    """Whether a quote says the price in force once more, but for what status would not show."""
    return in_force.is_finite() and abs(said - in_force) <= policy.dead_band * max(said, in_force)


def absurd(quote: Quote, hardware: HardwareClass, capacity: Capacity, now: datetime, policy: PricePolicy) -> str | None:
    """Why a quote cannot be true, with the arithmetic; None when it can."""
    says = f"{quote.source} says {quote.usd_per_hour:.6g} USD/h"
    if not quote.usd_per_hour.is_finite() or quote.usd_per_hour <= 0:
        return f"{says}: a price is above zero"
    if quote.as_of > now + policy.ahead:
        return f"{says} as of {_text(quote.as_of)}, which is in the future"
    own = capacity.usd_per_hour
    if own <= 0:  # a what-if class: what another way to get its nodes costs is the next best yardstick
        own = max((c.usd_per_hour for c in hardware.spec.capacity), default=own)
    if own <= 0:
        return None
    times = float(quote.usd_per_hour) / float(own)  # a float: no exponent is too large for it
    if not float(policy.least_times) <= times <= float(policy.most_times):
        return (
            f"{says}, {times:.3g} times the {format_decimal(own)} of the class itself (believed:"
            f" {policy.least_times:f} to {policy.most_times:f} times): correct spec.capacity.usdPerHour if it is true"
        )
    return None


def complaint(priced: Priced, hardware_class: str, policy: PricePolicy | None = None) -> tuple[str, str] | None:
    """Reason and message of what is wrong with a class's prices, for a condition; None when nothing is.

    Says since when, not how long: a message that changes every minute would be a write every minute.
    """
    policy = policy or PricePolicy()
    found = priced.of(hardware_class)
    stale = [
        f"{kind.value} {format_decimal(p.usd_per_hour)} USD/h is as of {_text(p.as_of)} ({p.source})"
        for kind, p in found.items()
        if p.stale and p.as_of
    ]
    refused = [f"{kind.value}: {p.refused}" for kind, p in found.items() if p.refused]
    why = [*refused, *(priced.failures if stale else ())]
    if stale:
        limit = format_duration(policy.max_age)
        text = f"older than {limit}, so no placement moves for it: {'; '.join(stale)}"
        return "Stale", text + (f". {'; '.join(why)}" if why else "")
    if refused:
        return "Refused", f"the last good price stands: {'; '.join(refused)}"
    return None


def age_text(price: Price, now: datetime) -> str:
    """How old a price is, for people: "3h10m"; a class's own has no age."""
    if price.as_of is None:
        return "-"
    minutes = max(0, round((now - price.as_of).total_seconds() / 60))
    return format_duration(timedelta(minutes=minutes))


def _last_good(hardware: HardwareClass, kind: CapacityType) -> Quote | None:
    for entry in hardware.status.prices or ():
        as_of = _time(entry.as_of)
        if entry.type is kind and entry.source != STATIC and as_of:
            try:
                return Quote(parse_decimal(entry.usd_per_hour), entry.source, as_of)
            except ValueError:
                return None
    return None


def _time(text: str | None) -> datetime | None:
    try:
        found = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found and found.tzinfo is None else found


def _text(when: datetime | None) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if when else "never"
