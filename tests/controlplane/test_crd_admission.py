"""Does the API server itself refuse what cannot work, with words that say what to write instead?"""

import json
from pathlib import Path
from typing import Any

import pytest
from devcluster import ControlPlane
from devcluster.controlplane import KubectlError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def crds(control_plane: ControlPlane) -> None:
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
    control_plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=20s")


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merge(base[key], value)
        else:
            merged[key] = value
    return merged


def _pool(name: str = "p", **spec: Any) -> dict[str, Any]:
    base = {
        "model": {"name": "llama-3.1-8b-instruct", "source": "hf://meta-llama/Llama-3.1-8B-Instruct"},
        "workload": {"class": "Agentic", "shape": {"outputTokens": 180}, "demand": {"requestsPerSecond": "4"}},
        "objectives": {"interTokenLatencyP99": "60ms", "turnLatencyP99": "15s"},
        "budget": {"maxUsdPerHour": "25.00"},
        "scaling": {"minReplicas": 1, "maxReplicas": 4},
    }
    return {
        "apiVersion": "berth.dev/v1alpha1",
        "kind": "InferencePool",
        "metadata": {"name": name},
        "spec": _merge(base, spec),
    }


def _class(**spec: Any) -> dict[str, Any]:
    base = {
        "vendor": "AWS",
        "chip": "L4",
        "kind": "GPU",
        "architecture": "amd64",
        "cpus": 4,
        "memoryGiB": 24,
        "memoryBandwidthGBps": 300,
        "accelerators": {"resource": "nvidia.com/gpu", "count": 1},
        "capacity": [{"type": "OnDemand", "usdPerHour": "0.805"}],
        "runtime": {"name": "VLLM"},
    }
    return {
        "apiVersion": "berth.dev/v1alpha1",
        "kind": "HardwareClass",
        "metadata": {"name": "c"},
        "spec": _merge(base, spec),
    }


def _profile(**spec: Any) -> dict[str, Any]:
    base = {
        "model": "llama-3.1-8b-instruct",
        "quantization": "Int8",
        "hardwareClass": "l4",
        "runtime": "VLLM",
        "points": [
            {"concurrency": 1, "contextTokens": 1000, "decodeTokensPerSecond": "30", "interTokenLatencyP99": "40ms"}
        ],
        "prefillTokensPerSecond": "4000",
        "kvCacheTokens": 50000,
        "provenance": {"method": "Measured", "source": "a test"},
    }
    return {
        "apiVersion": "berth.dev/v1alpha1",
        "kind": "ServingProfile",
        "metadata": {"name": "f"},
        "spec": _merge(base, spec),
    }


def _dry_run(control_plane: ControlPlane, namespace: str, manifest: dict[str, Any]) -> str:
    return control_plane.kubectl(
        "create", "--dry-run=server", f"--namespace={namespace}", "-f", "-", input=json.dumps(manifest)
    )


@pytest.mark.parametrize("manifest", [_pool(), _class(), _profile()], ids=["pool", "class", "profile"])
def test_a_sound_object_is_admitted(control_plane: ControlPlane, namespace: str, manifest: dict[str, Any]) -> None:
    assert "created" in _dry_run(control_plane, namespace, manifest)


