"""Is the operator told by flag or environment, and are bad settings refused with one clear line?"""

import json
import logging
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from berth_operator import logs
from berth_operator.__main__ import joined, open_as_many_files_as_allowed
from berth_operator.settings import parse


def test_flags_win_over_the_environment_and_both_over_defaults() -> None:
    environment = {"BERTH_WATCH_NAMESPACES": "a, b", "BERTH_DEBOUNCE": "3s", "BERTH_WORKER_IMAGE": "w:env"}
    given = parse(["--namespace=ns", "--worker-image=w:flag"], environment)
    assert given.watch_namespaces == ("a", "b")
    assert (given.debounce_s, given.interval_s) == (3.0, 30.0)
    assert given.render.worker_image == "w:flag"
    assert given.leader_elect
    assert given.metrics_address == ("0.0.0.0", 9090)  # noqa: S104


@pytest.mark.parametrize("address", ["0.0.0.0:8080", "[::]:8080", "[fd00::7]:8080"])
def test_addresses_of_both_families_make_an_url(address: str) -> None:
    assert joined(parse(["--namespace=ns", f"--health-address={address}"], {}).health_address) == address


def test_an_interval_of_nothing_does_not_spin() -> None:
    given = parse(["--namespace=ns", "--interval=0s", "--discover-interval=0s"], {})
    assert (given.interval_s, given.discover_s) == (0.1, 0.1)


@pytest.mark.parametrize(("value", "elects"), [("true", True), ("false", False), ("False", False)])
def test_leader_election_can_be_turned_off_by_environment(value: str, elects: bool) -> None:
    assert parse(["--namespace=ns"], {"BERTH_LEADER_ELECT": value}).leader_elect is elects


@pytest.mark.parametrize(
    ("flags", "environment", "watches"),
    [
        ([], {}, True),
        (["--watch-namespaces=a"], {}, False),  # where there may be no rights over nodes
        (["--watch-namespaces=a"], {"BERTH_WATCH_NODES": "true"}, True),
        (["--no-watch-nodes"], {"BERTH_WATCH_NODES": "true"}, False),
    ],
)
def test_nodes_are_watched_unless_only_some_namespaces_are(
    flags: list[str], environment: dict[str, str], watches: bool
) -> None:
    assert parse(["--namespace=ns", *flags], environment).watch_nodes is watches


def test_a_lease_lasts_a_second_at_least() -> None:
    assert parse(["--namespace=ns", "--lease-duration=100ms"], {}).lease_duration_s == 1.0
    assert parse(["--namespace=ns"], {"BERTH_LEASE_DURATION": "30s"}).lease_duration_s == 30.0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--debounce=soon"], "--debounce: 'soon' is not a duration"),
        (["--metrics-address=9090"], "--metrics-address: found '9090', expected HOST:PORT"),
        (["--log-format=xml"], "--log-format: found 'xml', expected one of text, json"),
        (["--image-pull-policy=Maybe"], "--image-pull-policy: found 'Maybe', expected one of Always"),
    ],
)
def test_a_bad_setting_is_refused_by_name(flags: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(["--namespace=ns", *flags], {})
    assert exit_.value.code == 2
    assert says in capsys.readouterr().err


def test_a_lease_needs_a_namespace(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([], {})
    assert "--namespace: is required outside a pod" in capsys.readouterr().err
    assert not parse(["--no-leader-elect"], {}).leader_elect


def test_json_logs_are_one_object_a_line_errors_included(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.configure("json", "info")
        try:
            raise ValueError("bad\nnews")
        except ValueError:
            logging.getLogger("berth_operator.test").exception("it %s", "failed")
        logging.getLogger("berth_operator.test").debug("not said")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("berth_operator").setLevel(logging.NOTSET)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    entry = json.loads(lines[0])
    assert (entry["level"], entry["message"]) == ("error", "it failed")
    assert "ValueError: bad\nnews" in entry["error"]


def _start(*flags: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "berth_operator", "--no-leader-elect", *flags]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)


def test_no_way_to_the_api_server_ends_it_with_one_line(tmp_path: Path) -> None:
    done = _start("--metrics-address=127.0.0.1:0", f"--kubeconfig={tmp_path}/none", home=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"berth-operator: no way to the API server from {tmp_path}/none: there is no such file; ")


def test_a_taken_port_ends_it_with_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = _start(f"--metrics-address=127.0.0.1:{port}", home=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"cannot listen on 127.0.0.1:{port} and " in line


def test_the_activators_connections_do_not_end_at_the_soft_limit_of_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        open_as_many_files_as_allowed()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
