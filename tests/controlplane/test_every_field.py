"""What does each field of each kind do?  Every one is changed, and `data/every_field.yaml` says what must come of it.

After Acto (Gu et al., SOSP 2023).  The fields come from the CRDs: one without an entry there fails by name.  Of each
field a real API server takes the changed value and refuses what the schema rules out; the loop of the operator, on a
pretended cluster, shows the effect; and changing it back gives the very objects of before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from berth_operator import executor as executor_module
from berth_operator.cluster.cluster import Cluster
from berth_operator.cluster.kube import ApiError, Kube
from berth_operator.cluster.resources import (
    DEPLOYMENTS,
    HARDWARE_CLASSES,
    NAMESPACES,
    POOLS,
    SERVING_PROFILES,
)
from berth_operator.executor import Executor
from berth_operator.telemetry import Telemetry
from devcluster import graviton4
from devcluster.pretend import PretendCluster
from prometheus_client import CollectorRegistry

CRDS = Path(__file__).parents[2] / "crds"
KINDS = {"pool": POOLS, "class": HARDWARE_CLASSES, "profile": SERVING_PROFILES}
START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
IMMUTABLE = "immutable"

Spec = dict[str, Any]

POOL: Spec = {
    "model": {"name": "smollm2-135m-instruct", "source": "hf://org/a", "quantization": "Int8"},
    "workload": {
        "class": "Interactive",
        "shape": {"promptTokens": 1000, "outputTokens": 100, "cachedPromptPercent": 50, "turnsPerSession": 4},
        "demand": {"requestsPerSecond": "57"},  # amid what a number of replicas carries, not at its edge
    },
    "objectives": {"timeToFirstTokenP99": "2s", "interTokenLatencyP99": "60ms", "turnLatencyP99": "15s"},
    "placement": {
        "objective": "Cost",
        "hardware": {"allow": {"names": ["arm", "gpu"]}},
        "spot": {"maxTrafficPercent": 0},
        "disruption": {"minSavingsUsdPerHour": "0.00", "minSavingsPercent": 0, "cooldown": "0s"},
    },
}
CLASS: Spec = graviton4(
    "arm",
    {"type": "OnDemand", "usdPerHour": "0.638", "selector": {"node": "arm"}},
    {"type": "Spot", "usdPerHour": "0.255", "selector": {"node": "arm-spot"}},
)["spec"]
GPU: Spec = CLASS | {
    "vendor": "NVIDIA",
    "kind": "GPU",
    "architecture": "amd64",
    "cpus": 4,
    "memoryGiB": 24,
    "memoryBandwidthGBps": 300,
    "compute": {"bf16Tflops": 121, "int8Tops": 242},
    "accelerators": {"resource": "nvidia.com/gpu", "count": 1},
    "runtime": {"name": "VLLM"},
    "capacity": [{"type": "OnDemand", "usdPerHour": "6.000", "selector": {"node": "gpu"}}],
}
PROFILE: Spec = {
    "model": "smollm2-135m-instruct",
    "quantization": "Int8",
    "hardwareClass": "arm",
    "runtime": "Berth",
    "resources": {"cpu": "7", "memory": "8Gi"},
    "replicasPerNode": 2,
    "points": [
        {"concurrency": n, "contextTokens": 1000, "decodeTokensPerSecond": speed, "interTokenLatencyP99": gap}
        for n, speed, gap in ((1, "200", "5ms"), (4, "600", "8ms"), (16, "1600", "12ms"))
    ],
    "prefillTokensPerSecond": "9000",
    "kvCacheTokens": 200000,
    "coldStart": "60s",
    "maxContextTokens": 8192,
    "provenance": {"method": "Measured", "source": "a test", "date": "2026-11-21"},
}


@dataclass(frozen=True)
class Change:
    """Of one field: the other value, and what it changes; see the table itself."""

    value: Any
    effect: str
    beside: Spec | None = None
    also: Spec | None = None


TABLE = {
    kind: {path: Change(**row) for path, row in rows.items()}
    for kind, rows in yaml.safe_load((Path(__file__).parent / "data" / "every_field.yaml").read_text()).items()
}


def schema(kind: str) -> Spec:
    """Of a kind's spec."""
    found = yaml.safe_load((CRDS / f"berth.dev_{KINDS[kind].plural}.yaml").read_text())
    spec: Spec = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return spec


def leaves(node: Spec, path: str = "") -> Iterator[tuple[str, Spec]]:
    """(path, schema) of every field that holds a value."""
    if node.get("type") == "object" and "properties" in node:
        for name, child in node["properties"].items():
            yield from leaves(child, f"{path}.{name}".lstrip("."))
    elif node.get("type") == "array":
        yield from leaves(node["items"], f"{path}[]")
    else:
        yield path, node


