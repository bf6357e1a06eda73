"""Arm server CPUs that Berth's own worker runs on: AWS Graviton 3, 4 and 5 in several sizes, and Nvidia Grace.

Compute: four SMMLA of 64 int8 operations a cycle and core on Neoverse V1 and V2 (llvm-mca 19).

Bandwidth: an instance smaller than the chip shares its memory channels.  What ships is what one tenant was seen to
reach or, where nothing was published for a size, its share times the ratio seen on the Graviton4 instance that has a
like part of its chip.  Neighbours cannot all have that much at once.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

from berth_operator.api import HardwareKind
from berth_operator.catalog.entry import Entry

_OPERATIONS_A_CYCLE: Final = 4 * 64


@dataclass(frozen=True, slots=True)
class Chip:
    """One CPU."""

    name: str
    cores: int
    gigahertz: float
    bandwidth_gbps: int
    core: str
    watts: int | None
    note: str = ""


GRAVITON3: Final = Chip("Graviton3", 64, 2.6, 307, "Neoverse V1", 150, "150 W is a news figure of April 2026.")
GRAVITON4: Final = Chip("Graviton4", 96, 2.8, 538, "Neoverse V2", None)
GRAVITON5: Final = Chip(
    "Graviton5",
    192,
    2.8,
    845,
    "Neoverse V3",
    None,
    "Bandwidth: 12 channels of DDR5-8800. Clock and SMMLA rate: not published, taken as Graviton4's.",
)

FAMILIES: Final[dict[str, tuple[Chip, int]]] = {
    "c7g": (GRAVITON3, 2),
    "m7g": (GRAVITON3, 4),
    "r7g": (GRAVITON3, 8),
    "c8g": (GRAVITON4, 2),
    "m8g": (GRAVITON4, 4),
    "r8g": (GRAVITON4, 8),
    "c9g": (GRAVITON5, 2),
    "m9g": (GRAVITON5, 4),
    "r9g": (GRAVITON5, 8),
}
"""EC2 family -> chip and GiB of memory a vCPU (a vCPU is a core)."""

_SEEN: Final = {
    (GRAVITON3.name, 32): (185, "published 39.7 tokens/s of Llama-3.1-8B in 4 bits (4.65 GB) on c7g.8xlarge"),
    (GRAVITON4.name, 16): (228, "published 49 tokens/s of Llama-3.1-8B in 4 bits (4.65 GB) on r8g.4xlarge"),
    (GRAVITON4.name, 32): (314, "published 37 tokens/s of Llama-3.1-8B in 8 bits (8.5 GB) on r8g.8xlarge"),
}
"""(chip, cores) -> GB/s that one tenant reached, derived from that."""


def bandwidth(chip: Chip, cores: int) -> tuple[int, str]:
    """GB/s for an instance of `cores`, and where that comes from.

    Seen, else the share; small shares may burst to the ratio seen on Graviton4: 2.5 times a sixth of the chip or less,
    1.75 times a third or less.
    """
    if cores >= chip.cores:
        chips = cores // chip.cores
        whole = "the chip's" if chips == 1 else f"{chips} chips'"
        return chip.bandwidth_gbps * chips, f"{whole} own, all channels"
    share = chip.bandwidth_gbps * cores / chip.cores
    if seen := _SEEN.get((chip.name, cores)):
        return seen[0], f"{seen[1]}; its share of the chip's {chip.bandwidth_gbps} GB/s is {share:.0f}"
    part = cores / chip.cores
    burst, of = (2.5, "r8g.4xlarge") if part <= 1 / 6 else (1.75, "r8g.8xlarge") if part <= 1 / 3 else (1.0, "")
    if burst == 1.0:
        return int(share), f"its share of the chip's {chip.bandwidth_gbps} GB/s; bursts were not counted on"
    return int(share * burst), (
        f"{burst:g} times its share ({share:.0f} of {chip.bandwidth_gbps} GB/s), the burst seen on {of}: an assumption"
    )


def graviton(family: str, size: str, usd_per_hour: str | None) -> Entry:
    """An EC2 instance type of a Graviton family, such as ("c8g", "4xlarge").  Raises KeyError for other families."""
    chip, gib_per_core = FAMILIES[family]
    cores = cores_of(size)
    gbps, why = bandwidth(chip, cores)
    chips = max(1, cores // chip.cores)
    part = f"{cores} of its {chip.cores} cores" if cores < chip.cores else f"{chips} chip{'s' if chips > 1 else ''}"
    watts = None if chip.watts is None else round(chip.watts * cores / chip.cores)
    return Entry(
        name=f"{chip.name.lower()}-{family}-{size.replace('xlarge', 'xl')}",
        vendor="AWS",
        chip=chip.name,
        kind=HardwareKind.CPU,
        architecture="arm64",
        cpus=cores,
        memory_gib=cores * gib_per_core,
        bandwidth_gbps=gbps,
        int8_tops=int(cores * chip.gigahertz * _OPERATIONS_A_CYCLE / 1000),
        chip_watts=watts,
        instance_type=f"{family}.{size}",
        usd_per_hour=None if usd_per_hour is None else Decimal(usd_per_hour),
        source=" ".join(
            filter(
                None,
                [
                    f"{family}.{size}: {part} ({chip.core}). Bandwidth: {why}. Compute: 4 SMMLA of 64 operations"
                    f" a cycle and core (llvm-mca 19), {chip.gigahertz} GHz.",
                    chip.note,
                ],
            )
        ),
        what_if=None if usd_per_hour else "no price is stated for it: set capacity.usdPerHour and take maxNodes 0 away",
    )


def cores_of(size: str) -> int:
    """vCPUs of an EC2 size: `4xlarge` has 16.  Raises ValueError for a name that is none."""
    named = {"medium": 1, "large": 2, "xlarge": 4}
    if size in named:
        return named[size]
    factor, _, unit = size.partition("xlarge")
    if not factor.isdigit() or unit:
        raise ValueError(f"{size!r} is no EC2 size such as 4xlarge")
    return 4 * int(factor)


def _grace() -> Entry:
    arm: Literal["arm64"] = "arm64"
    return Entry(
        name="grace",
        vendor="Nvidia",
        chip="Grace",
        kind=HardwareKind.CPU,
        architecture=arm,
        cpus=72,
        memory_gib=447,
        bandwidth_gbps=384,
        int8_tops=55,
        chip_watts=250,
        provider="own",
        source="Nvidia Grace CPU (72 cores, Neoverse V2), the part with 480 GB of LPDDR5X: 384 GB/s; parts with 120 and"
        " 240 GB have about 500. Compute: 4 SMMLA of 64 operations a cycle and core (llvm-mca 19), 3.0 GHz all-core"
        " (data sheet). In one's own data centre, alone or in GH200 and GB200.",
        what_if="your own nodes: set capacity.selector and maxNodes to those you have; Reserved costs nothing more",
    )


ENTRIES: Final = (
    graviton("c7g", "4xlarge", "0.58"),
    graviton("c7g", "8xlarge", "1.16"),
    graviton("c7g", "16xlarge", "2.32"),
    graviton("c8g", "4xlarge", "0.638"),
    graviton("c8g", "8xlarge", "1.276"),
    graviton("c8g", "16xlarge", "2.552"),
    graviton("c8g", "48xlarge", "7.657"),
    graviton("r8g", "4xlarge", "0.943"),
    graviton("r8g", "8xlarge", "1.885"),
    graviton("r8g", "16xlarge", "3.770"),
    graviton("c9g", "4xlarge", "0.696"),
    graviton("c9g", "16xlarge", "2.782"),
    graviton("c9g", "48xlarge", "8.346"),
    _grace(),
)
