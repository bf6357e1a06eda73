"""Are the scheduler's and the kubelet's words understood, and told in words that stay while nothing changes?"""

from datetime import UTC, datetime
from typing import Any

import pytest
from berth_operator.cluster.pod_troubles import Fault, Obstacle, blocked, create_error, failing, last_line
from hypothesis import given
from hypothesis import strategies as st

SINCE = "2026-11-21T12:00:00Z"
HELPLESS = (
    " no new claims to deallocate, preemption: 0/28 nodes are available: 28 Preemption is not helpful for scheduling."
)


def _waiting(message: str, reason: str = "Unschedulable") -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return {"metadata": {}, "status": {"conditions": [condition | {"lastTransitionTime": SINCE}]}}


def _running(ready: str = "False", **container: Any) -> dict[str, Any]:
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": SINCE},
        {"type": "Ready", "status": ready},
    ]
    statuses = [{"name": "worker", "image": "berth-worker:0.1.0", "restartCount": 0} | container]
    return {"metadata": {}, "status": {"conditions": conditions, "containerStatuses": statuses}}


def _ended(code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


@pytest.mark.parametrize(
    ("message", "obstacle"),
    [
        (
            "0/28 nodes are available: 12 Insufficient cpu, 16 node(s) didn't match Pod's node affinity/selector.",
            "Full",
        ),
        (
            "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) didn't match pod anti-affinity rules.",
            "Full",
        ),
        ("0/3 nodes are available: 3 node(s) were unschedulable.", "Taint"),
        ("0/4 nodes are available: 4 node(s) didn't match Pod's node affinity/selector.", "Selector"),
        ("no nodes available to schedule pods", "Selector"),
        (
            "0/9 nodes are available: 4 node(s) had untolerated taint {nvidia.com/gpu: present},"
            " 5 node(s) didn't match Pod's node affinity/selector.",
            "Taint",
        ),
        ("0/9 nodes are available: 9 node(s) had untolerated taint(s).", "Taint"),
        ('0/9 nodes are available: persistentvolumeclaim "models" not found.', "Volume"),
        ("0/9 nodes are available: 9 node(s) had volume node affinity conflict.", "Volume"),
    ],
)
@pytest.mark.parametrize("end", ["", HELPLESS])
def test_the_schedulers_reason_is_understood(message: str, obstacle: str, end: str) -> None:
    found = blocked(_waiting(message + end))
    assert found
    assert found.obstacle is Obstacle(obstacle)
    assert found.since == datetime(2026, 11, 21, 12, tzinfo=UTC)
    assert "Preemption" not in found.detail


def test_numbers_of_nodes_are_left_out_so_that_their_coming_and_going_wakes_nobody() -> None:
    message = "0/{} nodes are available: {} Insufficient cpu, {} node(s) had untolerated taint {{a: b, c}}."
    assert blocked(_waiting(message.format(28, 12, 16))) == blocked(_waiting(message.format(30, 20, 10)))


@pytest.mark.parametrize("pod", [_waiting("gated", "SchedulingGated"), _running(), {"metadata": {}}])
def test_only_a_pod_that_the_scheduler_gave_up_on_is_blocked(pod: dict[str, Any]) -> None:
    assert blocked(pod) is None


@pytest.mark.parametrize(
    ("container", "fault", "says"),
    [
        (
            {"state": {"waiting": {"reason": "ErrImagePull", "message": "manifest unknown"}}},
            Fault.IMAGE,
            "berth-worker:0.1.0: manifest unknown",
        ),
        (
            {"state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'}}},
            Fault.CONFIGURATION,
            'secret "hf" not found',
        ),
        (
            {"lastState": _ended(2, "loading\nberth-worker: --model: no such file: /models/x.gguf\n")},
            Fault.REFUSED,
            "exit code 2: berth-worker: --model: no such file: /models/x.gguf",
        ),
        ({"restartCount": 2, "lastState": _ended(1, "boom")}, Fault.CRASH, "exit code 1: boom"),
        ({"restartCount": 2, "lastState": _ended(1)}, Fault.CRASH, "exit code 1: it said nothing"),
        ({"restartCount": 2, "lastState": _ended(137, "", "OOMKilled")}, Fault.MEMORY, "more memory than its limit"),
    ],
)
def test_a_worker_that_does_not_come_up_is_quoted(container: dict[str, Any], fault: Fault, says: str) -> None:
    found = failing(_running(**container))
    assert found
    assert found.fault is fault
    assert says in found.message


@pytest.mark.parametrize(
    "container",
    [
        {"restartCount": 1, "lastState": _ended(1, "a passing fault")},
        {"state": {"waiting": {"reason": "ContainerCreating"}}},
        {"restartCount": 9, "state": {"running": {}}},
    ],
)
def test_a_worker_that_may_still_come_up_is_not_failing(container: dict[str, Any]) -> None:
    assert failing(_running(**container)) is None
    assert failing(_running("True", restartCount=9, lastState=_ended(2, "long ago"))) is None


def test_what_the_kubelet_says_between_two_pulls_is_the_same() -> None:
    pulls = [("ErrImagePull", "nope"), ("ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: nope')]
    found = [failing(_running(state={"waiting": {"reason": r, "message": m}})) for r, m in pulls]
    assert found[0] == found[1]
    crash = {"restartCount": 3, "lastState": _ended(1, "boom")}
    backing_off = crash | {"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}}
    assert failing(_running(**crash)) == failing(_running(**backing_off))


def test_a_refusal_to_make_pods_leaves_out_their_names() -> None:
    def status(name: str) -> dict[str, Any]:
        message = f'pods "{name}" is forbidden: exceeded quota: small'
        return {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": message}]}

    assert create_error(status("a-1")) == create_error(status("b-2")) == "exceeded quota: small"
    assert create_error({}) is None


@pytest.mark.parametrize(
    ("text", "last"),
    [("", ""), ("a\nb\n\n", "b"), ('{"level": "error", "msg": "no"}', "no"), ('{"a": 1}', '{"a": 1}'), ("[1]", "[1]")],
)
def test_the_last_line_is_the_message(text: str, last: str) -> None:
    assert last_line(text) == last


@given(st.text(max_size=400), st.integers(-5, 300), st.integers(0, 9))
def test_no_text_of_scheduler_or_worker_breaks_anything(text: str, code: int, restarts: int) -> None:
    found = blocked(_waiting(text))
    assert found
    assert len(found.detail) <= 300
    said = failing(_running(restartCount=restarts, lastState=_ended(code, text)))
    assert said is None or len(said.message) <= 300