_GATEWAY = {"parentRefs": [{"name": "gw"}]}
REFUSED = {
    "host names of no gateway": (_pool(routing={"hostnames": ["a.b"]}), "routing.parentRefs", "name the Gateway"),
    "one host name for HTTP and gRPC": (
        _pool(routing=_GATEWAY | {"hostnames": ["a.b"], "grpcHostnames": ["a.b"]}),
        "routing.grpcHostnames",
        "share no host name",
    ),
    "KEDA without sessions": (
        _pool(scaling={"keda": {"serverAddress": "http://p", "maxSessions": 9}}),
        "scaling.keda sets workload.demand.concurrentSessions",
    ),
    "gRPC beside every host name": (_pool(routing=_GATEWAY | {"grpcHostnames": ["a.b"]}), "needs routing.hostnames"),
    "zero demand": (_pool(workload={"demand": {"requestsPerSecond": "0"}}), "requestsPerSecond", "above zero"),
    "negative demand": (_pool(workload={"demand": {"requestsPerSecond": "-4"}}), "requestsPerSecond", '"0.638"'),
    "no demand": (_pool(workload={"demand": {"requestsPerSecond": None}}), "demand", "exactly one of"),
    "two demands": (_pool(workload={"demand": {"concurrentSessions": 9}}), "demand", "exactly one of"),
    "zero sessions": (
        _pool(workload={"demand": {"requestsPerSecond": None, "concurrentSessions": 0}}),
        "demand",
        "concurrentSessions (1 or more)",
    ),
    "think time without sessions": (_pool(workload={"demand": {"thinkTime": "2s"}}), "demand", "concurrentSessions"),
    "unparsable duration": (_pool(objectives={"turnLatencyP99": "soon"}), "turnLatencyP99", '"850ms"'),
    "zero duration": (_pool(objectives={"interTokenLatencyP99": "0s"}), "interTokenLatencyP99", "above zero"),
    "unparsable money": (_pool(budget={"maxUsdPerHour": "$25"}), "maxUsdPerHour", '"0.638"'),
    "money as a number": (_pool(budget={"maxUsdPerHour": 25}), "maxUsdPerHour", "string"),
    "zero budget": (_pool(budget={"maxUsdPerHour": "0.00"}), "maxUsdPerHour", "above zero"),
    "tokens that do not fit the turn": (_pool(objectives={"turnLatencyP99": "5s"}), "spec", "contradict"),
    "first token after the turn": (_pool(objectives={"timeToFirstTokenP99": "16s"}), "spec", "timeToFirstTokenP99"),
    "replica bounds crossed": (_pool(scaling={"minReplicas": 5}), "scaling", "minReplicas"),
    "unknown class": (_pool(workload={"class": "Sporadic"}), "class", '"Agentic", "Interactive", "Batch"'),
    "unknown source scheme": (_pool(model={"source": "ftp://x"}), "source", "hf|s3|oci|pvc|file"),
    "no source": (_pool(model={"source": None}), "model.source is required", "hf://ORG/NAME"),
    "percent above 100": (_pool(placement={"spot": {"maxTrafficPercent": 101}}), "maxTrafficPercent", "100"),
    "a label that cannot be": (_pool(worker={"labels": {"a b": "c"}}), "worker.labels", "example.com/team"),
    "a label that says what none can": (_pool(worker={"labels": {"a": "b c"}}), "worker.labels", "letters, digits"),
    "an annotation that cannot be": (_pool(worker={"annotations": {"ü": "b"}}), "worker.annotations", "example.com"),
    "a Secret without a name": (_pool(worker={"envFrom": [{"secretRef": {"name": ""}}]}), "secretRef.name", "least 1"),
    "a gateway without a name": (_pool(routing={"parentRefs": [{"name": ""}]}), "parentRefs[0].name", "at least 1"),
    "a name no Service can have": (_pool(name="1st"), "metadata.name", "starting with a letter"),
    "a GPU class without devices": (_class(accelerators=None), "accelerators", "required"),
    "a CPU class with devices": (_class(kind="CPU"), "accelerators", "unset"),
    "a custom runtime without an image": (_class(runtime={"name": "Custom"}), "runtime.image", "required"),
    "a price below zero": (_class(capacity=[{"type": "Spot", "usdPerHour": "-1"}]), "usdPerHour", '"0.638"'),
    "a class without capacity": (_class(capacity=[]), "capacity", "at least 1"),
    "a profile without points": (_profile(points=[]), "points", "at least 1"),
    "a profile without speed": (_profile(prefillTokensPerSecond="0"), "prefillTokensPerSecond", "above zero"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_cannot_work_is_refused_with_field_and_remedy(
    control_plane: ControlPlane, namespace: str, case: str
) -> None:
    manifest, *words = REFUSED[case]
    with pytest.raises(KubectlError) as refusal:
        _dry_run(control_plane, namespace, manifest)
    for word in words:
        assert word in str(refusal.value)


def test_the_model_of_a_pool_cannot_be_changed(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("apply", f"--namespace={namespace}", "-f", "-", input=json.dumps(_pool()))
    change = '{"spec": {"model": {"name": "llama-3.2-1b-instruct"}}}'
    with pytest.raises(KubectlError, match="immutable: create a new pool"):
        control_plane.kubectl("patch", "bpool", "p", f"--namespace={namespace}", "--type=merge", "-p", change)
