"""What would a cluster do, without one?  Objects, a scheduler and kubelets of plain data, on a clock of their own.

`PretendCluster` stands for the API server and its controllers, just enough for the operator's loop: it keeps objects
with versions, generations and owners, tells reflectors of every change at once, rolls Deployments out, gives pods whole
nodes while there are some, and lets them become ready after a while.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from berth_operator.cluster.kube import ApiError
from berth_operator.cluster.reflector import Reflector
from berth_operator.cluster.resources import DEPLOYMENTS, PODS, Resource

Object = dict[str, Any]
Key = tuple[str, str, str]
"""(plural, namespace, name)"""
Place = tuple[str, str]
"""(hardware class, capacity type)"""

_CLASS, _CAPACITY = "berth.dev/hardware-class", "berth.dev/capacity-type"


@dataclass
class PretendCluster:
    """The objects, and what runs.  `nodes`: those that can be had of each place now."""

    now: datetime
    nodes: dict[Place, set[str]] = field(default_factory=lambda: defaultdict(set))
    loading: timedelta = timedelta(minutes=2)
    """From a pod's getting a node to its being ready."""
    objects: dict[Key, Object] = field(default_factory=dict)
    reflectors: list[Reflector[Any]] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    """Every write by the operator: "PATCH deployments team/name"."""
    _version: int = 0

    def clock(self) -> type[datetime]:
        """`datetime` whose `now` is the cluster's, to put in a module's place of it."""
        cluster = self

        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
                return cluster.now.astimezone(tz)

        return Clock

    # What the operator's `Kube` offers

    def may_write(self) -> bool:
        """As the leader."""
        return True

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """One object, or None."""
        return copy.deepcopy(self.objects.get((resource.plural, namespace or "", name)))

    async def apply(self, resource: Resource, manifest: Object, *, subresource: str | None = None) -> Object:
        """Server-side apply by the only manager that there is: what it does not name goes, status aside."""
        metadata = manifest["metadata"]
        key = resource.plural, metadata.get("namespace") or "", metadata["name"]
        there = self.objects.get(key)
        where = "/".join(key[1:])
        self.writes.append(f"PATCH {resource.plural}{'/status' if subresource else ''} {where}")
        wanted = metadata.get("resourceVersion")
        if there is not None and wanted is not None and wanted != there["metadata"]["resourceVersion"]:
            raise ApiError(409, f"{where}: the object has been modified")
        if subresource:
            if there is None:
                raise ApiError(404, f"{where}: not found")
            return self.put(resource, there | {"status": copy.deepcopy(manifest["status"])})
        body = copy.deepcopy(manifest) | {"status": there.get("status", {}) if there else {}}
        body["metadata"]["managedFields"] = [
            {"manager": "berth-operator", "operation": "Apply", "fieldsV1": _fields(manifest)}
        ]
        return self.put(resource, body)

    async def delete(
        self, resource: Resource, namespace: str | None, name: str, *, uid: str, resource_version: str = ""
    ) -> None:
        """Delete this very object, as of a version where one is given; raises ApiError 409 when it has changed."""
        self.writes.append(f"DELETE {resource.plural} {namespace}/{name}")
        there = self.objects.get((resource.plural, namespace or "", name))
        if there is None or there["metadata"]["uid"] != uid:
            return
        if resource_version and resource_version != there["metadata"]["resourceVersion"]:
            raise ApiError(409, f"{namespace}/{name}: the object has been modified")
        self.remove(resource, namespace or "", name)

    async def request(self, method: str, path: str, **_: Any) -> Object:
        """No other resource is served, and an Event is taken and forgotten."""
        if method == "POST":
            self.writes.append(f"POST {path}")
            return {}
        raise ApiError(404, f"{method} {path}: not served")

    # What a user and controllers do

    def put(self, resource: Resource, body: Object) -> Object:
        """Create or replace an object, and tell who follows it."""
        body = copy.deepcopy(body)
        metadata = body["metadata"]
        key = resource.plural, metadata.get("namespace") or "", metadata["name"]
        there = self.objects.get(key)
        self._version += 1
        metadata["resourceVersion"] = str(self._version)
        if there is None:
            metadata |= {"uid": f"uid-{self._version}", "generation": 1}
            metadata["creationTimestamp"] = _time(self.now)
        else:
            same = there.get("spec") == body.get("spec")
            metadata["uid"] = there["metadata"]["uid"]
            metadata["generation"] = there["metadata"]["generation"] + (not same)
            metadata["creationTimestamp"] = there["metadata"]["creationTimestamp"]
        body |= {"apiVersion": resource.api_version, "kind": resource.kind}
        self.objects[key] = body
        self._tell("MODIFIED" if there else "ADDED", resource, body)
        return copy.deepcopy(body)

    def edit(self, resource: Resource, namespace: str, name: str, spec: Mapping[str, Any]) -> None:
        """Replace an object's spec, as a user would."""
        there = self.objects[resource.plural, namespace, name]
        self.put(resource, there | {"spec": copy.deepcopy(dict(spec))})

    def remove(self, resource: Resource, namespace: str, name: str) -> None:
        """Delete an object and, at once, what it owns."""
        gone = self.objects.pop((resource.plural, namespace, name))
        self._version += 1
        gone["metadata"]["resourceVersion"] = str(self._version)
        self._tell("DELETED", resource, gone)
        uid = gone["metadata"]["uid"]
        for (_, inside, called), other in list(self.objects.items()):
            owners = other["metadata"].get("ownerReferences", ())
            if any(owner["uid"] == uid for owner in owners):
                self.remove(_resource(other), inside, called)

    def all(self, resource: Resource) -> list[Object]:
        """Every object of a resource, by namespace and name."""
        return [self.objects[key] for key in sorted(self.objects) if key[0] == resource.plural]

    # What scheduler, controller manager and kubelets do

    def pass_time(self, step: timedelta) -> None:
        """Let the clock go on, and everything that waits for it happen."""
        self.now += step
        for _ in range(4):  # a pod made ready lets the next one be rolled
            for deployment in self.all(DEPLOYMENTS):
                self._roll(deployment)
            self._schedule()
            self._make_ready()
        for deployment in self.all(DEPLOYMENTS):
            self._report(deployment)

    def lose(self, place: Place, names: Iterable[str]) -> None:
        """Nodes are taken away, with the pods on them."""
        gone = set(names)
        self.nodes[place] -= gone
        for pod in self.all(PODS):
            if pod["spec"].get("nodeName") in gone:
                self.remove(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
        self.pass_time(timedelta(0))

    def pods(self, namespace: str, pool: str) -> list[Object]:
        """Of a pool."""
        return [
            pod
            for pod in self.all(PODS)
            if pod["metadata"]["namespace"] == namespace and pod["metadata"]["labels"].get("berth.dev/pool") == pool
        ]

    def _roll(self, deployment: Object) -> None:
        metadata, spec = deployment["metadata"], deployment["spec"]
        template = hashlib.sha256(json.dumps(spec["template"], sort_keys=True).encode()).hexdigest()[:10]
        pods = self._owned(metadata["uid"])
        new = [p for p in pods if p["metadata"]["annotations"]["template"] == template]
        old = [p for p in pods if p not in new]
        most = spec["replicas"] + (1 if old else 0)
        while len(new) < spec["replicas"] and len(new) + len(old) < most:
            self._version += 1
            labels = spec["template"]["metadata"]["labels"]
            owner = {"kind": "Deployment", "name": metadata["name"], "uid": metadata["uid"], "controller": True}
            body = {
                "metadata": {
                    "name": f"{metadata['name']}-{template}-{self._version}",
                    "namespace": metadata["namespace"],
                    "labels": labels,
                    "annotations": {"template": template},
                    "ownerReferences": [owner],
                },
                "spec": spec["template"]["spec"],
                "status": {"phase": "Pending", "conditions": []},
            }
            new.append(self.put(PODS, body))
        ready = [p for p in [*new, *old] if _is_ready(p)]
        spare = len(ready) - spec["replicas"]
        leaving = [p for p in old if not _is_ready(p)] + [p for p in old if _is_ready(p)][: max(0, spare)]
        extra = len(new) - spec["replicas"]
        leaving += sorted(new, key=_is_ready)[: max(0, extra)]
        for pod in leaving:
            self.remove(PODS, metadata["namespace"], pod["metadata"]["name"])

    def _schedule(self) -> None:
        taken = {pod["spec"].get("nodeName") for pod in self.all(PODS)}
        for pod in self.all(PODS):
            if pod["spec"].get("nodeName"):
                continue
            labels = pod["metadata"]["labels"]
            free = sorted(self.nodes[labels[_CLASS], labels[_CAPACITY]] - taken)
            if free:
                taken.add(free[0])
                said = {"type": "PodScheduled", "status": "True", "lastTransitionTime": _time(self.now)}
                status = {"phase": "Pending", "conditions": [said]}
                self.put(PODS, pod | {"spec": pod["spec"] | {"nodeName": free[0]}, "status": status})
            elif not pod["status"]["conditions"]:
                said = {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": "0/9 nodes are available: 9 Insufficient cpu.",
                    "lastTransitionTime": _time(self.now),
                }
                self.put(PODS, pod | {"status": {"phase": "Pending", "conditions": [said]}})

    def _make_ready(self) -> None:
        for pod in self.all(PODS):
            since = next((c for c in pod["status"]["conditions"] if c["type"] == "PodScheduled"), None)
            if _is_ready(pod) or since is None or since["status"] != "True":
                continue
            if self.now >= datetime.fromisoformat(since["lastTransitionTime"]) + self.loading:
                said = {"type": "Ready", "status": "True", "lastTransitionTime": _time(self.now)}
                self.put(PODS, pod | {"status": {"phase": "Running", "conditions": [since, said]}})

    def _report(self, deployment: Object) -> None:
        metadata, spec = deployment["metadata"], deployment["spec"]
        template = hashlib.sha256(json.dumps(spec["template"], sort_keys=True).encode()).hexdigest()[:10]
        pods = self._owned(metadata["uid"])
        ready, new = sum(map(_is_ready, pods)), sum(p["metadata"]["annotations"]["template"] == template for p in pods)
        status = {
            "observedGeneration": metadata["generation"],
            "replicas": len(pods),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "updatedReplicas": new,
        }
        if deployment.get("status") != status:
            self.put(DEPLOYMENTS, deployment | {"status": status})

    def _owned(self, uid: str) -> list[Object]:
        return [p for p in self.all(PODS) if any(o["uid"] == uid for o in p["metadata"].get("ownerReferences", ()))]

    def _tell(self, kind: str, resource: Resource, body: Object) -> None:
        for reflector in self.reflectors:
            if reflector.resource == resource:
                reflector._take("", {"type": kind, "object": copy.deepcopy(body)})


def _resource(body: Object) -> Resource:
    group, _, version = body["apiVersion"].rpartition("/")
    plural = {"PodDisruptionBudget": "poddisruptionbudgets"}.get(body["kind"], body["kind"].lower() + "s")
    return Resource(group, version, plural, body["kind"])


def _is_ready(pod: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])


def _fields(value: Mapping[str, Any]) -> Object:
    """FieldsV1 of everything in a manifest; lists as atoms."""
    return {f"f:{k}": _fields(v) if isinstance(v, Mapping) else {} for k, v in value.items()}


def _time(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
