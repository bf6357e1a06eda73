"""Which profiles would the API server refuse, and in which words?"""

from __future__ import annotations

from typing import Any

import pytest
from berth_operator.cli.schema_rules import violations

ONE_REPLICA = {"cpu": "4", "memory": "8Gi"}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"replicasPerNode": 4}, "replicasPerNode above 1 needs resources"),
        ({"replicasPerNode": 2, "nodesPerReplica": 2, "resources": ONE_REPLICA}, "exclude each other"),
        ({"nodesPerReplica": 2, "resources": ONE_REPLICA, "runtime": "VLLM"}, "resources must be unset"),
        ({"nodesPerReplica": 2}, "nodesPerReplica above 1 needs a runtime whose replica can span nodes"),
    ],
)
def test_a_replicas_share_of_nodes_that_cannot_be_is_refused(spec: dict[str, Any], words: str) -> None:
    assert any(words in message for _, message in violations("ServingProfile", _profile(spec)))


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"replicasPerNode": 1},
        {"replicasPerNode": 4, "resources": ONE_REPLICA},
        {"nodesPerReplica": 2, "runtime": "VLLM"},
    ],
)
def test_one_that_can_be_is_taken(spec: dict[str, Any]) -> None:
    assert list(violations("ServingProfile", _profile(spec))) == []


def _profile(spec: dict[str, Any]) -> dict[str, Any]:
    point = {"concurrency": 1, "contextTokens": 1000, "decodeTokensPerSecond": "50", "interTokenLatencyP99": "40ms"}
    whole = {"runtime": "Berth", "points": [point]} | spec
    return {"metadata": {"name": "profile"}, "spec": whole}
