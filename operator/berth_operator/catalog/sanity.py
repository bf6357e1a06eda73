"""Which hardware classes and serving profiles cannot be true?  Each fault names object, field, arithmetic and remedy.

The schema has already checked every field alone; these are the contradictions between fields and with physics: a price
of nothing, bandwidth in the wrong unit, more tokens a second than the memory can feed or the arithmetic units compute.
What is at fault is left out of a plan, and the rest of the fleet is planned.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from berth_operator.api import Capacity, CapacityType, HardwareClass, HardwareKind, ServingProfile, format_decimal
from berth_operator.api.names import LABEL_SYNTAX
from berth_operator.catalog.profile_sanity import profile_faults
from berth_operator.planner.speed import devices
from berth_operator.planner.types import AtFault

NO_NODE: Final = "NoNodeMatches"
"""Reason of a class that has no node and could get none (`matching`): planned with all the same."""
MOST_USD_PER_HOUR: Final = Decimal(1000)
"""Of one node; the dearest that EC2 rents is below 400."""
LEAST_USD_PER_HOUR: Final = Decimal("0.005")
_ACCELERATOR_LIMITS: Final = {
    "memoryGiB": (1, 2048, "GiB", "MiB or GB"),
    "memoryBandwidthGBps": (50, 50_000, "GB/s", "TB/s, MB/s or Gbit/s"),
    "compute.bf16Tflops": (5, 50_000, "TFLOP/s", "PFLOP/s or GFLOP/s"),
    "compute.int8Tops": (5, 200_000, "TOP/s", "POP/s or GOP/s"),
    "powerWatts": (10, 50_000, "W", "kW or mW"),
}
"""Field -> least and most for one device, its unit, and the units that it is mistaken for: an order of magnitude beyond
every chip of the catalog."""
_CPU_LIMITS: Final = {
    "memoryGiB": (1, 65_536, "GiB", "MiB or GB"),
    "memoryBandwidthGBps": (5, 10_000, "GB/s", "TB/s, MB/s or Gbit/s"),
    "compute.bf16Tflops": (1, 5_000, "TFLOP/s", "GFLOP/s"),
    "compute.int8Tops": (1, 10_000, "TOP/s", "GOP/s"),
    "powerWatts": (5, 20_000, "W", "kW or mW"),
}
_LABEL: Final = re.compile(LABEL_SYNTAX)
_PREFIX: Final = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
"""Of labels: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set"""
_LONGEST_LABEL: Final = 63
_MOST_GIB_A_VCPU: Final = 256
_MOST_INTERRUPTIONS: Final = Decimal(10)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that cannot be true."""

    kind: str
    """HardwareClass or ServingProfile."""
    name: str
    hardware_class: str
    """The class that it is of: itself, or the profile's."""
    reason: str
    """CamelCase, for a condition."""
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.field}: {self.message}"


@dataclass(frozen=True, slots=True)
class Sifted:
    """What can be planned with, and why the rest cannot."""

    hardware_classes: tuple[HardwareClass, ...]
    serving_profiles: tuple[ServingProfile, ...]
    faults: tuple[Fault, ...] = ()

    at_fault: tuple[AtFault, ...] = ()
    """The classes that cannot be planned with."""

    def of(self, hardware_class: str) -> list[Fault]:
        """Faults of a class and of its profiles."""
        return [fault for fault in self.faults if fault.hardware_class == hardware_class]


def sift(classes: Iterable[HardwareClass], profiles: Iterable[ServingProfile]) -> Sifted:
    """Leave out what cannot be true.  A profile of a class that is at fault, or not there, is not judged."""
    faults: list[Fault] = []
    sound: dict[str, HardwareClass] = {}
    at_fault: list[AtFault] = []
    kept: list[ServingProfile] = []
    for hardware in classes:
        found = [_of_class(hardware, *fault) for fault in class_faults(hardware)]
        faults += found
        if found:
            words = "; ".join(f"{fault.field}: {fault.message}" for fault in found)
            at_fault.append(AtFault(hardware.metadata.name, words, hardware))
        else:
            sound[hardware.metadata.name] = hardware
    for profile in profiles:
        judged = sound.get(profile.spec.hardware_class)
        found = [_of_profile(profile, *fault) for fault in profile_faults(profile.spec, judged)] if judged else []
        faults += found
        if not found:
            kept.append(profile)
    return Sifted(tuple(sound.values()), tuple(kept), tuple(faults), tuple(at_fault))


def _of_class(hardware: HardwareClass, reason: str, field: str, message: str) -> Fault:
    return Fault("HardwareClass", hardware.metadata.name, hardware.metadata.name, reason, field, message)


def _of_profile(profile: ServingProfile, reason: str, field: str, message: str) -> Fault:
    return Fault("ServingProfile", profile.metadata.name, profile.spec.hardware_class, reason, field, message)


