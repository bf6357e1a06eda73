"""What does one worker pod look like on a hardware class?  Container by runtime, resources, where it may run."""

from collections.abc import Mapping
from typing import Any, Final

from berth_operator.api import Capacity, CapacityType, HardwareClass, InferencePool, Quantization, RuntimeName, resolve
from berth_operator.api.names import (
    CAPACITY_TYPE_LABEL,
    EMBEDDED_MODEL,
    HARDWARE_CLASS_LABEL,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    ZONE_LABEL,
)
from berth_operator.planner import Placement
from berth_operator.render.multinode import parallel_args
from berth_operator.render.settings import RenderSettings

GRPC_PORT: Final = 9000
HTTP_PORT: Final = 8000
_GRACE_SECONDS = {CapacityType.SPOT: 110}  # AWS reclaims a spot node two minutes after its notice
_DEFAULT_GRACE_SECONDS = 300
_ENDPOINTS_LAG_SECONDS = 5
_NODE_CPU_SHARE = 0.9  # what a whole-node replica requests: the rest is the kubelet's and the DaemonSets'
_NODE_MEMORY_SHARE = 0.85
_SCRATCH = "scratch"
_SHARED_MEMORY = "shm"
_CACHE_PATH = "/var/cache/berth"

Manifest = dict[str, Any]


def pod_spec(
    pool: InferencePool,
    placement: Placement,
    hardware: HardwareClass,
    settings: RenderSettings,
    identity: Mapping[str, str],
) -> Manifest:
    """The pod spec of one replica.  It passes the `restricted` Pod Security Standard."""
    capacity = hardware.capacity_of(placement.capacity_type)
    template = pool.spec.worker
    grace = _GRACE_SECONDS.get(placement.capacity_type, _DEFAULT_GRACE_SECONDS)
    volumes, mounts = _volumes(pool)
    if _divided(placement, hardware):  # NCCL's, whose default of 64 MiB is too little
        volumes.append({"name": _SHARED_MEMORY, "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}})
        mounts.append({"name": _SHARED_MEMORY, "mountPath": "/dev/shm"})  # noqa: S108 - inside the container
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace,
        "nodeSelector": {
            "kubernetes.io/arch": hardware.spec.architecture,
            **((capacity.selector if capacity else None) or {}),
        },
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [_spread(pool, placement, capacity, identity)],
        "affinity": {**_on_nodes(placement, identity), **_in_zones(capacity)},
        "containers": [_container(pool, placement, hardware, settings, grace, mounts)],
        "volumes": volumes,
    }
    if capacity and capacity.tolerations:
        spec["tolerations"] = [toleration.to_api() for toleration in capacity.tolerations]
    if template:
        for field, value in (
            ("serviceAccountName", template.service_account_name),
            ("priorityClassName", template.priority_class_name),
            ("runtimeClassName", template.runtime_class_name),
        ):
            if value:
                spec[field] = value
        if template.image_pull_secrets:
            spec["imagePullSecrets"] = [secret.to_api() for secret in template.image_pull_secrets]
    return spec


def _spread(
    pool: InferencePool, placement: Placement, capacity: Capacity | None, identity: Mapping[str, str]
) -> Manifest:
    """Over zones as evenly as whole nodes can be; without fail where the plan counts on losing one zone at a time.

    Zones get whole nodes: a smaller skew would buy more of them.  `minDomains` counts zones that have no node yet as
    empty ones, so that the first pods do not fill the only zone there is.
    """
    zones = len(capacity.zones or ()) if capacity else 0
    spread: Manifest = {
        "maxSkew": placement.replicas_per_node,
        "topologyKey": ZONE_LABEL,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": dict(identity)},
    }
    survives = resolve(pool.spec).survive_loss_percent > 0
    if zones > 1 and placement.capacity_type is CapacityType.SPOT and survives:
        spread |= {"whenUnsatisfiable": "DoNotSchedule", "minDomains": zones}
    return spread


def _in_zones(capacity: Capacity | None) -> Manifest:
    """Only in the zones that a class states."""
    zones = capacity.zones if capacity else None
    if not zones:
        return {}
    term = {"matchExpressions": [{"key": ZONE_LABEL, "operator": "In", "values": sorted(zones)}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


def _on_nodes(placement: Placement, identity: Mapping[str, str]) -> Manifest:
    """Alone, where it takes a whole node or was measured alone on one; else beside others."""
    if placement.resources is None or placement.replicas_per_node == 1:
        return _alone_on_its_node()
    return _beside_others(placement, identity)


def _alone_on_its_node() -> Manifest:
    """It shares its node with no other worker, of any pool and namespace."""
    return {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": {"matchLabels": {MANAGED_BY_LABEL: MANAGED_BY}},
                    "namespaceSelector": {},
                }
            ]
        }
    }


