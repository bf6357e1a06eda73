"""Does the demo clean up however it ends, and does it play the kubelet by the book?  (.ci/run runs all of it.)"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from demo.kubelet import container_of
from demo.leftovers import children, living
from demo.narrator import DemoError, Narrator
from devcluster import wait_for

_UP = re.compile(r"2/12.*Simulated nodes")


def deployment(**container: Any) -> dict[str, Any]:
    spec = {"template": {"spec": {"containers": [{"image": "i:1"} | container]}}}
    return {"metadata": {"name": "d", "namespace": "n"}, "spec": spec}


def test_command_arguments_and_environment_are_those_of_the_container() -> None:
    container = container_of(
        deployment(
            command=["berth-worker"],
            args=["--model=m"],
            env=[
                {"name": "PLAIN", "value": "a b"},
                {"name": "SELF", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "WHERE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            ],
        ),
        pod="p-0",
    )
    assert container.command == ["berth-worker", "--model=m"]
    assert container.environment == {"PLAIN": "a b", "SELF": "p-0", "WHERE": "n"}
    assert "PLAIN='a b'" in container.lines()


def test_an_image_without_a_command_starts_its_entry_point() -> None:
    assert container_of(deployment(args=["-v"]), pod="p", entry_point=["berth-operator"]).command == [
        "berth-operator",
        "-v",
    ]


def test_environment_that_nobody_here_can_know_is_an_error_that_names_it() -> None:
    secret = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    with pytest.raises(DemoError, match="TOKEN comes from"):
        container_of(deployment(env=[secret]), pod="p")


def test_a_step_that_checks_nothing_fails(capsys: pytest.CaptureFixture[str]) -> None:
    narrator = Narrator(1)
    with pytest.raises(DemoError, match="checked nothing"), narrator.step("A step"):
        narrator.say("all is well")


def test_a_check_that_does_not_hold_ends_the_demo_with_what_was_found() -> None:
    with pytest.raises(DemoError, match="three pools: it is not so; found 2"):
        Narrator(1).check("three pools", holds=False, found=2)


def test_descendants_are_seen_and_their_end_too() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process.pid in children()
    assert living([process.pid]) == [process.pid]
    process.communicate(b"\n")
    assert process.pid not in children()
    assert not living([process.pid])


# What a shell starts in the background ignores SIGINT, and so do its children: this test may run there.
_DEMO_AS_FROM_A_TERMINAL = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("demo", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_and_no_file(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-c", _DEMO_AS_FROM_A_TERMINAL],
            stdout=sink,
            stderr=sink,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            start_new_session=True,
        )
    try:
        wait_for("the control plane is up", lambda: _UP.search(log.read_text()) or process.poll() is not None, 120)
        assert process.poll() is None, log.read_text()
        started = [*children(process.pid)]
        assert len(started) >= 5  # etcd, API server, scheduler, controller manager, KWOK
        process.send_signal(number)
        assert process.wait(timeout=30) == 130, log.read_text()
        assert not living(started)
        assert [path.name for path in tmp_path.iterdir()] == ["log"]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
