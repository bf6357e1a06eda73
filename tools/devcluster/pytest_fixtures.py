"""Which fixtures does a test that needs a real control plane ask for?

``control_plane``: one for the whole session. ``namespace``: a fresh one in it for each test. A pytest plugin, found by
its entry point wherever berth-devcluster is installed.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from devcluster import binaries
from devcluster.controlplane import ControlPlane
from devcluster.recipes import ToolError


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Build what is missing before the first test: minutes that belong to no test's time limit, on the terminal."""
    if session.config.option.collectonly or not any("control_plane" in _fixtures(item) for item in session.items):
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            binaries.ensure(binaries.CONTROL_PLANE)
        except ToolError as error:
            raise pytest.UsageError(str(error)) from None


def _fixtures(item: pytest.Item) -> tuple[str, ...]:
    return tuple(getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """A real control plane that the tests of one session share."""
    with ControlPlane() as cluster:
        yield cluster


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A fresh namespace of ``control_plane``, deleted after the test (without waiting for the deletion)."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    control_plane.kubectl("create", "namespace", name)
    control_plane.wait_for(
        f"ServiceAccount {name}/default exists",
        lambda: control_plane.kubectl("get", "serviceaccount", "default", f"--namespace={name}", "--ignore-not-found"),
    )
    yield name
    control_plane.kubectl("delete", "namespace", name, "--wait=false")
