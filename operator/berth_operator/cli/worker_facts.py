"""What does a worker say of itself over HTTP?  Its /metrics, in vLLM's names."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

_SECONDS = 10
_MOST_BYTES = 16 << 20


class FactsError(Exception):
    """The metrics could not be read, or say nothing of use."""


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker reports."""

    kv_cache_tokens: int
    requests_running: int
    """At the moment of asking: above 0, others use the worker too."""
    reported: Mapping[str, str]
    """Everything in vllm:cache_config_info, as it stands."""


def read_facts(http_address: str) -> WorkerFacts:
    """Ask the worker at `http_address` (host:port).  Raises FactsError."""
    url = f"http://{http_address}/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_SECONDS) as answer:
            text = answer.read(_MOST_BYTES).decode(errors="replace")
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise FactsError(f"{url} cannot be read: {reason}") from None
    return parse_facts(text, url)


def parse_facts(text: str, url: str) -> WorkerFacts:
    """Facts from the Prometheus text format.  Raises FactsError."""
    try:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except ValueError as error:
        raise FactsError(f"{url} is not Prometheus text: {error}") from None
    config = next((s.labels for s in samples if s.name == "vllm:cache_config_info"), None)
    if config is None:
        raise FactsError(f"{url} has no vllm:cache_config_info: is it a worker's HTTP port?")
    try:
        tokens = int(config["block_size"]) * int(config["num_gpu_blocks"])
    except (KeyError, ValueError):
        raise FactsError(f"{url}: vllm:cache_config_info lacks block_size x num_gpu_blocks: {dict(config)}") from None
    running = sum(s.value for s in samples if s.name == "vllm:num_requests_running")
    return WorkerFacts(tokens, int(running), dict(config))
