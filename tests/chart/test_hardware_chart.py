"""Does the chart of hardware classes hold the catalog, make what is chosen, and take changes of single fields?"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from berth_operator.catalog import CATALOG, manifest
from chartgen import CHART
from devcluster import ControlPlane

HARDWARE_CHART = CHART.parent / "berth-hardware"
Render = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def render(helm: Any) -> Render:
    def classes(*settings: str) -> list[dict[str, Any]]:
        flags = [flag for setting in settings for flag in ("--set", setting)]
        text = helm.run("template", "hardware", str(HARDWARE_CHART), *flags)
        return [body for body in yaml.safe_load_all(text) if body]

    return classes


def test_nothing_is_made_unless_chosen(render: Render) -> None:
    assert render() == []


def test_every_class_of_the_catalog_is_rendered_as_the_catalog_has_it(render: Render) -> None:
    rendered = {body["metadata"]["name"]: body for body in render(f"install={{{','.join(CATALOG)}}}")}
    assert rendered.keys() == CATALOG.keys()
    for name, entry in CATALOG.items():
        wanted = manifest(entry)
        assert rendered[name]["spec"] == wanted["spec"]
        assert rendered[name]["metadata"].get("annotations") == wanted["metadata"].get("annotations")
        assert wanted["metadata"]["labels"].items() <= rendered[name]["metadata"]["labels"].items()


def test_a_provider_brings_the_classes_that_plans_may_use(render: Render) -> None:
    names = {body["metadata"]["name"] for body in render("install={aws}")}
    assert names == {entry.name for entry in CATALOG.values() if entry.provider == "aws" and not entry.what_if}


def test_one_field_of_one_way_to_get_nodes_can_be_set_and_a_way_taken_away(render: Render) -> None:
    (l4,) = render("install={l4}", "classes.l4.capacity.OnDemand.maxNodes=3", "classes.l4.capacity.Spot=null")
    (way,) = l4["spec"]["capacity"]
    assert (way["type"], way["maxNodes"], way["usdPerHour"]) == ("OnDemand", 3, "0.805")


def test_an_unknown_class_is_refused_with_the_names_there_are(render: Render) -> None:
    with pytest.raises(Exception, match=r'"l5" is neither a class nor a provider .*graviton4-c8g-4xl'):
        render("install={l5}")


def test_an_api_server_takes_every_class(cluster: ControlPlane, installed: Any) -> None:
    every = f"install={{{','.join(CATALOG)}}}"
    installed.run("install", "berth-hardware", str(HARDWARE_CHART), "--namespace=berth-system", "--set", every)
    names = {item["metadata"]["name"] for item in cluster.get("hardwareclasses")["items"]}
    assert CATALOG.keys() <= names


def test_the_values_are_generated_from_the_catalog() -> None:
    values = yaml.safe_load(Path(HARDWARE_CHART / "values.yaml").read_text())
    assert list(values["classes"]) == list(CATALOG)


def test_a_label_of_the_user_replaces_that_of_the_catalog(helm: Any) -> None:
    flags = ("--set=install={l4}", "--set=commonLabels.tier=own")
    text = helm.run("template", "hardware", str(HARDWARE_CHART), *flags)
    assert [line.strip() for line in text.splitlines() if line.strip().startswith("tier:")] == ["tier: own"]
