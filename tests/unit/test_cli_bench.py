"""Does `berth bench` measure what a worker does?  Against a gRPC server whose pace is known."""

import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import grpc
import pytest
import yaml
from berth_operator.api import ServingProfile
from berth_operator.cli.app import app
from berth_operator.cli.bench import profile_body
from berth_operator.cli.generation import SERVICE, GenerationClient, GenerationError, Piece, discover
from berth_operator.cli.measure import DecodePoint, Measurements, Plan, measure, percentile
from berth_operator.cli.worker_facts import FactsError, parse_facts
from berth_worker.proto.berth.v1 import generation_pb2, generation_pb2_grpc
from click.testing import Result
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

STEP = 0.010
PREFILL = 2000.0
SHORT = ("--concurrency=1", "--prompt-tokens=20", "--output-tokens=4", "--requests=1")
METRICS = """\
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",model_name="m",num_gpu_blocks="4096"} 1
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m"} 0
"""


class PacedWorker(generation_pb2_grpc.GenerationServicer):
    """A step takes 10 ms and gives a token; what of a prompt is not cached prolongs its first, and a step of everybody
    else, by 0.5 ms a token.

    Remembers prompts as a prefix cache does.
    """

    def __init__(self) -> None:
        self.lone_step = STEP
        """Seconds a token while one stream runs alone."""
        self.prompts: list[tuple[int, ...]] = []
        self._running = 0
        self._read = 0.0
        """Seconds of all prompts so far."""
        self._lock = threading.Lock()
        self.slots = threading.Semaphore(4)

    def Generate(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        if request.model != "m":
            context.abort(grpc.StatusCode.NOT_FOUND, f"model: found {request.model!r}; served here: 'm'")
        prompt, wanted = tuple(request.token_ids.ids), request.sampling.max_tokens
        assert request.sampling.ignore_eos
        with self._lock:
            cached = max((len(p) for p in self.prompts if prompt[: len(p)] == p), default=0)
            self.prompts.append(prompt)
        with self.slots:
            with self._lock:
                self._running += 1
                read = (len(prompt) - cached) / PREFILL
                self._read += read
                known = self._read
            due = time.monotonic() + STEP + read
            for number in range(1, wanted + 1):
                time.sleep(max(0.0, due - time.monotonic()))
                due += (STEP if self._running > 1 else self.lone_step) + self._read - known
                known = self._read
                response = generation_pb2.GenerateResponse(token_ids=[7])
                if number == wanted:
                    response.finish_reason = generation_pb2.FINISH_REASON_LENGTH
                    response.usage.prompt_tokens = len(prompt)
                    response.usage.cached_prompt_tokens = cached
                    response.usage.completion_tokens = wanted
                yield response
            with self._lock:
                self._running -= 1


@pytest.fixture
def paced() -> Iterator[tuple[PacedWorker, str]]:
    worker = PacedWorker()
    server = grpc.server(ThreadPoolExecutor(max_workers=16))
    generation_pb2_grpc.add_GenerationServicer_to_server(worker, server)
    reflection.enable_server_reflection([SERVICE, reflection.SERVICE_NAME], server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield worker, f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def metrics() -> Iterator[str]:
    """Serves METRICS over HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(METRICS.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


Bench = Callable[..., Result]


@pytest.fixture
def bench(paced: tuple[PacedWorker, str], metrics: str) -> Bench:
    def run(*arguments: str, model: str = "m") -> Result:
        fixed = ["bench", paced[1], f"--model={model}", "--hardware-class=c", f"--http-address={metrics}"]
        return CliRunner().invoke(app, [*fixed, *arguments], catch_exceptions=False)

    return run


def test_figures_are_those_of_the_worker_to_within_the_clients_own_time(
    bench: Bench, paced: tuple[PacedWorker, str]
) -> None:
    result = bench("--concurrency=1,4", "--prompt-tokens=200", "--output-tokens=25", "--requests=4", "--machine=a test")
    assert result.exit_code == 0, result.stderr
    profile = ServingProfile.model_validate(yaml.safe_load(result.stdout), extra="forbid")
    one, four = profile.spec.points
    assert (one.concurrency, four.concurrency) == (1, 4)
    assert one.context_tokens == 200 + 12
    # Late timers and a busy machine only ever slow it down; 100 tokens/s a stream is the most there can be.
    assert 60 <= float(one.decode_tokens_per_second) <= 103
    assert 240 <= float(four.decode_tokens_per_second) <= 412
    assert one.inter_token_latency_p99 >= timedelta(milliseconds=10)
    # The step is not counted as prefill; both have the client's own time in them, which goes up and down.
    assert 1000 <= float(profile.spec.prefill_tokens_per_second) <= 1.2 * PREFILL
    assert profile.spec.kv_cache_tokens == 16 * 4096
    assert profile.spec.provenance.method == "Measured"
    assert "machine: a test" in profile.spec.provenance.source
    assert profile.spec.resources is None


def test_prefill_is_timed_on_prompts_that_no_cache_has_seen(bench: Bench, paced: tuple[PacedWorker, str]) -> None:
    for _ in range(2):
        assert bench("--quick").exit_code == 0
    seen = paced[0].prompts
    whole = [prompt for prompt in seen if len(prompt) > 1]  # of one token, a prompt is a step
    firsts = [prompt for number, prompt in enumerate(whole) if prompt not in whole[:number]]
    assert len(firsts) == 8  # four streams, two runs: nothing is used again
    assert all(len(prompt) == 128 for prompt in firsts)
    openings = {prompt[:16] for prompt in firsts}
    assert len(openings) == 8  # not even a block in common


def test_turns_are_timed_as_they_come_a_few_tokens_behind_many(bench: Bench, paced: tuple[PacedWorker, str]) -> None:
    result = bench("--concurrency=1,2", "--prompt-tokens=300", "--new-tokens=100", "--output-tokens=8", "--requests=2")
    assert result.exit_code == 0, result.stderr
    spec = ServingProfile.model_validate(yaml.safe_load(result.stdout), extra="forbid").spec
    assert 1000 <= float(spec.prefill_tokens_per_second) <= 1.2 * PREFILL
    assert [point.context_tokens for point in spec.points] == [300 + 100 + 4] * 2
    turns = [prompt for prompt in paced[0].prompts if len(prompt) == 400]
    assert len(set(turns)) == len(turns), "what is new in a turn is cached nowhere, while streams decode as well"
    assert {turn[:300] for turn in turns} == {prompt for prompt in paced[0].prompts if len(prompt) == 300}
    assert "prefill of 100 tokens behind 300, beside a stream" in spec.provenance.source


def test_where_no_turn_can_come_beside_a_stream_the_profile_says_that_prompts_were_whole(
    bench: Bench, paced: tuple[PacedWorker, str]
) -> None:
    paced[0].slots = threading.Semaphore(1)
    result = bench("--concurrency=1", "--prompt-tokens=200", "--new-tokens=20", "--output-tokens=4", "--requests=1")
    assert result.exit_code == 0, result.stderr
    spec = ServingProfile.model_validate(yaml.safe_load(result.stdout), extra="forbid").spec
    assert "prefill of 200 tokens beyond" in spec.provenance.source
    assert "beside a stream" not in spec.provenance.source
    assert "prefill is of whole prompts" in " ".join(result.stderr.split())


def test_what_a_replica_takes_of_its_node_stands_in_the_profile(bench: Bench) -> None:
    result = bench(*SHORT, "--cpu=2", "--memory=3Gi", "--replicas-per-node=7", "--name=mine", "-o", "json")
    body = json.loads(result.stdout)
    assert body["metadata"]["name"] == "mine"
    assert body["spec"]["resources"] == {"cpu": "2", "memory": "3Gi"}
    assert body["spec"]["replicasPerNode"] == 7


def test_streams_beyond_what_the_worker_runs_at_once_are_left_out_and_named(bench: Bench) -> None:
    result = bench("--concurrency=1,8", "--prompt-tokens=40", "--output-tokens=12", "--requests=1")
    assert result.exit_code == 0
    profile = yaml.safe_load(result.stdout)
    assert [point["concurrency"] for point in profile["spec"]["points"]] == [1]
    assert "left out: concurrency 8" in result.stderr


async def test_points_that_contradict_each_other_are_measured_on(paced: tuple[PacedWorker, str]) -> None:
    asked: list[list[int]] = []

    def contradicts(points: Sequence[DecodePoint]) -> bool:
        asked.append([point.tokens for point in points])
        return len(asked) < 2

    async with GenerationClient(paced[1], discover(paced[1])) as client:
        found = await measure(client, Plan("m", (1, 2), 20, 4, 1), lambda _: None, contradicts)
    (first_one, _), (one, two) = asked
    assert one == 2 * first_one == 2 * 3 * 3  # three rounds of three gaps, twice
    assert [point.tokens for point in found.points] == [one, two]


class _Stepping:
    """A client of a worker that gives every stream a token each 10 ms; streams begin a step apart, and of a step the
    first one's token comes first, or, if they take `turns`, in every other step last."""

    def __init__(self, streams: int, *, turns: bool = False) -> None:
        self._streams, self._turns = streams, turns
        self._begun = 0

    async def complete_tokens(self, prompt: Sequence[int], *, model: str, output_tokens: int) -> AsyncIterator[Piece]:
        number = self._begun % self._streams
        self._begun += 1
        for step in range(number, number + output_tokens):
            place = self._streams - 1 - number if self._turns and step % 2 else number
            yield Piece(at=STEP * (1 + step) + 0.0002 * place, text="", tokens=1, cached_prompt_tokens=0)


async def test_decoding_is_as_fast_as_its_steps_however_streams_begin_and_end() -> None:
    client = cast("GenerationClient", _Stepping(4))
    found = await measure(client, Plan("m", (4,), 20, 16, 1), lambda _: None)
    assert found.points[0].tokens_per_second == pytest.approx(4 / STEP)


async def test_between_tokens_are_steps_whoever_of_the_streams_comes_first_in_each() -> None:
    client = cast("GenerationClient", _Stepping(4, turns=True))
    found = await measure(client, Plan("m", (4,), 20, 16, 1), lambda _: None)
    assert found.points[0].gap_p50 == pytest.approx(STEP)
    assert found.points[0].gap_p99 == pytest.approx(STEP)


def test_a_profile_that_plan_would_refuse_is_said_to_be_one(bench: Bench, paced: tuple[PacedWorker, str]) -> None:
    paced[0].lone_step = 3 * STEP
    result = bench("--concurrency=1,3", "--prompt-tokens=20", "--output-tokens=6", "--requests=1")
    assert result.exit_code == 0
    assert "spec.points[1].decodeTokensPerSecond: found" in result.stderr
    assert "`berth plan` will refuse this profile" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--concurrency=one"], 2, "--concurrency: found 'one': write numbers from 1 to 1024"),
        (["--concurrency=0,1"], 2, "--concurrency: found '0,1'"),
        (["--concurrency=64", "--prompt-tokens=2000"], 2, "64 streams of 2064 tokens need 132096 tokens of KV cache"),
        ([*SHORT, "--replicas-per-node=2"], 2, "--replicas-per-node: found 2 without --cpu"),
        ([*SHORT, "--cpu=two"], 2, "no valid ServingProfile comes of this: spec.resources.cpu"),
    ],
)
def test_arguments_that_cannot_work_are_exit_code_2(
    bench: Bench, arguments: list[str], code: int, message: str
) -> None:
    result = bench(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["localhost:1", "--cpu=two"], "no valid ServingProfile comes of this: spec.resources.cpu: found"),
        (["localhost:1", "--memory=4"], "--memory: found '4', which is 4 bytes: write a unit, such as 4Gi"),
        (["localhost:1", "--name=Mine"], "no valid ServingProfile comes of this: metadata.name: found 'Mine'"),
        (["localhost:1", "--hardware-class=G_4"], "no valid ServingProfile comes of this: spec.hardwareClass: found"),
        (["localhost"], "ADDRESS: found 'localhost': write the worker's gRPC host:port"),
        (["http://localhost:1"], "ADDRESS: found 'http://localhost:1': write the worker's gRPC host:port"),
    ],
)
def test_what_could_not_be_applied_is_refused_before_anything_is_measured(arguments: list[str], message: str) -> None:
    """Nobody is at the address: whoever asks there first, fails with exit code 1."""
    result = CliRunner().invoke(app, ["bench", "--model=m", "--hardware-class=c", *arguments], catch_exceptions=False)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_model_that_the_worker_does_not_serve_is_exit_code_2_in_its_own_words(bench: Bench) -> None:
    result = bench(*SHORT, model="other")
    assert result.exit_code == 2
    assert "model: found 'other'; served here: 'm'" in result.stderr


