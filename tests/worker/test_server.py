"""Do both faces say what the engine says, refuse what cannot work by name, and go on serving?"""

from __future__ import annotations

import asyncio
import gc
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from berth_worker.engine.request import SamplingParams
from berth_worker.proto import generate as proto_generate
from berth_worker.proto.berth.v1 import generation_pb2 as pb
from berth_worker.proto.berth.v1 import generation_pb2_grpc as pb_grpc
from berth_worker.server.grpc_face import SERVICE
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from berth_worker.engine.engine import Engine

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):",
    "Water boils at",
    "The three laws of motion are",
    "Dear Sir or Madam,",
    "1, 2, 3, 4,",
    "The quick brown fox",
]
GREEDY: dict[str, Any] = {"max_tokens": 16, "temperature": 0, "ignore_eos": True}
LONG: dict[str, Any] = {"temperature": 0, "ignore_eos": True}

# The design's contract: names as they stand on the wire, labels, and the type that Prometheus sees.
CONTRACT = {
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:prompt_tokens_total": "counter",
    "vllm:generation_tokens_total": "counter",
    "vllm:request_success_total": "counter",
    "vllm:prefix_cache_queries_total": "counter",
    "vllm:prefix_cache_hits_total": "counter",
    "vllm:num_preemptions_total": "counter",
    "vllm:spec_decode_num_draft_tokens_total": "counter",
    "vllm:spec_decode_num_accepted_tokens_total": "counter",
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:request_queue_time_seconds": "histogram",
    "vllm:request_prefill_time_seconds": "histogram",
    "vllm:request_decode_time_seconds": "histogram",
    "vllm:iteration_tokens_total": "histogram",
    "vllm:cache_config_info": "gauge",
    "berth:sessions_retained": "gauge",
    "berth:kv_blocks_retained": "gauge",
    "berth:requests_refused_total": "counter",
}


