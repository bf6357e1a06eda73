"""`berth bench`: drive a worker, and print what it can do as a ServingProfile."""

from __future__ import annotations

import asyncio
import math
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from functools import partial
from typing import Annotated, Any

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from berth_operator.api import ServingPoint
from berth_operator.api.names import API_VERSION
from berth_operator.catalog.profile_sanity import shape_faults
from berth_operator.catalog.resource_quantity import bytes_of
from berth_operator.cli.generation import GenerationClient, GenerationError, discover
from berth_operator.cli.measure import DecodePoint, Measurements, Plan, measure
from berth_operator.cli.objects import read_bodies
from berth_operator.cli.output import console, print_data
from berth_operator.cli.problems import BAD_INPUT, FAILED, leave, remark
from berth_operator.cli.worker_facts import FactsError, WorkerFacts, read_facts

_WORKER_HTTP_PORT = 8000
_STAND_IN = Measurements(1.0, 1.0, 1.0, False, (DecodePoint(1, 1, 1.0, 1.0, 1.0, 1),), ())
"""For a look at the profile before anything is measured: what cannot be applied is not worth the minutes."""


class BenchFormat(StrEnum):
    """Choices of `-o`."""

    YAML = "yaml"
    JSON = "json"


class Quantized(StrEnum):
    """What a profile can be of."""

    INT8 = "Int8"
    INT4 = "Int4"
    BF16 = "BF16"