def class_faults(hardware: HardwareClass) -> Iterator[tuple[str, str, str]]:
    """(reason, field, message) of everything in a class that cannot be true."""
    if len(hardware.metadata.name) > _LONGEST_LABEL:
        yield (
            "NameTooLong",
            "metadata.name",
            f"found one of {len(hardware.metadata.name)} characters: it also labels workers: at most {_LONGEST_LABEL}",
        )
    for index, capacity in enumerate(hardware.spec.capacity):
        yield from _price_faults(capacity, f"spec.capacity[{index}]")
        yield from _selector_faults(capacity, f"spec.capacity[{index}].selector")
    yield from _unit_faults(hardware)
    yield from _same_nodes(hardware)


def _selector_faults(capacity: Capacity, field: str) -> Iterator[tuple[str, str, str]]:
    """What no node can carry, no pod can ask for: the API server would refuse the Deployment."""
    for key, value in (capacity.selector or {}).items():
        prefix, slash, name = key.rpartition("/")
        if not _LABEL.fullmatch(name) or (slash and not _PREFIX.fullmatch(prefix)):
            yield (
                "BadSelector",
                field,
                f"found the key {key[:80]!r}, which no label can have: write one such as karpenter.sh/capacity-type",
            )
        elif value and not _LABEL.fullmatch(value):
            yield (
                "BadSelector",
                f"{field}[{key}]",
                f"found {value!r}, which no label can say: letters, digits, '-', '_' and '.', the first and the last a"
                " letter or digit",
            )


def _price_faults(capacity: Capacity, field: str) -> Iterator[tuple[str, str, str]]:
    usd, kind = capacity.usd_per_hour, capacity.type.value
    rate = capacity.interruptions_per_hour
    if rate is not None and rate > _MOST_INTERRUPTIONS:
        yield (
            "AbsurdInterruptions",
            f"{field}.interruptionsPerHour",
            f"found {rate:f}: a node that is taken away every {float(60 / rate):.2g} minutes serves nothing; write the"
            " interruptions of one node per hour, such as 0.01",
        )
    if capacity.max_nodes == 0 or capacity.type is CapacityType.RESERVED:
        return  # nothing is bought at that price
    if usd <= 0:
        yield (
            "ZeroPrice",
            f"{field}.usdPerHour",
            f"found {usd:f}: {kind} nodes cost something; write what one costs an hour, or type Reserved where they are"
            " already paid",
        )
    elif not LEAST_USD_PER_HOUR <= usd <= MOST_USD_PER_HOUR:
        yield (
            "AbsurdPrice",
            f"{field}.usdPerHour",
            f"found {format_decimal(usd)}: believed are {LEAST_USD_PER_HOUR:f} to {MOST_USD_PER_HOUR:f} US dollars per"
            " hour of one node; is it of a month, in cents, or of a whole fleet?",
        )


def _unit_faults(hardware: HardwareClass) -> Iterator[tuple[str, str, str]]:
    spec, count = hardware.spec, devices(hardware.spec)
    compute = spec.compute
    found: Mapping[str, int | None] = {
        "memoryGiB": spec.memory_gib,
        "memoryBandwidthGBps": spec.memory_bandwidth_gbps,
        "compute.bf16Tflops": compute.bf16_tflops if compute else None,
        "compute.int8Tops": compute.int8_tops if compute else None,
        "powerWatts": spec.power_watts,
    }
    cpu = spec.kind is HardwareKind.CPU
    for field, (least, most, unit, mistaken) in (_CPU_LIMITS if cpu else _ACCELERATOR_LIMITS).items():
        value = found[field]
        if value is None or least * count <= value <= most * count:
            continue
        of = "a node" if cpu else f"{count} device{'s' if count > 1 else ''}"
        yield (
            "AbsurdFigure",
            f"spec.{field}",
            f"found {value}: believed are {least * count} to {most * count} {unit} of {of}; is it in {mistaken}?",
        )
    if cpu and spec.memory_gib > _MOST_GIB_A_VCPU * spec.cpus:
        yield (
            "AbsurdFigure",
            "spec.memoryGiB",
            f"found {spec.memory_gib} for {spec.cpus} vCPUs, more than {_MOST_GIB_A_VCPU} GiB each; is it in MiB?",
        )


def _same_nodes(hardware: HardwareClass) -> Iterator[tuple[str, str, str]]:
    """Two prices for the same nodes contradict each other."""
    seen: dict[tuple[tuple[str, str], ...], CapacityType] = {}
    for index, capacity in enumerate(hardware.spec.capacity):
        labels = tuple(sorted((capacity.selector or {}).items()))
        if labels and labels in seen:
            yield (
                "SameNodes",
                f"spec.capacity[{index}].selector",
                f"{capacity.type.value} selects the same nodes as {seen[labels].value}: add a label that tells them"
                " apart, such as karpenter.sh/capacity-type",
            )
        seen.setdefault(labels, capacity.type)
