"""Which generated files does the chart have, and are they as they should be?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from chartgen import fleet_economics, hardware
from chartgen.dashboard import render
from chartgen.values import json_schema, read_values, readme_with_table

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "berth"
HARDWARE_CHART = ROOT / "charts" / "berth-hardware"
_CRDS = CHART / "files" / "crds"
_DASHBOARDS = CHART / "dashboards"


def generate() -> Mapping[Path, str]:
    """Path -> what should stand there.  Raises ValuesError if a value has no description."""
    values = read_values((CHART / "values.yaml").read_text(encoding="utf-8"))
    readme = CHART / "README.md"
    return {
        **{_CRDS / path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "crds").glob("*.yaml"))},
        CHART / "values.schema.json": json_schema(values),
        readme: readme_with_table(readme.read_text(encoding="utf-8"), values),
        HARDWARE_CHART / "values.yaml": hardware.values(),
        _DASHBOARDS / "fleet-economics.json": render(fleet_economics.dashboard()),
    }


def drift() -> list[Path]:
    """Files that differ from what is generated, are missing, or are there with nothing that generates them."""
    wanted = generate()
    stray = [path for folder in (_CRDS, _DASHBOARDS) for path in folder.glob("*") if path not in wanted]
    return sorted(stray + [path for path, text in wanted.items() if not path.exists() or _read(path) != text])


def write() -> list[Path]:
    """Write what differs and remove what nothing generates any more; returns what changed."""
    wanted = generate()
    changed = drift()
    for path in changed:
        if path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
        else:
            path.unlink()
    return changed


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