def test_nobody_at_the_address_is_exit_code_1(metrics: str) -> None:
    arguments = ["bench", "127.0.0.1:1", "--model=m", "--hardware-class=c", f"--http-address={metrics}", *SHORT]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 1
    assert "no gRPC server answers at 127.0.0.1:1" in result.stderr


def test_a_server_that_is_no_worker_is_named() -> None:
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    reflection.enable_server_reflection([reflection.SERVICE_NAME], server, pool=DescriptorPool())
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(GenerationError, match=r"does not serve berth\.v1\.Generation"):
            discover(f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()


def test_a_worker_without_metrics_needs_the_cache_size_to_be_said(paced: tuple[PacedWorker, str]) -> None:
    fixed = ["bench", paced[1], "--model=m", "--hardware-class=c", *SHORT]
    refused = CliRunner().invoke(app, [*fixed, "--http-address=127.0.0.1:1"], catch_exceptions=False)
    assert refused.exit_code == 1
    assert "--http-address, or give --kv-cache-tokens" in refused.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no vllm:cache_config_info"),
        ('vllm:cache_config_info{block_size="16"} 1\n', "lacks block_size x num_gpu_blocks"),
        ("<html>", "is not Prometheus text"),
    ],
)
def test_metrics_that_say_nothing_of_the_cache_are_refused(text: str, message: str) -> None:
    with pytest.raises(FactsError, match=message):
        parse_facts(text, "http://w/metrics")


