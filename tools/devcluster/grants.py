"""What does RBAC let a ServiceAccount do, and what of that did it do?

A grant is one verb on one resource, by one rule. Using it is any request that the API server authorized: that the
object was not there makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from devcluster.audit import AuditEvent
from devcluster.controlplane import ControlPlane

_DECISION = "authorization.k8s.io/decision"

Manifest = Mapping[str, Any]


@dataclass(frozen=True, order=True)
class Grant:
    """One verb on one resource."""

    resource: str
    """As in the audit log: ``deployments.apps``, ``inferencepools.berth.dev/status``."""
    verb: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


def granted(cluster: ControlPlane, namespace: str, account: str) -> dict[Grant, list[str]]:
    """Every grant of a ServiceAccount by a binding of its own, with the roles that give it.

    A role that binds only a group (``system:authenticated``) is not counted.  Raises ValueError for a wildcard, which
    grants what nobody can list.
    """
    roles = {_key(role): role for role in cluster.get("clusterroles,roles", "--all-namespaces")["items"]}
    out: dict[Grant, list[str]] = {}
    for binding in cluster.get("clusterrolebindings,rolebindings", "--all-namespaces")["items"]:
        subjects = binding.get("subjects", [])
        if not any(
            s["kind"] == "ServiceAccount" and (s["namespace"], s["name"]) == (namespace, account) for s in subjects
        ):
            continue
        reference = binding["roleRef"]
        where = binding["metadata"].get("namespace", "") if reference["kind"] == "Role" else ""
        kind, _, name = key = reference["kind"], where, reference["name"]
        role = f"{kind} {where}/{name}" if where else f"{kind} {name}"
        for grant in expand(roles[key].get("rules") or (), role):
            out.setdefault(grant, []).append(role)
    return out


def expand(rules: Iterable[Manifest], role: str) -> Iterator[Grant]:
    """The grants of a role's rules.  Raises ValueError for a wildcard or a path that is no resource."""
    for rule in rules:
        if rule.get("nonResourceURLs"):
            raise ValueError(f"{role}: grants nonResourceURLs {rule['nonResourceURLs']}")
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    if "*" in (group, resource, verb):
                        raise ValueError(f"{role}: a wildcard in {rule}: name group, resource and verb")
                    yield Grant(_qualified(resource, group), verb)


def used(events: Iterable[AuditEvent]) -> set[Grant]:
    """The grants without which these requests would have been denied."""
    out = set()
    for event in events:
        if event.raw.get("annotations", {}).get(_DECISION) != "allow" or not event.raw.get("objectRef"):
            continue
        resource, dot, group = event.resource.partition(".")
        name = resource + (dot + group) + (f"/{event.subresource}" if event.subresource else "")
        out.add(Grant(name, event.verb))
        if event.verb == "patch" and event.code == HTTPStatus.CREATED:
            out.add(Grant(name, "create"))  # server-side apply of what did not exist asks for both
    return out


def _qualified(resource: str, group: str) -> str:
    plural, slash, below = resource.partition("/")
    return (f"{plural}.{group}" if group else plural) + slash + below


def _key(role: Manifest) -> tuple[str, str, str]:
    metadata = role["metadata"]
    return role["kind"], metadata.get("namespace", ""), metadata["name"]