def _beside_others(placement: Placement, identity: Mapping[str, str]) -> Manifest:
    """Replicas that leave room fill nodes one by one, as the plan pays for them: whole nodes, their own pool's first,
    then, where these may be shared, such as other pools' replicas stand on."""
    host = {"topologyKey": "kubernetes.io/hostname"}
    near: list[Manifest] = [
        {"weight": 100, "podAffinityTerm": {**host, "labelSelector": {"matchLabels": dict(identity)}}}
    ]
    if placement.shareable:
        labels = {
            MANAGED_BY_LABEL: MANAGED_BY,
            HARDWARE_CLASS_LABEL: placement.hardware_class,
            CAPACITY_TYPE_LABEL: placement.capacity_type.value,
        }
        others = {**host, "labelSelector": {"matchLabels": labels}, "namespaceSelector": {}}
        near.append({"weight": 50, "podAffinityTerm": others})
    return {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": near}}


def _divided(placement: Placement, hardware: HardwareClass) -> bool:
    """Whether vLLM divides the model over devices."""
    return hardware.spec.runtime.name == RuntimeName.VLLM and bool(parallel_args(placement, hardware))


def _volumes(pool: InferencePool) -> tuple[list[Manifest], list[Manifest]]:
    """A scratch volume for caches, and the model's claim where the source is `pvc://CLAIM/PATH`."""
    volumes: list[Manifest] = [{"name": _SCRATCH, "emptyDir": {}}]
    mounts: list[Manifest] = [
        {"name": _SCRATCH, "mountPath": "/tmp", "subPath": "tmp"},  # noqa: S108 - inside the container
        {"name": _SCRATCH, "mountPath": _CACHE_PATH, "subPath": "cache"},
    ]
    source = pool.spec.model.source or ""
    if source.startswith("pvc://"):
        claim = source.removeprefix("pvc://").split("/", 1)[0]
        volumes.append({"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
        mounts.append({"name": "model", "mountPath": f"/models/{claim}", "readOnly": True})
    return volumes, mounts


def _container(
    pool: InferencePool,
    placement: Placement,
    hardware: HardwareClass,
    settings: RenderSettings,
    grace_seconds: int,
    mounts: list[Manifest],
) -> Manifest:
    runtime = hardware.spec.runtime
    extra = list(runtime.args or [])
    container: Manifest = {
        "name": "worker",
        "imagePullPolicy": settings.image_pull_policy,
        "terminationMessagePolicy": "FallbackToLogsOnError",  # the worker's last words, for conditions
        "resources": _resources(placement, hardware),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
    }
    http = {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"}
    grpc = {"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"}
    env: list[Manifest] = [{"name": "HF_HOME", "value": _CACHE_PATH}]
    match runtime.name:
        case RuntimeName.BERTH:
            container["image"] = runtime.image or settings.worker_image
            container["command"] = ["berth-worker"]
            container["args"] = [*_berth_args(pool, placement), *extra]
            container["securityContext"]["readOnlyRootFilesystem"] = True
            container["ports"] = [grpc, http]
            env += [
                {"name": "BERTH_WORKER_GRPC_PORT", "value": str(GRPC_PORT)},
                {"name": "BERTH_WORKER_HTTP_PORT", "value": str(HTTP_PORT)},
                {"name": "BERTH_WORKER_GRACE_SECONDS", "value": str(grace_seconds - 10)},
                {"name": "BERTH_WORKER_INTER_TOKEN_LATENCY_P99_SECONDS", "value": _gap(pool, placement)},
            ]
            ready, alive = "/readyz", "/healthz"
        case RuntimeName.VLLM:
            container["image"] = runtime.image or settings.vllm_image
            container["args"] = [*_vllm_args(pool, placement, hardware), *extra]
            if placement.nodes_per_replica > 1:
                container["command"] = ["vllm", "serve"]
                env.append({"name": "VLLM_HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
            container["ports"] = [http]
            ready, alive = "/health", "/health"
        case RuntimeName.CUSTOM:
            container["image"] = runtime.image
            container["args"] = extra
            container["ports"] = [http]
            env += [
                {"name": "BERTH_MODEL", "value": _source(pool)},
                {"name": "BERTH_MODEL_NAME", "value": pool.spec.model.name},
            ]
            if placement.nodes_per_replica > 1:
                env.append({"name": "BERTH_NODES_PER_REPLICA", "value": str(placement.nodes_per_replica)})
            ready, alive = "/health", "/health"
    if runtime.name != RuntimeName.BERTH:
        # Ours admits for a while after SIGTERM; others refuse at once, while endpoints still send them requests.
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": _ENDPOINTS_LAG_SECONDS}}}
    container["env"] = env
    env_from = pool.spec.worker.env_from if pool.spec.worker else None
    if env_from:
        container["envFrom"] = [source.to_api() for source in env_from]
    container |= _probes(ready, alive)
    return container


def _source(pool: InferencePool) -> str:
    return pool.spec.model.source or EMBEDDED_MODEL


def _gap(pool: InferencePool, placement: Placement) -> str:
    """Seconds: what is promised, or less where the plan counts on that.

    In the environment, not an argument: an older worker of the user's own image passes over it.
    """
    return f"{placement.capacity.pace_seconds or resolve(pool.spec).inter_token_latency_p99.total_seconds():g}"


def _berth_args(pool: InferencePool, placement: Placement) -> list[str]:
    return [
        f"--model={_source(pool)}",
        f"--served-model-name={pool.spec.model.name}",
        f"--quantization={placement.quantization.value}",
        f"--max-concurrency={placement.capacity.concurrency}",
    ]


def _vllm_args(pool: InferencePool, placement: Placement, hardware: HardwareClass) -> list[str]:
    """vLLM makes 8-bit weights from a bf16 checkpoint itself only as FP8, so that is what Int8 means on it.

    The image's own entry point takes `--model`; `vllm serve`, the model as first argument.
    """
    source = _source(pool).removeprefix("hf://")
    args = [
        source if placement.nodes_per_replica > 1 else f"--model={source}",
        f"--served-model-name={pool.spec.model.name}",
        f"--max-num-seqs={placement.capacity.concurrency}",
        f"--port={HTTP_PORT}",
    ]
    if placement.capacity.token_budget:
        args.append(f"--max-num-batched-tokens={placement.capacity.token_budget}")
    if placement.quantization == Quantization.INT8:
        args.append("--quantization=fp8")
    return args + parallel_args(placement, hardware)


def _resources(placement: Placement, hardware: HardwareClass) -> Manifest:
    """Of a profile's replica exactly what it says, as limit too; of a whole node, what pods can have of it."""
    devices = hardware.spec.accelerators
    if placement.resources is not None:
        amounts = {
            name: value
            for name, value in (("cpu", placement.resources.cpu), ("memory", placement.resources.memory))
            if value is not None
        }
        if devices and placement.resources.accelerators:
            amounts[devices.resource] = str(placement.resources.accelerators)
        return {"requests": dict(amounts), "limits": dict(amounts)}
    requests = {"cpu": str(max(1, int(hardware.spec.cpus * _NODE_CPU_SHARE)))}
    limits: dict[str, str] = {}
    if devices:
        requests[devices.resource] = limits[devices.resource] = str(devices.count)
    else:
        memory = f"{int(hardware.spec.memory_gib * 1024 * _NODE_MEMORY_SHARE)}Mi"
        requests["memory"] = limits["memory"] = memory
    return {"requests": requests, "limits": limits}


def _probes(ready: str, alive: str) -> Manifest:
    def probe(path: str, **timing: int) -> Manifest:
        return {"httpGet": {"path": path, "port": "http", "scheme": "HTTP"}, "timeoutSeconds": 3, **timing}

    return {
        "startupProbe": probe(ready, periodSeconds=2, failureThreshold=900),  # half an hour to load a large model
        "readinessProbe": probe(ready, periodSeconds=5, failureThreshold=2),
        "livenessProbe": probe(alive, periodSeconds=10, failureThreshold=3),
    }