async def generate(stub: Any, request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
    return [response async for response in stub.Generate(request)]


def text_of(responses: list[pb.GenerateResponse]) -> str:
    return "".join(response.text for response in responses)


def tokens_of(responses: list[pb.GenerateResponse]) -> list[int]:
    return [token for response in responses for token in response.token_ids]


async def refusal(stub: Any, request: pb.GenerateRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(stub, request)
    return caught.value.code(), str(caught.value.details())


async def eventually(condition: Callable[[], Any], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is awaited happens in the engine's thread
            await asyncio.sleep(0.002)


async def test_grpc_says_what_the_engine_says_for_eight_prompts_at_once_and_one_by_one(
    serving: Any, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine()
    params = SamplingParams(**GREEDY)
    direct = [await asyncio.to_thread(engine.generate, engine.tokenizer.encode(p), params) for p in PROMPTS]
    requests = [pb.GenerateRequest(text=prompt, sampling=GREEDY) for prompt in PROMPTS]
    async with serving(max_running=8) as running:
        at_once = await asyncio.gather(*(generate(running.stub, request) for request in requests))
    async with serving(max_running=8) as running:
        one_by_one = [await generate(running.stub, request) for request in requests]
    for completion, together, alone in zip(direct, at_once, one_by_one, strict=True):
        assert text_of(together) == text_of(alone) == completion.text
        assert tokens_of(together) == tokens_of(alone) == list(completion.token_ids)


async def test_a_stream_arrives_in_pieces_and_ends_with_reason_usage_and_timings(serving: Any) -> None:
    async with serving() as running:
        request = pb.GenerateRequest(text=PROMPTS[0], sampling=GREEDY, request_id="turn-1", session_id="s", priority=3)
        pieces = await generate(running.stub, request)
        assert len(pieces) > 4
        assert {piece.request_id for piece in pieces} == {"turn-1"}
        *first, last = pieces
        assert all(piece.finish_reason == pb.FINISH_REASON_UNSPECIFIED for piece in first)
        assert not any(piece.HasField("usage") or piece.HasField("timings") for piece in first)
        assert last.finish_reason == pb.FINISH_REASON_LENGTH
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (5, 16)
        assert last.timings.prefill_seconds > 0
        assert last.timings.decode_seconds > 0
        unnamed = await generate(running.stub, pb.GenerateRequest(text="x", sampling=GREEDY))
        assert unnamed[0].request_id


async def test_text_chat_and_tokens_are_three_ways_to_one_prompt(serving: Any) -> None:
    chat = pb.ChatMessages(messages=[pb.ChatMessage(role="user", content="What is the capital of France?")])
    async with serving() as running:
        tokenizer = running.engine.tokenizer
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}])
        ids = pb.TokenIds(ids=tokenizer.encode(rendered, add_special_tokens=False))
        answers = [
            await generate(running.stub, pb.GenerateRequest(sampling={"temperature": 0, "max_tokens": 40}, **prompt))
            for prompt in ({"chat": chat}, {"token_ids": ids}, {"text": rendered})
        ]
        assert "Paris" in text_of(answers[0])
        assert text_of(answers[0]) == text_of(answers[1]) == text_of(answers[2])
        assert answers[0][-1].finish_reason == pb.FINISH_REASON_STOP
        assert answers[1][-1].usage.cached_prompt_tokens > 0


async def test_an_output_is_what_it_has_to_be_and_ends(serving: Any) -> None:
    schema = (
        '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false}'
    )
    async with serving() as running:
        for output, pattern in (
            ({"json_schema": schema}, r'\{"n": [12]\}'),
            ({"regex": "[a-c]{3}-x"}, "[a-c]{3}-x"),
            ({"choices": {"texts": ["yes", "no"]}}, "yes|no"),
        ):
            asked = pb.GenerateRequest(text="Say it: ", output=output, sampling={"temperature": 0})
            responses = await generate(running.stub, asked)
            assert re.fullmatch(pattern, text_of(responses))
            assert responses[-1].finish_reason == pb.FINISH_REASON_STOP


async def test_every_sampling_parameter_reaches_the_sampler(serving: Any) -> None:
    async with serving() as running:
        encode = running.engine.tokenizer.encode

        async def ask(**sampling: Any) -> list[pb.GenerateResponse]:
            sampling = {"max_tokens": 6, "temperature": 0} | sampling
            return await generate(running.stub, pb.GenerateRequest(text=PROMPTS[6], sampling=sampling))

        plain = tokens_of(await ask(logprobs=3))
        biased = await ask(logit_bias={encode("!")[0]: 100.0})
        assert tokens_of(biased) == encode("!") * 6
        varied = tokens_of(await ask(presence_penalty=2.0, frequency_penalty=2.0, repetition_penalty=2.0))
        assert len(set(varied)) > len(set(plain))
        assert tokens_of(await ask(stop_token_ids=[plain[2]])) == plain[:3]
        assert len(tokens_of(await ask(stop_token_ids=[plain[2]], min_tokens=5))) >= 5
        assert tokens_of(await ask(temperature=1.5, min_p=1.0, seed=1)) == plain
        places = [place for response in await ask(logprobs=3) for place in response.logprobs]
        assert [place.chosen.token_id for place in places] == plain
        assert all(place.chosen == place.top[0] and len(place.top) == 3 for place in places)
        assert "".join(place.chosen.text for place in places) == running.engine.tokenizer.decode(plain)
        assert all(-20 < place.chosen.logprob <= 0 for place in places)
        assert not any(response.logprobs for response in biased)


@pytest.mark.parametrize(
    ("request_fields", "message"),
    [
        ({}, "prompt: nothing to continue; set one of text, chat and token_ids"),
        ({"text": ""}, "text: empty; at least one character"),
        ({"chat": {}}, "chat: no messages; at least one"),
        ({"chat": {"messages": [{"content": "x"}]}}, "chat.messages[0].role: empty; one of"),
        ({"token_ids": {}}, "token_ids: empty; at least one token"),
        ({"token_ids": {"ids": [1, 50000]}}, "token_ids.ids[1]: token 50000 is out of range; 0 to 49151"),
        ({"token_ids": {"ids": [1] * 512}}, "token_ids: 512 tokens are too many; at most 511"),
        ({"text": "one two " * 3000}, "text: 6001 tokens are too many; at most 511"),
        ({"text": "x", "sampling": {"max_tokens": 0}}, "sampling.max_tokens: 0 is out of range; at least 1"),
        ({"text": "x", "sampling": {"max_tokens": 512}}, "sampling.max_tokens: 512 is out of range; 1 to 511 after"),
        ({"text": "x", "sampling": {"temperature": -1}}, "sampling.temperature: -1 is out of range; 0 (greedy) to 2"),
        ({"text": "x", "sampling": {"temperature": float("nan")}}, "sampling.temperature: nan is out of range"),
        ({"text": "x", "sampling": {"top_p": 0}}, "sampling.top_p: 0 is out of range; above 0, to 1"),
        ({"text": "x", "sampling": {"top_p": 1.5}}, "sampling.top_p: 1.5 is out of range"),
        ({"text": "x", "sampling": {"min_p": 2}}, "sampling.min_p: 2 is out of range; 0 (off) to 1"),
        ({"text": "x", "sampling": {"repetition_penalty": 0}}, "sampling.repetition_penalty: 0 is out of range; above"),
        ({"text": "x", "sampling": {"logprobs": 21}}, "sampling.logprobs: 21 is out of range; 0 (the token's own"),
        ({"text": "x", "sampling": {"logit_bias": {7: 101}}}, "sampling.logit_bias[7]: 101 is out of range; -100 to"),
        (
            {"text": "x", "sampling": {"logit_bias": {50000: 1}}},
            "sampling.logit_bias[50000]: no such token; 0 to 49151",
        ),
        ({"text": "x", "sampling": {"stop_token_ids": [50000]}}, "sampling.stop_token_ids[50000]: no such token"),
        (
            {"text": "x", "sampling": {"min_tokens": 3, "stop_token_ids": range(49152)}},
            "sampling.stop_token_ids: all 49152 tokens, and 3 others first (min_tokens): none is left",
        ),
        (
            {"text": "x", "sampling": {"min_tokens": 5, "max_tokens": 4}},
            "sampling.min_tokens: 5 is out of range; 0 to max_tokens (4)",
        ),
        ({"text": "x", "sampling": {"stop": ["ok", ""]}}, "sampling.stop[1]: 0 characters; 1 to 256"),
        ({"text": "x", "sampling": {"stop": ["s"] * 17}}, "sampling.stop: 17 strings; at most 16"),
        ({"text": "a" * 5_000_000}, "text: more than 1022 tokens are too many; at most 511 are right"),
        ({"text": "x", "session_id": "s" * 257}, "session_id: 257 characters; at most 256"),
        ({"text": "x", "request_id": "r" * 257}, "request_id: 257 characters; at most 256"),
        ({"text": "x", "output": {}}, "output: nothing to keep to; set one of json_schema, regex and choices"),
        ({"text": "x", "output": {"json_schema": "{"}}, 'output.json_schema: found "{"; a JSON schema is right'),
        (
            {"text": "x", "output": {"json_schema": '{"uniqueItems": true}'}},
            "output.json_schema: this worker cannot keep an answer to it: failed to compile JSON schema: Unimplemented",
        ),
        ({"text": "x", "output": {"regex": "(a"}}, "output.regex: this worker cannot keep an answer to it: invalid"),
        ({"text": "x", "output": {"regex": ""}}, 'output.regex: found ""; a regular expression is right'),
        ({"text": "x", "output": {"choices": {"texts": ["a", ""]}}}, 'output.choices.texts: found ["a", ""]; texts'),
    ],
)
def test_a_field_that_cannot_work_is_an_invalid_argument_that_names_it(
    request_fields: dict[str, Any], message: str, refusals: Callable[[pb.GenerateRequest], tuple[Any, str]]
) -> None:
    code, details = refusals(pb.GenerateRequest(**request_fields))
    assert (code, details[: len(message)]) == (grpc.StatusCode.INVALID_ARGUMENT, message)


@pytest.fixture
def refusals(serving: Any) -> Callable[[pb.GenerateRequest], tuple[Any, str]]:
    """Sends a request that is refused, then one that works to the same worker."""

    def send(request: pb.GenerateRequest) -> tuple[Any, str]:
        async def both() -> tuple[Any, str]:
            async with serving() as running:
                refused = await refusal(running.stub, request)
                works = await generate(running.stub, pb.GenerateRequest(text="x", sampling={"max_tokens": 1}))
                assert works[-1].finish_reason == pb.FINISH_REASON_LENGTH
                return refused

        return asyncio.run(both())

    return send


async def test_another_models_name_is_not_found(serving: Any) -> None:
    async with serving() as running:
        code, details = await refusal(running.stub, pb.GenerateRequest(text="x", model="gpt-2"))
        assert (code, details) == (
            grpc.StatusCode.NOT_FOUND,
            "model: found 'gpt-2'; this worker serves 'smollm2-135m-instruct'",
        )


async def test_a_full_queue_is_exhausted_at_once_and_serves_again_when_it_has_room(serving: Any, gated: Any) -> None:
    async with serving(max_running=1, max_waiting=1) as running:
        gated.close()
        request = pb.GenerateRequest(text="x", sampling=GREEDY)
        inside = [asyncio.create_task(generate(running.stub, request)) for _ in range(2)]
        await eventually(lambda: running.engine.stats().running + running.engine.stats().waiting == 2)
        code, details = await refusal(running.stub, request)
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "at most 1 run and 1 wait" in details
        assert running.engine.stats().refused == 1
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await generate(running.stub, request)
        metadata = dict(refused.value.trailing_metadata() or ())
        assert 500 <= int(metadata["grpc-retry-pushback-ms"]) <= 60_000  # type: ignore[arg-type]  # of all strings
        gated.gate.set()
        assert [text_of(responses) for responses in await asyncio.gather(*inside)]
        assert tokens_of(await generate(running.stub, request))


async def test_a_client_that_goes_away_frees_its_slot_and_its_blocks(serving: Any) -> None:
    async with serving(max_running=1, max_waiting=0, max_context_tokens=4096) as running:
        for how in ("cancel", "deadline", "close"):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{running.server.port}") as channel:
                call = pb_grpc.GenerationStub(channel).Generate(
                    pb.GenerateRequest(text="Once upon a time", sampling=LONG), timeout=2 if how == "deadline" else 60
                )
                await call.read()
                assert running.engine.stats().running == 1
                if how == "cancel":
                    call.cancel()
                elif how == "deadline":
                    with pytest.raises(grpc.aio.AioRpcError, match="Deadline Exceeded"):
                        while await call.read():
                            pass
            await eventually(lambda: running.engine.idle)
            assert running.engine.stats().blocks_held == 0
        assert tokens_of(await generate(running.stub, pb.GenerateRequest(text="x", sampling=GREEDY)))


async def test_before_the_model_is_there_the_worker_is_alive_and_not_ready(serving: Any) -> None:
    async with serving(load=False) as running:
        assert (await running.http.get("/healthz")).status_code == 200
        ready = await running.http.get("/readyz")
        assert (ready.status_code, ready.text) == (503, "loading the model\n")
        assert (await running.http.get("/metrics")).status_code == 200
        assert await health(running, SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
        code, details = await refusal(running.stub, pb.GenerateRequest(text="x"))
        assert (code, details) == (
            grpc.StatusCode.UNAVAILABLE,
            "the model is not loaded yet; ask another worker",
        )


async def test_http_holds_no_piece_of_an_answer_back(serving: Any) -> None:
    async with serving() as running:
        await running.http.get("/healthz")
        transports = [found for found in gc.get_objects() if issubclass(type(found), asyncio.Transport)]
        sockets = [transport.get_extra_info("socket") for transport in transports]
        port = running.http_server.port
        (connection,) = [s for s in sockets if s is not None and s.fileno() >= 0 and s.getsockname()[1] == port]
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def health(running: Any, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(running.channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=service))).status)