def with_value(spec: Spec, path: str, value: Any) -> Spec:
    """A copy with one field set; a list's field is set in its first item."""
    out = copy.deepcopy(spec)
    at: Any = out
    steps = path.replace("[]", ".0").split(".")
    for here, after in zip(steps, [*steps[1:], None], strict=True):
        key: Any = 0 if here == "0" else here
        if key == 0 and not at:
            at.append({})
        if after is None:
            at[key] = value
        elif key == 0:
            at = at[0]
        else:
            at = at.setdefault(key, [] if after == "0" else {})
    return out


FIELDS = [(kind, path) for kind in KINDS for path, _ in leaves(schema(kind))]


def test_every_field_has_an_entry_and_every_entry_a_field() -> None:
    missing = [f"{kind}: {path}" for kind, path in FIELDS if path not in TABLE[kind]]
    stale = [f"{kind}: {path}" for kind in KINDS for path in TABLE[kind] if (kind, path) not in FIELDS]
    assert not missing, f"say in TABLE what these fields do: {missing}"
    assert not stale, f"no such field any more: {stale}"


# --- What a real API server takes ------------------------------------------------------------------------------------


def whole(kind: str, spec: Spec) -> Spec:
    """An object of a kind, named so that no test's own is meant."""
    resource = KINDS[kind]
    namespace = {"namespace": "default"} if resource.namespaced else {}
    body = {"apiVersion": resource.api_version, "kind": resource.kind, "spec": spec}
    return body | {"metadata": {"name": "every-field", **namespace}}


def pair(kind: str, path: str) -> tuple[Spec, Spec]:
    """A and B: a spec, and the same with one field changed."""
    change = TABLE[kind][path]
    a = {"pool": POOL, "class": CLASS, "profile": PROFILE}[kind]
    for other, value in (change.beside or {}).items():
        a = with_value(a, other, value)
    b = with_value(a, path, change.value)
    for other, value in (change.also or {}).items():
        b = with_value(b, other, value)
    return a, b


def invalid_values(node: Spec) -> list[Any]:
    """What the schema of a field rules out: another type, beyond a bound, outside an enumeration."""
    out: list[Any] = []
    match node["type"]:
        case "string":
            out = [7, "x" * (node.get("maxLength", 4096) + 1)]
            if "enum" in node:
                out = [7, "Nonsense"]
            elif "x-kubernetes-validations" in node:
                out += ["soon", "-1"]
            elif "pattern" in node:
                out.append("!!")
        case "integer":
            out = ["many", 1.5]
            out += [node["minimum"] - 1] if "minimum" in node else []
            out += [node["maximum"] + 1] if "maximum" in node else []
        case "boolean":
            out = ["maybe"]
        case "object":
            out = ["none", {"k": "x" * (node["additionalProperties"]["maxLength"] + 1)}]
    return out


async def _refused(admin: Kube, kind: str, spec: Spec) -> bool:
    body = whole(kind, spec)
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    try:
        await admin.request("POST", KINDS[kind].path(body["metadata"].get("namespace")), query=query, body=body)
    except ApiError as error:
        assert error.status in (400, 422), error
        return True
    return False


@pytest.mark.usefixtures("operator_kubeconfig")
async def test_the_api_server_takes_every_valid_change_and_refuses_what_the_schema_rules_out(kube: Kube) -> None:
    wrong = []
    nodes = {(kind, path): node for kind in KINDS for path, node in leaves(schema(kind))}
    for (kind, path), node in nodes.items():
        a, b = pair(kind, path)
        for what, spec in (("A", a), ("B", b)):
            wrong += [f"{kind} {path}: {what} is refused"] if await _refused(kube, kind, spec) else []
        wrong += [
            f"{kind} {path}: {str(value)[:30]!r} is taken"
            for value in invalid_values(node)
            if not await _refused(kube, kind, with_value(a, path, value))
        ]
    assert not wrong, "\n".join(wrong)


# --- What it does ----------------------------------------------------------------------------------------------------


