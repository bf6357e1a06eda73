"""Do the CRDs say what the models say?"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from berth_operator.api.crd import crds

ROOT = Path(__file__).parents[2]


def _walk(schema: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = [(path, schema)]
    for name, sub in schema.get("properties", {}).items():
        found += _walk(sub, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found += _walk(schema[key], f"{path}[]")
    return found


def _schema(body: dict[str, Any]) -> dict[str, Any]:
    return body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def test_files_in_crds_are_what_the_models_generate() -> None:
    files = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / "crds").glob("*.yaml")}
    assert files == crds(), "run `berth crds -d crds`"


@pytest.mark.parametrize("name", sorted(crds()))
def test_no_field_is_a_float(name: str) -> None:
    assert [path for path, schema in _walk(_schema(crds()[name])) if schema.get("type") == "number"] == []


@pytest.mark.parametrize("name", sorted(crds()))
def test_every_spec_field_with_rules_has_a_bounded_size(name: str) -> None:
    """CEL's cost is estimated from the largest value that a schema admits."""
    for path, schema in _walk(_schema(crds()[name])["properties"]["spec"], "spec"):
        bound = {"string": "maxLength", "array": "maxItems"}.get(schema.get("type", ""))
        if bound and "enum" not in schema:
            assert bound in schema or schema.get("format") == "date-time", f"{name}: {path} has no {bound}"


def test_no_default_is_written_into_the_spec_but_the_one_that_the_scale_subresource_needs() -> None:
    """Without a value there, an API server answers a GET of the scale subresource with an internal error."""
    found = {(name, path): schema["default"] for name, body in crds().items() for path, schema in _walk(_schema(body))
             if "default" in schema}  # fmt: skip
    assert found == {("berth.dev_inferencepools.yaml", ".spec.workload.demand.concurrentSessions"): 0}


def test_pool_shows_the_promised_columns() -> None:
    columns = crds()["berth.dev_inferencepools.yaml"]["spec"]["versions"][0]["additionalPrinterColumns"]
    assert [c["name"].upper() for c in columns] == [
        "MODEL", "CLASS", "READY", "PLACEMENT", "USD/H", "SAVED", "STATUS", "AGE",
    ]  # fmt: skip
