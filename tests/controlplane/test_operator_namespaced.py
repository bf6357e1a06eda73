"""Does an operator that is given some namespaces need no right in any other, and leave the others alone?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Fleet, OperatorProcess


def test_only_the_watched_namespace_is_served_with_rights_in_that_one_alone(
    fleet: Fleet, namespaced_operator: tuple[OperatorProcess, str, str]
) -> None:
    operator, watched, other = namespaced_operator
    mark = fleet.cluster.audit_mark()
    fleet.pool(other, "agents")
    fleet.pool(watched, "agents")
    operator.wait_for("the watched pool is Ready", lambda: fleet.ready(watched, "agents"))
    passes = operator.passes
    operator.wait_for("two more passes", lambda: operator.passes >= passes + 2)
    assert fleet.status(other, "agents") == {}
    assert fleet.children(other) == {}
    assert operator.denied(mark) == []
    fleet.cluster.kubectl("auth", "can-i", "list", "pods", f"--namespace={watched}", kubeconfig=operator.kubeconfig)
    everywhere = fleet.cluster.kubectl("get", "clusterrole", "narrow-operator", "-o", "jsonpath={.rules[*].resources}")
    assert "deployments" not in everywhere and "inferencepools" not in everywhere
