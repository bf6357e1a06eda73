"""What does AWS ask for a node right now?  The price list for on demand, the spot price history for spot.

I/O with AWS by boto3, an optional dependency (`berth-operator[aws]`); credentials and end points are found as boto3
finds them.  Needs `pricing:GetProducts` and `ec2:DescribeSpotPriceHistory`.  Calls block: run them in a thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from berth_operator.api import Capacity, CapacityType, HardwareClass
from berth_operator.api.names import ZONE_LABEL
from berth_operator.prices.quotes import Key, Quote

INSTANCE_TYPE: Final = "node.kubernetes.io/instance-type"
_EC2_TYPE: Final = re.compile(r"[a-z][a-z0-9-]*\.[a-z0-9-]+")
_PRICE_LIST_REGION: Final = "us-east-1"
"""The price list of every region is served from this one."""
_LINUX_SHARED: Final = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
}


class AwsPriceError(RuntimeError):
    """AWS could not be asked, or gave no answer that can be read; the message says which and why."""


class AwsPrices:
    """Prices of one region.  Raises AwsPriceError at once without boto3."""

    def __init__(self, region: str, *, timeout_s: float = 10.0) -> None:
        try:
            import boto3  # noqa: PLC0415 - optional
            from botocore.config import Config  # noqa: PLC0415
        except ImportError:
            raise AwsPriceError("AWS prices need boto3: install berth-operator[aws]") from None
        self._region = region
        config = Config(connect_timeout=timeout_s, read_timeout=timeout_s, retries={"max_attempts": 2})
        self._pricing = boto3.client("pricing", region_name=_PRICE_LIST_REGION, config=config)
        self._ec2 = boto3.client("ec2", region_name=region, config=config)

    def quotes(self, classes: Iterable[HardwareClass]) -> tuple[dict[Key, Quote], list[str]]:
        """Quotes for each class whose capacity names one instance type in its selector, and what failed."""
        wanted = _wanted(classes)
        out: dict[Key, Quote] = {}
        failures: list[str] = []
        on_demand: dict[str, Quote] = {}
        for instance_type in sorted({w.instance_type for w in wanted if w.key[1] is CapacityType.ON_DEMAND}):
            try:
                on_demand[instance_type] = self.on_demand(instance_type)
            except AwsPriceError as error:
                failures.append(str(error))
        types = sorted({w.instance_type for w in wanted if w.key[1] is CapacityType.SPOT})
        spot: dict[str, dict[str, Quote]] = {}
        if types:
            try:
                spot = self.spot(types)
            except AwsPriceError as error:
                failures.append(str(error))
        for item in wanted:
            if item.key[1] is CapacityType.ON_DEMAND:
                quote = on_demand.get(item.instance_type)
            else:
                quote = _in_zones(spot.get(item.instance_type, {}), item.zones)
            if quote:
                out[item.key] = quote
        return out, failures

    def on_demand(self, instance_type: str) -> Quote:
        """The list price of one Linux node in this region.  Raises AwsPriceError."""
        fields = {"instanceType": instance_type, "regionCode": self._region, **_LINUX_SHARED}
        filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in fields.items()]
        what = f"AWS price list {self._region}"
        answer = self._ask(
            what, lambda: self._pricing.get_products(ServiceCode="AmazonEC2", Filters=filters, FormatVersion="aws_v1")
        )
        prices = {price for product in answer.get("PriceList", ()) for price in _list_prices(product)}
        if not prices:
            raise AwsPriceError(f"{what}: has no price of {instance_type}")
        return Quote(max(prices), what, _now())

    def spot(self, instance_types: list[str]) -> dict[str, dict[str, Quote]]:
        """The spot price in force, by instance type and zone.  Raises AwsPriceError."""
        what = f"AWS spot history {self._region}"
        now = _now()
        pages = self._ec2.get_paginator("describe_spot_price_history")
        entries = self._ask(
            what,
            lambda: [
                entry
                for page in pages.paginate(
                    InstanceTypes=instance_types, ProductDescriptions=["Linux/UNIX"], StartTime=now, EndTime=now
                )
                for entry in page["SpotPriceHistory"]
            ],
        )
        newest: dict[tuple[str, str], Any] = {}
        for entry in entries:
            place = (entry["InstanceType"], entry["AvailabilityZone"])
            if place not in newest or entry["Timestamp"] > newest[place]["Timestamp"]:
                newest[place] = entry
        out: dict[str, dict[str, Quote]] = {}
        for (instance_type, zone), entry in newest.items():
            try:
                usd = Decimal(entry["SpotPrice"])
            except InvalidOperation:
                continue
            out.setdefault(instance_type, {})[zone] = Quote(usd, f"AWS spot history {zone}", now)
        return out

    def _ask(self, what: str, call: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            return call()
        except (BotoCoreError, ClientError, OSError) as error:
            raise AwsPriceError(f"{what}: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One way to get nodes of a class that AWS has a price for."""

    key: Key
    instance_type: str
    zones: tuple[str, ...]
    """That the class is bound to; nothing: any."""


def _wanted(classes: Iterable[HardwareClass]) -> list[_Wanted]:
    """Capacities on demand and spot whose selector names one instance type of EC2."""
    return [
        _Wanted((hardware.metadata.name, capacity.type), selector[INSTANCE_TYPE], _zones(capacity))
        for hardware in classes
        for capacity in hardware.spec.capacity
        if capacity.type is not CapacityType.RESERVED
        and _EC2_TYPE.fullmatch((selector := capacity.selector or {}).get(INSTANCE_TYPE, ""))
    ]


def _zones(capacity: Capacity) -> tuple[str, ...]:
    selected = (capacity.selector or {}).get(ZONE_LABEL)
    return (selected,) if selected else tuple(capacity.zones or ())


def _in_zones(by_zone: Mapping[str, Quote], zones: tuple[str, ...]) -> Quote | None:
    """The dearest of the zones that a class is bound to, over which it is spread; else the cheapest of all, where an
    autoscaler would go."""
    bound = [by_zone[zone] for zone in zones if zone in by_zone]
    if zones:
        return max(bound, key=lambda quote: (quote.usd_per_hour, quote.source), default=None)
    return min(by_zone.values(), key=lambda quote: (quote.usd_per_hour, quote.source), default=None)


def _list_prices(product: str) -> Iterable[Decimal]:
    """USD per hour in one product of the price list, a JSON document in a string."""
    for term in json.loads(product).get("terms", {}).get("OnDemand", {}).values():
        for dimension in term.get("priceDimensions", {}).values():
            usd = dimension.get("pricePerUnit", {}).get("USD")
            if dimension.get("unit") in ("Hrs", "Hours") and usd:
                try:
                    yield Decimal(usd)
                except InvalidOperation:
                    continue


def _now() -> datetime:
    return datetime.now(UTC)
