"""Is a change by somebody else seen, and nothing that the API server does by itself?

The records here have the API server's own form; that the real one writes them so is checked in tests/controlplane.
"""

import json
from typing import Any

import pytest
from berth_operator.cluster.drift import lost_fields

MANIFEST: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {
        "name": "agents",
        "namespace": "default",
        "labels": {"berth.dev/pool": "agents"},
        "annotations": {"a": "1", "b": "2"},
        "ownerReferences": [{"uid": "u1", "controller": True}],
        "finalizers": ["keep"],
    },
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"a": "b"}},
        "paused": False,
        "containers": [
            {"name": "worker", "args": ["--x"], "ports": [{"containerPort": 80}], "securityContext": {}},
        ],
    },
}
RECORD: dict[str, Any] = {
    "f:metadata": {
        "f:labels": {"f:berth.dev/pool": {}},
        "f:annotations": {"f:a": {}, "f:b": {}},
        "f:ownerReferences": {'k:{"uid":"u1"}': {}},
        "f:finalizers": {'v:"keep"': {}},
    },
    "f:spec": {
        "f:replicas": {},
        "f:selector": {},
        "f:paused": {},
        "f:containers": {
            'k:{"name":"worker"}': {
                ".": {},
                "f:name": {},
                "f:args": {},
                "f:ports": {'k:{"containerPort":80,"protocol":"TCP"}': {".": {}, "f:containerPort": {}}},
            }
        },
    },
}


def _without(path: tuple[str, ...], node: dict[str, Any] = RECORD) -> dict[str, Any]:
    """The record less one path; as the API server does, what is left empty by it goes too."""
    first, *rest = path
    inner = _without(tuple(rest), node[first]) if rest else {}
    return {name: value for name, value in node.items() if name != first} | ({first: inner} if inner else {})


def test_a_child_that_nobody_touched_has_lost_nothing() -> None:
    assert lost_fields(MANIFEST, json.dumps(RECORD)) == frozenset()


def test_a_child_that_was_never_applied_has_lost_everything() -> None:
    assert lost_fields(MANIFEST, "")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (("f:metadata", "f:labels", "f:berth.dev/pool"), "metadata.labels"),
        (("f:metadata", "f:ownerReferences", 'k:{"uid":"u1"}'), "metadata.ownerReferences"),
        (("f:metadata", "f:finalizers", 'v:"keep"'), "metadata.finalizers"),
        (("f:metadata", "f:annotations", "f:b"), "metadata.annotations.b"),
        (("f:spec", "f:replicas"), "spec.replicas"),
        (("f:spec", "f:selector"), "spec.selector"),
        (("f:spec", "f:paused"), "spec.paused"),
        (("f:spec", "f:containers", 'k:{"name":"worker"}', "f:args"), "spec.containers[worker].args"),
        (("f:spec", "f:containers", 'k:{"name":"worker"}'), "spec.containers"),
    ],
)
def test_every_field_that_somebody_took_is_named(path: tuple[str, ...], says: str) -> None:
    assert lost_fields(MANIFEST, json.dumps(_without(path))) == frozenset({says})