def command(
    address: Annotated[str, typer.Argument(help="The worker's gRPC address, host:port")],
    model: Annotated[str, typer.Option(help="Model name as the worker serves it")],
    hardware_class: Annotated[str, typer.Option(help="HardwareClass that the worker's machine stands for")],
    quantization: Annotated[Quantized, typer.Option(help="Weight format that the worker serves")] = Quantized.INT8,
    concurrency: Annotated[str, typer.Option(help="Streams decoding at once, one figure each")] = "1,2,4,8",
    prompt_tokens: Annotated[int, typer.Option(min=2, help="Of each request, none of them cached at first")] = 512,
    output_tokens: Annotated[int, typer.Option(min=2, help="Of each request")] = 64,
    requests: Annotated[int, typer.Option(min=1, help="At least so many at each concurrency")] = 8,
    new_tokens: Annotated[
        int,
        typer.Option(min=0, help="Time turns that bring so many tokens behind a cached prompt, beside a stream"),
    ] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Short prompts, concurrency 1 and 4: a first idea")] = False,
    http_address: Annotated[
        str | None, typer.Option(help="The worker's HTTP address, for its /metrics; default: same host, port 8000")
    ] = None,
    kv_cache_tokens: Annotated[int | None, typer.Option(min=1, help="Instead of asking /metrics")] = None,
    replicas_per_node: Annotated[int | None, typer.Option(min=1, help="Replicas that share one node")] = None,
    cpu: Annotated[str | None, typer.Option(help="What one replica requests; default: a whole node")] = None,
    memory: Annotated[str | None, typer.Option(help="Likewise, such as 4Gi")] = None,
    accelerators: Annotated[int | None, typer.Option(min=0, help="Likewise")] = None,
    machine: Annotated[str | None, typer.Option(help="What the worker runs on, for the profile's provenance")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the ServingProfile")] = None,
    output: Annotated[BenchFormat, typer.Option("--output", "-o")] = BenchFormat.YAML,
) -> None:
    """Measure a running worker and print a ServingProfile, ready for `kubectl apply -f -`.

    Prompts are random, so that nothing is cached when prefill is timed.  Figures and progress go to stderr, the
    profile to stdout.  Give the worker to the bench alone.
    """
    resources = {"cpu": cpu, "memory": memory, "accelerators": accelerators}
    if replicas_per_node and replicas_per_node > 1 and not any(resources.values()):
        leave(
            BAD_INPUT,
            f"--replicas-per-node: found {replicas_per_node} without --cpu, --memory or --accelerators: say what one"
            " replica takes of its node; without, each takes a whole one",
        )
    if "/" in address or not address.rpartition(":")[2].isdecimal():
        leave(BAD_INPUT, f"ADDRESS: found {address!r}: write the worker's gRPC host:port, such as 10.0.0.7:9000")
    try:
        plan = Plan(
            model,
            (1, 4) if quick else _concurrencies(concurrency),
            min(prompt_tokens, 128) if quick else prompt_tokens,
            min(output_tokens, 32) if quick else output_tokens,
            min(requests, 4) if quick else requests,
            min(new_tokens, 32) if quick else new_tokens,
        )
    except ValueError as error:
        leave(BAD_INPUT, error)
    body_of = partial(
        profile_body,
        plan,
        name=name,
        hardware_class=hardware_class,
        quantization=quantization.value,
        resources=resources,
        replicas_per_node=replicas_per_node,
        date=datetime.now(UTC).date().isoformat(),
    )
    _check_profile(body_of(_STAND_IN, kv_cache_tokens=1, source="nothing yet"))
    if machine is None:
        remark("the profile will not say on what it was measured: name the worker's machine with --machine")
    facts = _facts(address, http_address, kv_cache_tokens)
    if facts and facts.requests_running:
        remark(f"the worker is running {facts.requests_running} other requests: the figures will be too low")
    kv_tokens = kv_cache_tokens or (facts.kv_cache_tokens if facts else 0)
    _check_fits(plan, kv_tokens)
    try:
        found = _run(address, plan)
    except GenerationError as error:
        leave(BAD_INPUT if error.bad_input else FAILED, error)
    for text in found.left_out:
        remark(f"left out: {text}")
    if plan.new_tokens and not found.beside_a_stream:
        remark(
            "no turn came beside a stream, as where the worker runs one request at a time: prefill is of whole prompts"
        )
    if not found.points:
        leave(FAILED, "no concurrency could be measured")
    for text in _contradictions(found.points):
        remark(f"something else used the worker or its machine, and `berth plan` will refuse this profile: {text}")
    _print_figures(plan, found)
    body = body_of(found, kv_cache_tokens=kv_tokens, source=_source(address, plan, found, facts, machine))
    _check_profile(body)
    print_data(body, as_yaml=output is BenchFormat.YAML)


def _concurrencies(text: str) -> tuple[int, ...]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1 or found[-1] > 1024:
        raise ValueError(f"--concurrency: found {text!r}: write numbers from 1 to 1024, such as 1,2,4,8")
    return tuple(found)


def _facts(address: str, http_address: str | None, kv_cache_tokens: int | None) -> WorkerFacts | None:
    where = http_address or f"{address.rpartition(':')[0]}:{_WORKER_HTTP_PORT}"
    try:
        return read_facts(where)
    except FactsError as error:
        if kv_cache_tokens is not None and http_address is None:
            return None
        leave(FAILED, f"{error}; name the worker's HTTP port with --http-address, or give --kv-cache-tokens")


def _check_fits(plan: Plan, kv_cache_tokens: int) -> None:
    length = plan.prompt_tokens + plan.new_tokens + plan.output_tokens
    needed = max(plan.concurrency) * length
    if needed > kv_cache_tokens:
        leave(
            BAD_INPUT,
            f"{max(plan.concurrency)} streams of {length} tokens need {needed} tokens of KV cache, and the worker has"
            f" {kv_cache_tokens}: lower --concurrency, --prompt-tokens or --output-tokens",
        )


def _run(address: str, plan: Plan) -> Measurements:
    call = discover(address)
    columns = (
        TextColumn("measuring {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("requests"),
        TimeRemainingColumn(),
    )
    live = sys.stderr.isatty()
    with Progress(*columns, console=console(err=True), transient=True, disable=not live) as progress:
        task = progress.add_task("prefill", total=plan.total_requests)

        def tick(what: str) -> None:
            done = progress.tasks[task].completed + 1
            progress.update(task, completed=done, total=max(done, plan.total_requests), description=what)

        async def run() -> Measurements:
            async with GenerationClient(address, call) as client:
                return await measure(client, plan, tick, lambda points: bool(_contradictions(points)))

        return asyncio.run(run())


def _print_figures(plan: Plan, found: Measurements) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("STREAMS", "TOKENS/S", "PER STREAM", "BETWEEN TOKENS p50", "p99"):
        table.add_column(heading, justify="right")
    for point in found.points:
        table.add_row(
            str(point.concurrency),
            f"{point.tokens_per_second:.1f}",
            f"{point.tokens_per_second / point.concurrency:.1f}",
            f"{point.gap_p50 * 1000:.1f} ms",
            f"{point.gap_p99 * 1000:.1f} ms",
        )
    to = console(err=True)
    to.print(table)
    to.print(
        f"prompts of {plan.prompt_tokens} tokens, none cached: first token after {found.first_token_p50 * 1000:.0f} ms"
        f" (p50), {found.first_token_p99 * 1000:.0f} ms (p99); prefill {found.prefill_tokens_per_second:.0f} tokens/s"
        f" beyond a step, {_prefill_of(plan, found)};"
        f" decoding measured at {plan.context_tokens} tokens of context"
    )


# --- The profile ----------------------------------------------------------------------------------------------------


def profile_body(
    plan: Plan,
    found: Measurements,
    *,
    name: str | None,
    hardware_class: str,
    quantization: str,
    kv_cache_tokens: int,
    resources: Mapping[str, str | int | None],
    replicas_per_node: int | None,
    source: str,
    date: str,
) -> dict[str, Any]:
    """A ServingProfile as JSON data.  Speeds are rounded down and latencies up: never better than measured."""
    given = {key: value for key, value in resources.items() if value is not None}
    spec: dict[str, Any] = {
        "model": plan.model,
        "quantization": quantization,
        "hardwareClass": hardware_class,
        "runtime": "Berth",
        **({"resources": given} if given else {}),
        **({"replicasPerNode": replicas_per_node} if replicas_per_node else {}),
        "points": [_point_body(point) for point in found.points],
        "prefillTokensPerSecond": _rounded_down(found.prefill_tokens_per_second),
        "kvCacheTokens": kv_cache_tokens,
        "provenance": {"method": "Measured", "source": source[:1024], "date": date},
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "ServingProfile",
        "metadata": {"name": name or _name(plan.model, hardware_class, quantization)},
        "spec": spec,
    }


def _point_body(point: DecodePoint) -> dict[str, Any]:
    return {
        "concurrency": point.concurrency,
        "contextTokens": point.context_tokens,
        "decodeTokensPerSecond": _rounded_down(point.tokens_per_second),
        "interTokenLatencyP99": f"{Decimal(math.ceil(point.gap_p99 * 1e4)) / 10}ms",
    }


def _contradictions(points: Iterable[DecodePoint]) -> list[str]:
    """What `berth plan` would refuse of them."""
    measured = [ServingPoint.model_validate(_point_body(point)) for point in points]
    return [f"{where}: {message}" for _, where, message in shape_faults(measured)]


def _rounded_down(speed: float) -> str:
    return str(Decimal(math.floor(speed * 10)) / 10)


def _name(*parts: str) -> str:
    joined = re.sub(r"[^a-z0-9.-]+", "-", "-".join(parts).lower())
    return joined.strip("-.")[:253]


def _prefill_of(plan: Plan, found: Measurements) -> str:
    if found.beside_a_stream:
        return f"of {plan.new_tokens} tokens behind {plan.prompt_tokens}, beside a stream"
    return f"of {plan.prompt_tokens} tokens"


def _source(address: str, plan: Plan, found: Measurements, facts: WorkerFacts | None, machine: str | None) -> str:
    parts = [
        f"berth bench against the worker at {address}",
        f"machine: {machine}" if machine else "machine not stated",
        f"{plan.prompt_tokens} prompt and {plan.output_tokens} output tokens, prompts random and distinct,"
        f" decoding at {plan.context_tokens} tokens of context, prefill {_prefill_of(plan, found)} beyond what a step"
        " takes",
    ]
    if facts and facts.reported:
        parts.append("worker reports " + ", ".join(f"{k}={v}" for k, v in sorted(facts.reported.items()) if v))
    return "; ".join(parts)


def _check_profile(body: Mapping[str, Any]) -> None:
    """What is printed must be what an API server takes, and `berth plan` understands."""
    _, problems = read_bodies((), [("", body)])
    if problems:
        leave(BAD_INPUT, f"no valid ServingProfile comes of this: {problems[0].field}: {problems[0].message}")
    memory = body["spec"].get("resources", {}).get("memory")
    if memory and bytes_of(memory) < 1 << 20:
        leave(
            BAD_INPUT, f"--memory: found {memory!r}, which is {bytes_of(memory):.0f} bytes: write a unit, such as 4Gi"
        )
