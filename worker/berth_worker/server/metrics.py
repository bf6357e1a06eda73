"""What does a worker report to Prometheus?  vLLM's names: dashboards, endpoint pickers and KEDA know them already.

What vLLM has no name for begins with `berth:`.
Source of names and meanings: vLLM's v1/metrics/loggers.py. prometheus-client adds `_total` to counters on the wire.
Every series has the label model_name; no label takes a value that a client chooses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from berth_worker.engine.batch import BLOCK_TOKENS
from berth_worker.engine.limits import EngineConfig
from berth_worker.engine.report import StepReport
from berth_worker.engine.request import FinishReason
from berth_worker.engine.stream import Finish

if TYPE_CHECKING:
    from berth_worker.engine.engine import Engine

__all__ = ["Metrics"]

# vLLM's buckets, with finer ones at the start where a small model on a CPU lives.
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    *(160.0, 640.0, 2560.0),
)
INTER_TOKEN = (
    *(0.0025, 0.005, 0.01, 0.015, 0.025, 0.04, 0.05, 0.06, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0),
    *(7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST = (
    *(0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
ITERATION_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Metrics:
    """An engine's Observer, and the registry that /metrics shows."""

    def __init__(self, model_name: str, config: EngineConfig) -> None:
        self.registry = CollectorRegistry()
        self._model_name = model_name
        ProcessCollector(registry=self.registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["model_name"], registry=self.registry).labels(model_name)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, ["model_name"], registry=self.registry, buckets=buckets).labels(model_name)

        self._prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens processed, those found in cache included.")
        self._generation_tokens = counter("vllm:generation_tokens", "Tokens generated.")
        self._queries = counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self._hits = counter("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self._preemptions = counter("vllm:num_preemptions", "Requests that gave up their KV blocks, to be recomputed.")
        self._draft_tokens = counter("vllm:spec_decode_num_draft_tokens", "Tokens guessed ahead and verified.")
        self._accepted = counter("vllm:spec_decode_num_accepted_tokens", "Of those, tokens that were right.")
        finished = Counter(
            "vllm:request_success", "Requests ended.", ["model_name", "finished_reason"], registry=self.registry
        )
        self._finished = {reason: finished.labels(model_name, reason.value) for reason in FinishReason}
        self._first_token = histogram(
            "vllm:time_to_first_token_seconds", "Arrival to first token, in seconds.", FIRST_TOKEN
        )
        self._inter_token = histogram(
            "vllm:inter_token_latency_seconds", "Token to next token of a request, in seconds.", INTER_TOKEN
        )
        self._e2e = histogram("vllm:e2e_request_latency_seconds", "Arrival to end of a request, in seconds.", REQUEST)
        self._queue = histogram("vllm:request_queue_time_seconds", "Arrival to first step, in seconds.", REQUEST)
        self._prefill = histogram(
            "vllm:request_prefill_time_seconds", "First step to first token, in seconds.", REQUEST
        )
        self._decode = histogram("vllm:request_decode_time_seconds", "First token to last token, in seconds.", REQUEST)
        self._rows = histogram("vllm:iteration_tokens_total", "Tokens of one step of the model.", ITERATION_TOKENS)
        blocks = -(-config.kv_cache_tokens // BLOCK_TOKENS)
        info = {  # the endpoint picker reads block_size and num_gpu_blocks, wherever the blocks are
            "model_name": model_name,
            "block_size": str(BLOCK_TOKENS),
            "num_gpu_blocks": str(blocks),
            "enable_prefix_caching": "True",
        }
        Gauge(
            "vllm:cache_config_info", "The KV cache, in labels; always 1.", list(info), registry=self.registry
        ).labels(**info).set(1)

    def watch(self, engine: Engine) -> None:
        """From now on show the engine's queues and blocks, as they are at each scrape."""
        self.registry.register(_EngineCollector(engine, self._model_name))

    def step(self, report: StepReport) -> None:
        """See Observer."""
        self._rows.observe(report.rows)
        self._prompt_tokens.inc(report.prompt_tokens)
        self._generation_tokens.inc(report.generated)
        self._queries.inc(report.prefix_queried)
        self._hits.inc(report.prefix_hits)
        self._preemptions.inc(report.preemptions)
        self._draft_tokens.inc(report.drafted)
        self._accepted.inc(report.accepted)
        for seconds in report.first_token_seconds:
            self._first_token.observe(seconds)
        for seconds in report.gap_seconds:
            self._inter_token.observe(seconds)

    def finished(self, finish: Finish, e2e_seconds: float) -> None:
        """See Observer. Times are those of requests that ran to their end: a cancelled one says nothing of speed."""
        self._finished[finish.reason].inc()
        if finish.reason in {FinishReason.STOP, FinishReason.LENGTH}:
            self._e2e.observe(e2e_seconds)
            self._queue.observe(finish.queue_seconds)
            self._prefill.observe(finish.prefill_seconds)
            self._decode.observe(finish.decode_seconds)


class _EngineCollector(Collector):
    def __init__(self, engine: Engine, model_name: str) -> None:
        self._engine, self._model_name = engine, model_name

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        stats = self._engine.stats()
        sessions = stats.sessions_retained
        for name, text, value in (
            ("vllm:num_requests_running", "Requests in the model's batches.", stats.running),
            ("vllm:num_requests_waiting", "Requests that wait for a slot or for KV blocks.", stats.waiting),
            ("vllm:kv_cache_usage_perc", "KV blocks that requests hold; 1 is all.", stats.blocks_held / stats.blocks),
            ("berth:sessions_retained", "Sessions whose KV blocks are kept for their next turn.", sessions),
            ("berth:kv_blocks_retained", "KV blocks kept for them that no request holds.", stats.blocks_retained),
        ):
            family = GaugeMetricFamily(name, text, labels=["model_name"])
            family.add_metric([self._model_name], float(value))
            yield family
        refused = CounterMetricFamily(
            "berth:requests_refused", "Requests turned away because the queue was full.", labels=["model_name"]
        )
        refused.add_metric([self._model_name], float(stats.refused))
        yield refused