RATES = st.floats(0.2, 1e6)
SECONDS = st.floats(1e-5, 100)


@given(rate=RATES, gap=SECONDS, prefill=RATES)
def test_a_profile_never_claims_more_than_was_measured(rate: float, gap: float, prefill: float) -> None:
    plan = Plan("m", (1,), 100, 10, 1)
    found = Measurements(0.1, 0.1, prefill, False, (DecodePoint(1, 105, rate, gap, gap, 10),), ())
    body = profile_body(
        plan,
        found,
        name=None,
        hardware_class="c",
        quantization="Int8",
        kv_cache_tokens=1000,
        resources={},
        replicas_per_node=None,
        source="a test",
        date="2026-11-21",
    )
    spec = ServingProfile.model_validate(body, extra="forbid").spec
    assert float(spec.points[0].decode_tokens_per_second) <= rate
    assert spec.points[0].inter_token_latency_p99.total_seconds() >= gap - 1e-9
    assert float(spec.prefill_tokens_per_second) <= prefill
    assert body["metadata"]["name"] == "m-c-int8"


@given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=50), percent=st.floats(1, 100))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(values: list[float], percent: float) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values) - 1e-6
    below = [value for value in values if value < found]
    assert len(below) * 100 < percent * len(values) + 1e-6


def test_every_stream_of_a_round_is_counted_once() -> None:
    plan = Plan("m", (1, 3), 100, 10, 4)
    assert [plan.rounds(c) for c in plan.concurrency] == [4, 3]
    assert plan.total_requests == 2 * 3 + 4 * 1 + 3 * 3
    assert replace(plan, new_tokens=20).total_requests == 2 * 3 + 6 * 3 + 4 * 1 + 3 * 3