async def test_health_is_serving_once_the_model_is_there(serving: Any) -> None:
    async with serving() as running:
        assert (await running.http.get("/readyz")).status_code == 200
        for service in ("", SERVICE):
            assert await health(running, service) == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(running, "no.such.Service")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_failed_engine_is_unhealthy_on_both_faces(serving: Any, gated: Any) -> None:
    async with serving() as running:
        gated.fault = lambda _: 1 / 0
        code, details = await refusal(running.stub, pb.GenerateRequest(text="x"))
        assert (code, details) == (grpc.StatusCode.INTERNAL, "engine failed: ZeroDivisionError: division by zero")
        for path in ("/healthz", "/readyz"):
            answer = await running.http.get(path)
            assert (answer.status_code, "ZeroDivisionError" in answer.text) == (503, True)
        await running.server.show_health()
        assert await health(running, SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await refusal(running.stub, pb.GenerateRequest(text="x")))[0] == grpc.StatusCode.UNAVAILABLE


async def test_a_stuck_engine_is_unhealthy_and_its_metrics_still_answer(serving: Any, gated: Any) -> None:
    async with serving(stall_seconds=0.05) as running:
        gated.close()
        stuck = asyncio.create_task(generate(running.stub, pb.GenerateRequest(text="x", sampling=GREEDY)))
        await eventually(running.worker.unhealthy)
        assert "engine stuck" in (await running.http.get("/healthz")).text
        assert samples((await running.http.get("/metrics")).text)["vllm:num_requests_running"] == 1
        gated.gate.set()
        await stuck
        assert (await running.http.get("/healthz")).status_code == 200


