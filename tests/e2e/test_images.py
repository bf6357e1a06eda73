"""Do the Dockerfiles give images that run?  Built for real, on a base made from Debian's packages, and started.

No registry is needed.  Between runs the user's cache keeps the two images, so that only what changed is built again:
5.4 GB, nearly all of it torch with CUDA, the only torch on PyPI.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from berth_worker.proto.berth.v1 import generation_pb2 as pb
from berth_worker.proto.berth.v1 import generation_pb2_grpc as pb_grpc
from devcluster import wait_for
from devcluster.processes import Process, kill

ROOT = Path(__file__).parents[2]
TAG = "test"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "berth" / "images"
MISSING = [tool for tool in ("buildah", "debootstrap") if not shutil.which(tool)]

pytestmark = [
    pytest.mark.images,
    pytest.mark.timeout(1800),  # torch with CUDA is 2 GB to load and 5 GB to unpack, the first time
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap needs root"),
]


@dataclass(frozen=True)
class Image:
    """A built image and a container made from it."""

    container: str
    environment: dict[str, str]

    def config(self) -> dict[str, Any]:
        """What the image says of itself, as container runtimes read it."""
        inspected = json.loads(_run("buildah", "inspect", self.container, environment=self.environment))
        config: dict[str, Any] = inspected["OCIv1"]["config"]
        return config

    def command(self, *arguments: str) -> list[str]:
        """The image's entry point with these arguments, in the container, as the image's user."""
        return ["buildah", "run", self.container, "--", *self.config()["Entrypoint"], *arguments]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run something else in the container."""
        return subprocess.run(
            ["buildah", "run", self.container, "--", *command],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )


def _run(*command: str, environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """A store of images of our own, apart from the user's; what no image needs any more goes from it in the end."""
    CACHE.mkdir(parents=True, exist_ok=True)
    configuration = CACHE / "storage.conf"
    configuration.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{CACHE / "store"}"\nrunroot = "{CACHE / "run"}"\n'
    )
    environment = {
        **os.environ,
        "CONTAINERS_STORAGE_CONF": str(configuration),
        "BUILDAH_ISOLATION": "chroot",
        "BASE": "debootstrap",
        "TAG": TAG,
    }
    yield environment
    _run("buildah", "rmi", "--prune", environment=environment)


def _image(name: str, environment: dict[str, str]) -> Iterator[Image]:
    _run("tools/build-images", name, environment=environment)
    container = _run("buildah", "from", "--pull-never", f"localhost/berth-{name}:{TAG}", environment=environment)
    try:
        yield Image(container.strip(), environment)
    finally:
        _run("buildah", "rm", container.strip(), environment=environment)


@pytest.fixture(scope="module")
def operator(environment: dict[str, str]) -> Iterator[Image]:
    yield from _image("operator", environment)


@pytest.fixture(scope="module")
def worker(environment: dict[str, str]) -> Iterator[Image]:
    yield from _image("worker", environment)


@pytest.fixture(params=["operator", "worker"])
def image(request: pytest.FixtureRequest) -> Image:
    chosen: Image = request.getfixturevalue(request.param)
    return chosen


def test_image_runs_as_a_user_that_kubernetes_can_see_is_not_root(image: Image) -> None:
    assert image.config()["User"] == "65532:65532"
    assert image.run("id", "-u").stdout.strip() == "65532"


def test_image_holds_nothing_to_build_with_and_nothing_of_the_build(image: Image) -> None:
    for tool in ("gcc", "g++", "cmake", "make", "pip"):
        assert image.run("sh", "-c", f"command -v {tool}").returncode != 0, tool
    assert image.run("sh", "-c", "cat /etc/pip.conf").returncode != 0
    assert "PIP_CERT" not in " ".join(image.config()["Env"])


def test_image_can_change_nothing_of_itself(image: Image) -> None:
    found = image.run("find", "/opt/berth", "/usr", "/etc", "-writable", "-not", "-type", "l")
    assert found.stdout == ""


def test_operator_says_how_it_is_used_and_in_one_line_what_is_wrong(operator: Image) -> None:
    helped = subprocess.run(
        operator.command("--help"), env=operator.environment, capture_output=True, text=True, check=False
    )
    assert helped.returncode == 0
    assert "--watch-namespaces" in helped.stdout
    refused = subprocess.run(
        operator.command("--namespace=default", "--interval=soon"),
        env=operator.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "--interval: " in refused.stderr
    assert refused.returncode != 0


def test_operator_image_has_the_command_line_and_no_torch(operator: Image) -> None:
    assert "explain" in operator.run("berth", "--help").stdout
    assert "No module named 'torch'" in operator.run("python3", "-c", "import torch").stderr


def test_worker_serves_its_embedded_model_and_leaves_on_sigterm(worker: Image, tmp_path: Path) -> None:
    command = worker.command("--host=127.0.0.1", "--grpc-port=0", "--http-port=0", "--drain-lag-seconds=0")
    process = Process("worker", command, tmp_path / "log", worker.environment)
    try:
        said = re.compile(r"ready grpc=(\S+) http=(\S+) model=smollm2-135m-instruct")
        found = wait_for("the worker is ready", lambda: said.search(process.log.read_text()), 120, [process])
        assert _get(f"http://{found[2]}/healthz") == "ok"
        assert "vllm:num_requests_running" in _get(f"http://{found[2]}/metrics")
        with grpc.insecure_channel(found[1]) as channel:
            request = pb.GenerateRequest(text="Once upon a time", sampling=pb.SamplingParams(max_tokens=4))
            assert list(pb_grpc.GenerationStub(channel).Generate(request, timeout=60))
        os.kill(_innermost(process.pid), signal.SIGTERM)
        wait_for("the worker has left", lambda: not process.running)
        assert "left cleanly" in process.log_tail()
    finally:
        kill([process])


def _get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as answer:
        text: str = answer.read().decode().strip()
    return text


def _innermost(pid: int) -> int:
    """The last in a chain of only children: the process that `buildah run` runs."""
    while children := [
        child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]:
        (pid,) = map(int, children)
    return pid
