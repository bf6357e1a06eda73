"""Does the catalog hold every chip with its source, and nothing that an API server or a plan would choke on?"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from berth_operator.api import CapacityType, HardwareKind, InferencePool
from berth_operator.catalog import CATALOG, Entry, hardware_class, manifest
from berth_operator.catalog.arm import GRAVITON4, bandwidth, cores_of
from berth_operator.cli.objects import read_objects
from berth_operator.planner import Snapshot, Verdict, plan

ENTRIES = pytest.mark.parametrize("entry", CATALOG.values(), ids=CATALOG)


def test_every_chip_is_there() -> None:
    chips = {
        *("Graviton3", "Graviton4", "Graviton5", "Grace", "T4", "A10G", "L4", "L40S", "H100 SXM", "B200"),
        *("Inferentia2", "Trainium", "Trainium2", "TPU v5p", "MI300X", "Gaudi 3", "Maia 100", "MTIA v2"),
    }
    assert {entry.chip for entry in CATALOG.values()} == chips
    for chip, sizes in (("Graviton3", 3), ("Graviton4", 7), ("Graviton5", 3)):
        assert sum(entry.chip == chip for entry in CATALOG.values()) == sizes


@pytest.mark.parametrize(
    ("name", "price"),
    [
        *(("graviton3-c7g-4xl", "0.58"), ("graviton4-c8g-16xl", "2.552"), ("graviton4-r8g-8xl", "1.885")),
        *(("graviton5-c9g-48xl", "8.346"), ("l4", "0.805"), ("h100-8", "55.04"), ("b200-8", "113.93")),
    ],
)
def test_prices_are_those_of_the_stated_day(name: str, price: str) -> None:
    entry = CATALOG[name]
    assert str(entry.usd_per_hour) == price
    assert "2026-07-20" in manifest(entry)["spec"]["source"]


@ENTRIES
def test_every_class_is_taken_as_strictly_as_an_api_server_would(entry: Entry, tmp_path: Path) -> None:
    file = tmp_path / "class.yaml"
    file.write_text(yaml.safe_dump(manifest(entry)))
    objects, problems = read_objects([str(file)])
    assert not problems
    assert objects.hardware_classes[0].spec == hardware_class(entry).spec


@ENTRIES
def test_what_ships_names_its_source_and_leaves_open_what_is_not_published(entry: Entry) -> None:
    spec = hardware_class(entry).spec
    assert spec.source
    assert entry.chip.split()[0] in spec.source or (entry.instance_type or "?") in spec.source
    assert spec.power_watts is None, "board limits are not the node's power"
    if entry.chip_watts is None:
        assert "Power: not published" in spec.source


@ENTRIES
def test_spot_is_never_flattered(entry: Entry) -> None:
    prices = {c.type: c.usd_per_hour for c in hardware_class(entry).spec.capacity}
    if CapacityType.SPOT in prices:
        assert prices[CapacityType.SPOT] == prices[CapacityType.ON_DEMAND]


def test_what_cannot_be_rented_is_marked_and_no_plan_uses_it(make_pool: Callable[..., InferencePool]) -> None:
    internal = [entry for entry in CATALOG.values() if not entry.rentable]
    assert {entry.chip for entry in internal} == {"Maia 100", "MTIA v2"}
    pool = make_pool(model={"name": "smollm2-135m-instruct", "quantization": "Any"})
    classes = tuple(hardware_class(entry) for entry in CATALOG.values() if entry.what_if)
    result = plan(Snapshot(datetime(2026, 11, 21, tzinfo=UTC), (pool,), classes)).pools[pool.key]
    assert not result.placements
    assert {c.verdict for c in result.candidates} <= {Verdict.NO_CAPACITY, Verdict.TOO_SLOW, Verdict.NOT_COMPARABLE}
    for hardware in classes:
        assert hardware.metadata.labels["berth.dev/what-if"] == "true"
        assert hardware.metadata.annotations["berth.dev/what-if-because"]


def test_an_instance_never_has_more_bandwidth_than_its_chips_nor_less_than_its_share() -> None:
    for cores in (4, 8, 16, 32, 48, 64, 96, 192):
        gbps, _ = bandwidth(GRAVITON4, cores)
        share = GRAVITON4.bandwidth_gbps * cores / GRAVITON4.cores
        assert int(share) <= gbps <= max(GRAVITON4.bandwidth_gbps, share)
    assert bandwidth(GRAVITON4, 16)[0] == 228, "as r8g.4xlarge was seen to reach"


def test_sizes_of_ec2() -> None:
    assert [cores_of(size) for size in ("medium", "large", "xlarge", "2xlarge", "48xlarge")] == [1, 2, 4, 8, 192]
    with pytest.raises(ValueError, match="metal-48xl"):
        cores_of("metal-48xl")


def test_cpus_run_our_worker_and_everything_else_vllm() -> None:
    for entry in CATALOG.values():
        runtime = hardware_class(entry).spec.runtime.name
        assert runtime == ("Berth" if entry.kind is HardwareKind.CPU else "VLLM")
