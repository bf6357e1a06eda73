"""Which scenario, pools and hardware does a file describe?  Thin: files in, checked objects out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from berth_operator.api import HardwareClass, InferencePool, ServingProfile, resolve
from berth_operator.catalog import CATALOG, hardware_class
from berth_operator.prices.configmap import BAD_YAML
from berth_operator.simulate.market import unknown_classes
from berth_operator.simulate.policies import Pool
from berth_operator.simulate.scenario import Scenario
from berth_operator.strict_yaml import StrictLoader

BUILT_IN: Final = "scenarios"


class ScenarioError(ValueError):
    """A scenario that cannot be run; the message names file, field and remedy."""


@dataclass(frozen=True, slots=True)
class Source:
    """A scenario's text and where its relative paths begin."""

    name: str
    text: str
    folder: Path


def built_in() -> list[str]:
    """Names of the scenarios that ship."""
    folder = resources.files(__package__) / BUILT_IN
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def find(name: str) -> Source:
    """A scenario that ships, by name, or a file.  Raises ScenarioError."""
    if name in built_in():
        text = (resources.files(__package__) / BUILT_IN / f"{name}.yaml").read_text(encoding="utf-8")
        return Source(name, text, Path())
    path = Path(name)
    try:
        return Source(name, path.read_text(encoding="utf-8"), path.parent)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ScenarioError(
            f"{name}: cannot be read ({reason}), and is none of the scenarios that ship: {', '.join(built_in())}"
        ) from None


def read_scenario(source: Source) -> Scenario:
    """The scenario.  Raises ScenarioError with every problem, one a line."""
    try:
        body: Any = StrictLoader(source.text).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        if isinstance(error, yaml.composer.ComposerError) and error.problem == "but found another document":
            raise ScenarioError(f"{source.name}: {line}a scenario is one document, and another begins here") from None
        raise ScenarioError(f"{source.name}: {line}is not valid YAML: {error.problem or error.context}") from None
    except BAD_YAML as error:
        raise ScenarioError(f"{source.name}: is not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(body, dict):
        raise ScenarioError(f"{source.name}: write a mapping with days, demand, catalog, objects and so on")
    try:
        scenario = Scenario.model_validate(body, extra="forbid")
    except ValidationError as error:
        raise ScenarioError("\n".join(f"{source.name}: {_said(dict(e))}" for e in error.errors())) from None
    for name in scenario.catalog:
        if name not in CATALOG:
            raise ScenarioError(f"{source.name}: catalog: there is no class {name}: `berth hardware list` has them")
    if scenario.steps > 50_000:
        raise ScenarioError(f"{source.name}: {scenario.days} days in steps of {scenario.step} are over 50,000 steps")
    return scenario


def catalog_classes(scenario: Scenario) -> list[HardwareClass]:
    """The catalog's classes that the scenario names."""
    return [hardware_class(CATALOG[name]) for name in scenario.catalog]


def pools_of(
    pools: Sequence[InferencePool],
    classes: Sequence[HardwareClass],
    profiles: Sequence[ServingProfile],
    namespace_labels: Mapping[str, Mapping[str, str]],
    scenario: Scenario,
) -> list[Pool]:
    """Pools as policies see them.  Raises ScenarioError where there is nothing to simulate or an event has no class."""
    if not pools:
        raise ScenarioError("there is no InferencePool: put some into the scenario's objects, or name files with -f")
    if not classes:
        raise ScenarioError("there is no HardwareClass: name some of the catalog, or files with -f")
    if unknown := unknown_classes(scenario, (item.metadata.name for item in classes)):
        raise ScenarioError(
            f"priceMoves, stockOuts and spotReclaims name classes that are not there: {', '.join(unknown)}"
        )
    there = sorted(pool.metadata.name for pool in pools)
    if strange := sorted(scenario.demand_of.keys() - set(there)):
        raise ScenarioError(
            f"demandOf names pools that are not there: {', '.join(strange)}; there are {', '.join(there)}"
        )
    out = []
    for pool in sorted(pools, key=lambda p: p.key):
        effective = resolve(pool.spec)
        namespace = pool.metadata.namespace or "default"
        effective = replace(effective, requests_per_second=effective.requests_per_second * scenario.times)
        mine = tuple(p for p in profiles if p.spec.model == effective.model)
        one = Pool(pool.key, effective, namespace, namespace_labels.get(namespace, {}), mine)
        out += [one, *(replace(one, key=f"{pool.key}-{n}", copy_of=pool.key) for n in range(2, scenario.copies + 1))]
    return sorted(out, key=lambda p: p.key)


def _said(problem: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    text = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown field: remove it"
    found = problem["input"]
    return f"{where}: {text}" if isinstance(found, dict | list) else f"{where}: found {found!r}: {text}"