async def test_reflection_lists_the_services_and_describes_generate(serving: Any) -> None:
    async with serving() as running:
        stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
        questions = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
        ]
        listed, described = [answer async for answer in stub.ServerReflectionInfo(iter(questions))]
        names = {service.name for service in listed.list_services_response.service}
        assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
        file = FileDescriptorProto.FromString(described.file_descriptor_response.file_descriptor_proto[0])
        assert (file.name, file.service[0].method[0].server_streaming) == ("berth/v1/generation.proto", True)


def samples(text: str) -> dict[str, float]:
    """Values by sample name, summed over labels."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values


async def test_metrics_have_the_contracts_names_and_types_and_no_unbounded_label(serving: Any) -> None:
    async with serving() as running:
        answer = await running.http.get("/metrics")
        families = {
            family.name + ("_total" if family.type == "counter" else ""): family
            for family in text_string_to_metric_families(answer.text)
        }
        kinds = {name: family.type for name, family in families.items() if name.startswith(("vllm:", "berth:"))}
        assert {name: kinds.get(name) for name in CONTRACT} == CONTRACT
        for name in CONTRACT:
            for sample in families[name].samples:
                assert sample.labels["model_name"] == "smollm2-135m-instruct"
                extra = set(sample.labels) - {"model_name", "le", "finished_reason"}
                assert not extra or name == "vllm:cache_config_info"
        info = families["vllm:cache_config_info"].samples[0]
        assert (info.labels["block_size"], info.labels["num_gpu_blocks"], info.value) == ("16", "256", 1)
        openmetrics = await running.http.get("/metrics", headers={"accept": "application/openmetrics-text"})
        assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
        assert openmetrics.text.endswith("# EOF\n")


async def test_metrics_move_with_what_is_served(serving: Any, gated: Any) -> None:
    async with serving(max_running=1) as running:

        async def scrape() -> dict[str, float]:
            return samples((await running.http.get("/metrics")).text)

        before = await scrape()
        request = pb.GenerateRequest(text=" ".join(PROMPTS), sampling=GREEDY)
        usage = [(await generate(running.stub, request))[-1].usage for _ in range(2)]
        after = await scrape()
        moved = {name: after[name] - before[name] for name in after if name in before}
        prompt = usage[0].prompt_tokens
        assert moved["vllm:prompt_tokens_total"] == moved["vllm:prefix_cache_queries_total"] == 2 * prompt
        assert moved["vllm:generation_tokens_total"] == 32
        assert moved["vllm:prefix_cache_hits_total"] == usage[1].cached_prompt_tokens == (prompt - 1) // 16 * 16
        assert moved["vllm:request_success_total"] == 2
        together = moved["vllm:spec_decode_num_accepted_tokens_total"]  # with the token before them
        assert 0 <= together <= moved["vllm:spec_decode_num_draft_tokens_total"]
        assert moved["vllm:inter_token_latency_seconds_count"] == 30 - together
        for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time"):
            assert moved[f"vllm:{name}_seconds_count"] == 2
            assert moved[f"vllm:{name}_seconds_sum"] > 0
        whole = moved["vllm:e2e_request_latency_seconds_sum"]
        parts = sum(moved[f"vllm:request_{part}_time_seconds_sum"] for part in ("queue", "prefill", "decode"))
        assert 0 < parts <= whole + 1e-9
        rows = 2 * (prompt + 15) - usage[1].cached_prompt_tokens
        rows += moved["vllm:spec_decode_num_draft_tokens_total"] - together  # drafts in vain
        assert moved["vllm:iteration_tokens_total_sum"] == rows

        gated.close()
        calls = [asyncio.create_task(generate(running.stub, request)) for _ in range(2)]
        await eventually(lambda: running.engine.stats().waiting == 1 and running.engine.stats().running == 1)
        busy = await scrape()
        assert (busy["vllm:num_requests_running"], busy["vllm:num_requests_waiting"]) == (1, 1)
        assert busy["vllm:kv_cache_usage_perc"] == -(-prompt // 16) / 256
        gated.gate.set()
        await asyncio.gather(*calls)


def test_the_committed_grpc_code_is_what_the_proto_file_generates(tmp_path: Path) -> None:
    for written in proto_generate.generate(tmp_path):
        committed = proto_generate.HERE / written.relative_to(tmp_path)
        assert written.read_text() == committed.read_text(), "run: python -m berth_worker.proto.generate"


def test_every_field_of_the_protocol_says_what_it_means() -> None:
    text = (proto_generate.HERE / "berth/v1/generation.proto").read_text()
    lines = [line.strip() for line in text.splitlines()]
    for line, above in zip(lines[1:], lines, strict=False):
        if " = " in line and not line.startswith(("//", "syntax")):
            assert above.startswith("//"), f"no comment above: {line}"