class Field:
    """An operator on a pretended cluster with one pool, two classes and perhaps a profile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pretend = PretendCluster(START, loading=timedelta(seconds=30))
        api: Any = self.pretend
        self.cluster = Cluster(api, lambda: None)
        self.pretend.reflectors = list(self.cluster._reflectors)
        self.executor = Executor(self.cluster, Telemetry(CollectorRegistry()))
        for place in (("arm", "OnDemand"), ("arm", "Spot"), ("arm", "Reserved"), ("gpu", "OnDemand")):
            self.pretend.nodes[place] = {f"{'-'.join(place)}-{i}" for i in range(60)}
        monkeypatch.setattr(executor_module, "datetime", self.pretend.clock())
        self.pretend.put(NAMESPACES, {"metadata": {"name": "team", "labels": {"team": "x"}}})
        self.put("class", "gpu", GPU)

    def put(self, kind: str, name: str, spec: Spec) -> None:
        resource = KINDS[kind]
        key = resource.plural, "team" if resource.namespaced else "", name
        status = self.pretend.objects.get(key, {}).get("status", {})
        metadata = {"name": name} | ({"namespace": "team"} if resource.namespaced else {})
        self.pretend.put(resource, {"metadata": metadata, "spec": spec, "status": status})

    async def settle(self) -> None:
        """Until three passes, and the minutes between them, bring nothing more."""
        quiet = 0
        for _ in range(60):
            written = len(self.pretend.writes)
            passed = await self.executor.pass_once()
            assert not passed.results.get("Failed"), passed.results
            self.pretend.pass_time(timedelta(seconds=60))
            quiet = quiet + 1 if len(self.pretend.writes) == written else 0
            if quiet == 3:
                return
        raise AssertionError(f"never settles: {self.pretend.writes[-8:]}")

    def seen(self) -> dict[str, Any]:
        """What runs and what is said, by the words of the table."""
        deployments = self.pretend.all(DEPLOYMENTS)
        where = {_place(d): d["spec"] for d in deployments}
        kinds = {"services", "poddisruptionbudgets"}
        status = dict(self.pretend.objects[POOLS.plural, "team", "agents"].get("status", {}))
        conditions = [(c["type"], c["status"], c["reason"], c["message"]) for c in status.pop("conditions", ())]
        for name in ("observedGeneration", "lastMoveTime", "history"):
            status.pop(name, None)
        return {
            "places": sorted(where),
            "replicas": sum(spec["replicas"] for spec in where.values()),
            "template": {place: spec["template"] for place, spec in where.items()},
            "children": [(k, b["spec"]) for k, b in sorted(self.pretend.objects.items()) if k[0] in kinds],
            "status": [status, conditions],
        }


def _place(deployment: Spec) -> str:
    labels = deployment["metadata"]["labels"]
    return f"{labels['berth.dev/hardware-class']}/{labels['berth.dev/capacity-type']}"


def effect(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The table's words for what differs; a template only where both have a placement there."""
    words = [name for name in ("places", "replicas", "children", "status") if before[name] != after[name]]
    both = before["template"].keys() & after["template"].keys()
    if any(before["template"][p] != after["template"][p] for p in both):
        words.append("template")
    return " ".join(sorted(words))


async def _there_and_back(field: Field, kind: str, path: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    a, b = pair(kind, path)
    name = {"pool": "agents", "class": "arm", "profile": "measured"}[kind]
    base = {"class": ("arm", CLASS), "pool": ("agents", POOL)}
    for other, (called, spec) in base.items():
        if other != kind:
            field.put(other, called, spec)
    field.put(kind, name, a)
    await field.settle()
    before = field.seen()
    field.put(kind, name, b)
    await field.settle()
    changed = field.seen()
    field.put(kind, name, a)
    await field.settle()
    return before, changed, field.seen()


@pytest.mark.parametrize(("kind", "path"), FIELDS)
async def test_a_field_does_what_the_table_says_and_changing_it_back_undoes_it(
    kind: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path not in TABLE[kind]:
        pytest.fail(f"{kind}: {path} has no entry in TABLE: say what it does")
    if TABLE[kind][path].effect == IMMUTABLE:
        return  # see the next test
    before, changed, after = await _there_and_back(Field(monkeypatch), kind, path)
    assert effect(before, changed) == TABLE[kind][path].effect
    assert effect(before, after) == ""


@pytest.mark.usefixtures("operator_kubeconfig")
async def test_what_is_immutable_is_refused_by_the_api_server(kube: Kube, namespace: str) -> None:
    immutable = [(kind, path) for kind, path in FIELDS if TABLE[kind][path].effect == IMMUTABLE]
    assert immutable
    for kind, path in immutable:
        a, b = pair(kind, path)
        body = whole(kind, a)
        body["metadata"]["namespace"] = namespace
        await kube.request("POST", KINDS[kind].path(namespace), body=body)
        with pytest.raises(ApiError, match="immutable"):
            await kube.request(
                "PATCH",
                KINDS[kind].path(namespace, "every-field"),
                body={"spec": b},
                content_type="application/merge-patch+json",
            )
