"""How are durations, money and percentages written?  Strings and integers, never floats (Kubernetes conventions)."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

DURATION_PATTERN: Final = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"
DECIMAL_PATTERN: Final = r"^[0-9]{1,12}(\.[0-9]{1,9})?$"
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_UNIT_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}


class CapacityType(StrEnum):
    """How a node is paid for.  Reserved is already paid: its price counts as zero at the margin."""

    ON_DEMAND = "OnDemand"
    SPOT = "Spot"
    RESERVED = "Reserved"


class Quantization(StrEnum):
    """Weight format of a replica; Any is resolved to one per pool."""

    INT8 = "Int8"
    INT4 = "Int4"
    BF16 = "BF16"
    ANY = "Any"


def parse_duration(value: object) -> timedelta:
    """Read "850ms", "10m" or "1h30m".  Raises ValueError that says what to write instead."""
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str) or not re.fullmatch(DURATION_PATTERN, value):
        raise ValueError(f'{value!r} is not a duration: write a string such as "850ms", "15s", "10m" or "1h30m"')
    seconds = sum((Decimal(n) * _UNIT_SECONDS[unit] for n, unit in _DURATION_PART.findall(value)), Decimal(0))
    if seconds > 10**9:
        raise ValueError(f"{value!r} is longer than 30 years: write a shorter duration")
    return timedelta(microseconds=int(seconds * 1_000_000))


def format_duration(value: timedelta) -> str:
    """Write a duration the way a person would, to the microsecond: the largest units first, ms below a second."""
    rest = value // timedelta(microseconds=1)
    if rest == 0:
        return "0s"
    out = []
    for unit, size in (("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000)):
        count, rest = divmod(rest, size)
        if count:
            out.append(f"{count}{unit}")
    if rest:
        out.append(f"{rest / 1000:g}ms")
    return "".join(out)


def format_time(moment: datetime) -> str:
    """Write a time (timezone-aware) as the Kubernetes API does: in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_decimal(value: object) -> Decimal:
    """Read a decimal string such as "0.638".  Floats are refused: they would not round-trip.

    Raises ValueError that says what to write instead.
    """
    if isinstance(value, Decimal):
        return value
    if isinstance(value, str) and re.fullmatch(DECIMAL_PATTERN, value):
        try:
            return Decimal(value)
        except InvalidOperation:  # pragma: no cover - the pattern already excludes it
            pass
    if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", value, re.ASCII):
        raise ValueError(
            f"{value!r} has too many digits: write at most 12 before the point and 9 after it, in quotes,"
            ' such as "0.638"'
        )
    raise ValueError(f'{value!r} is not a decimal: write a non-negative decimal in quotes, such as "0.638"')


def format_decimal(value: Decimal, places: int | None = None) -> str:
    """Write a decimal without an exponent; `places` rounds to that many digits after the point."""
    if places is not None:
        value = value.quantize(Decimal(1).scaleb(-places))
    return f"{value:f}"


def format_rate(value: Decimal) -> str:
    """Write requests per second: to a thousandth, below a tenth to three digits that say something."""
    small = Decimal(0) < value < Decimal("0.1")
    return format_decimal(value, min(9, 2 - value.adjusted()) if small else 3)


def format_digits(value: float) -> str:
    """Write a figure to three digits that say something, above a thousand whole: never with an exponent."""
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{Decimal(f'{value:.3g}'):f}"


def _cel(rule: str, message: str) -> dict[str, str]:
    return {"rule": rule, "message": message}


def _decimal_schema(*, positive: bool) -> dict[str, Any]:
    remedy = 'write a positive decimal in quotes, such as "0.638"'
    rules = [_cel(f"self.matches(r'{DECIMAL_PATTERN}')", f"not a decimal: {remedy}")]
    if positive:
        rules.append(
            _cel(f"!self.matches(r'{DECIMAL_PATTERN}') || double(self) > 0.0", f"must be above zero: {remedy}")
        )
    return {"type": "string", "maxLength": 24, "x-kubernetes-validations": rules}


def _require_positive_decimal(value: object) -> Decimal:
    parsed = parse_decimal(value)
    if parsed <= 0:
        raise ValueError(f'{str(value)!r} must be above zero: write a positive decimal in quotes, such as "0.638"')
    return parsed


def _require_positive_duration(value: object) -> timedelta:
    parsed = parse_duration(value)
    if parsed <= timedelta(0):
        raise ValueError(f'{value!r} must be above zero: write a duration such as "850ms"')
    return parsed


def _duration_schema(*, positive: bool) -> dict[str, Any]:
    remedy = 'write a duration such as "850ms", "15s" or "1h30m"'
    rules = [_cel(f"self.matches(r'{DURATION_PATTERN}')", f"not a duration: {remedy}")]
    if positive:
        above = f"!self.matches(r'{DURATION_PATTERN}') || duration(self) > duration('0s')"
        rules.append(_cel(above, f"must be above zero: {remedy}"))
    return {"type": "string", "maxLength": 32, "x-kubernetes-validations": rules}


_serialize_decimal = PlainSerializer(format_decimal, return_type=str)
_serialize_duration = PlainSerializer(format_duration, return_type=str)

DecimalString = Annotated[
    Decimal,
    BeforeValidator(parse_decimal),
    _serialize_decimal,
    WithJsonSchema(_decimal_schema(positive=False)),
]
PositiveDecimalString = Annotated[
    Decimal,
    BeforeValidator(_require_positive_decimal),
    _serialize_decimal,
    WithJsonSchema(_decimal_schema(positive=True)),
]
Duration = Annotated[
    timedelta, BeforeValidator(parse_duration), _serialize_duration, WithJsonSchema(_duration_schema(positive=False))
]
PositiveDuration = Annotated[
    timedelta,
    BeforeValidator(_require_positive_duration),
    _serialize_duration,
    WithJsonSchema(_duration_schema(positive=True)),
]
Percent = Annotated[int, Field(ge=0, le=100)]
