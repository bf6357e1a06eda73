"""Does `berth bench` turn the real worker, serving the real model, into a profile that a plan uses?"""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from berth_operator.api import ServingProfile
from demo.programs import Program, start
from devcluster import wait_for
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
MODEL = "smollm2-135m-instruct"
_READY = re.compile(r"berth-worker ready grpc=(\S+) http=(\S+) model=(\S+)")


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """gRPC and HTTP address of a worker process on free loopback ports."""
    folder = tmp_path_factory.mktemp("worker")
    limits = ("--max-concurrency=4", "--kv-cache-tokens=8192")
    command = [str(BIN / "berth-worker"), "--host=127.0.0.1", "--grpc-port=0", "--http-port=0", *limits]
    program: Program = start("worker", command, folder / "worker.log", {"PATH": "/usr/bin:/bin", "HOME": str(folder)})
    try:
        found = wait_for("the worker is ready", lambda: _READY.search(program.log.read_text()), 60, [program])
        yield found[1], found[2]
    finally:
        assert program.terminate(timeout_s=30) == 0


def berth(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "berth"), *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)


def test_a_measured_worker_is_what_the_plan_counts_with(worker: tuple[str, str]) -> None:
    grpc_address, http_address = worker
    done = berth(
        *("bench", grpc_address, f"--model={MODEL}", "--hardware-class=graviton4", f"--http-address={http_address}"),
        *("--concurrency=1,2", "--prompt-tokens=64", "--output-tokens=24", "--requests=2", "--machine=a test machine"),
    )
    assert done.returncode == 0, done.stderr
    profile = ServingProfile.model_validate(yaml.safe_load(done.stdout), extra="forbid").spec
    assert [point.concurrency for point in profile.points] == [1, 2]
    assert profile.kv_cache_tokens == 8192
    assert "machine: a test machine" in profile.provenance.source
    # The least and most that any machine could do with 135M parameters: below a token a second it hangs, and above a
    # million a second it was not the model.
    assert all(1 <= float(point.decode_tokens_per_second) <= 1e6 for point in profile.points)
    planned = berth("plan", "-f", "examples", "-f", "-", "-o", "json", text=done.stdout)
    assert planned.returncode in (0, 1), planned.stderr
    (pool,) = (pool for pool in json.loads(planned.stdout)["pools"] if pool["name"] == "assistant")
    estimated = {(c["hardwareClass"], c["estimated"]) for c in pool["candidates"]}
    assert estimated == {("graviton4", False), ("l4", True), ("h100", True)}


def hits(http_address: str) -> float:
    """Prompt tokens that the worker has found in its prefix cache so far."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{http_address}/metrics") as answer:
        text = answer.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "vllm:prefix_cache_hits_total"
    )


def test_prefill_is_computed_and_not_found_in_the_cache(worker: tuple[str, str]) -> None:
    """Each run sends one prompt once, and then in three rounds of decoding: the worker finds it in those alone."""
    grpc_address, http_address = worker
    for _ in range(2):
        before = hits(http_address)
        done = berth(
            *("bench", grpc_address, f"--model={MODEL}", "--hardware-class=c", f"--http-address={http_address}"),
            *("--concurrency=1", "--prompt-tokens=256", "--output-tokens=8", "--requests=1"),
        )
        assert done.returncode == 0, done.stderr
        assert 2 * 256 < hits(http_address) - before < 3 * 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=other"], "NOT_FOUND"),
        (
            [f"--model={MODEL}", "--concurrency=8", "--prompt-tokens=2000"],
            "tokens of KV cache, and the worker has 8192",
        ),
    ],
)
def test_what_the_worker_cannot_do_is_exit_code_2(worker: tuple[str, str], arguments: list[str], message: str) -> None:
    grpc_address, http_address = worker
    done = berth("bench", grpc_address, "--hardware-class=c", f"--http-address={http_address}", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not done.stdout
