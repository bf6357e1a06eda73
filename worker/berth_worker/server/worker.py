"""What is the worker doing: loading, serving, leaving or failed?  The one state that both faces look at."""

from __future__ import annotations

import enum
import gc
import logging
import math
import time
from typing import TYPE_CHECKING, cast

from berth_worker.engine.limits import EngineConfig
from berth_worker.server import numa
from berth_worker.server.constraints import Constraints
from berth_worker.server.memory import GPU_KV_SHARE, KV_SHARE, kv_cache_tokens
from berth_worker.server.metrics import Metrics
from berth_worker.server.options import Options

if TYPE_CHECKING:
    from berth_worker.engine.engine import Engine
    from berth_worker.engine.limits import Speculation
    from berth_worker.model.interface import LoadedModel, Quantization

__all__ = ["Phase", "Worker", "build_engine"]

log = logging.getLogger(__name__)


class Phase(enum.Enum):
    """In the order in which a worker goes through them."""

    LOADING = "loading the model"
    SERVING = "serving"
    LEAVING = "going down: unready, but admits while endpoints catch up"
    DRAINING = "going down: refuses new requests and finishes what runs"


class Worker:
    """The engine, once it is there, and the phase."""

    def __init__(self) -> None:
        self.phase = Phase.LOADING
        self.model_name = ""
        self.engine: Engine | None = None
        self.metrics: Metrics | None = None
        self.served_since = 0.0
        """Seconds since the epoch."""
        self.constraints = Constraints()

    def serve(self, engine: Engine, model_name: str, metrics: Metrics) -> None:
        """Start to serve a loaded model."""
        self.engine, self.model_name, self.metrics = engine, model_name, metrics
        self.served_since = time.time()
        engine.start()
        self.phase = Phase.SERVING

    def unhealthy(self) -> str | None:
        """Why the process should be restarted, or None."""
        return None if self.engine is None else self.engine.unhealthy()

    def unready(self) -> str | None:
        """Why no more requests should be sent here, or None."""
        return self.unhealthy() or (None if self.phase is Phase.SERVING else self.phase.value)


def build_engine(options: Options) -> tuple[Engine, str, Metrics]:
    """Load the model and allocate the cache, which takes seconds; returns engine, served name and metrics.

    Raises ModelError for a model that cannot be served, and ValueError for limits that do not fit it.
    """
    from berth_worker.engine.engine import Engine  # noqa: PLC0415 - imports torch, seconds that /healthz need not wait
    from berth_worker.kernels.cpus import usable_cpus  # noqa: PLC0415
    from berth_worker.model import load  # noqa: PLC0415
    from berth_worker.model.room import room  # noqa: PLC0415

    binding = numa.bind(options.numa_node, options.threads, usable_cpus())
    if binding.advice:
        log.warning("%s", binding.advice)
    loaded = load(
        options.model,
        quantization=cast("Quantization", options.quantization),
        threads=options.threads,
        kv_cache_tokens=options.kv_cache_tokens,
        device=options.device,
    )
    name = options.served_model_name or loaded.name
    free = room().free
    if binding.node is not None:
        log.info("runs on NUMA node %d, on %d CPUs", binding.node, len(binding.cpus))
        free = min(free, numa.free_bytes(binding.node) or free)  # beyond it the cache would be another chip's memory
    config = engine_config(options, loaded, free)
    metrics = Metrics(name, config)
    engine = Engine(loaded.model, loaded.tokenizer, config, observer=metrics)
    metrics.watch(engine)
    # What was loaded stays: a full collection over it holds up all streams for 60 ms (measured with the demo model).
    gc.collect()
    gc.freeze()
    log.info(
        "loaded %s: %s on %s, %.0f MiB of weights, context %d tokens, KV cache %d tokens in %.0f MiB",
        options.model,
        loaded.recipe,
        loaded.path,
        loaded.resident_bytes / 2**20,
        config.max_context_tokens,
        config.kv_cache_tokens,
        config.kv_cache_tokens / 16 * loaded.model.kv_bytes_per_block / 2**20,
    )
    return engine, name, metrics


def engine_config(options: Options, loaded: LoadedModel, available: int) -> EngineConfig:
    """The engine's limits, from the options where they say, else from the model and `available` bytes of memory, or
    what the model says of its GPU's.

    Raises ValueError, naming the option, for limits that the model or the memory does not allow.
    """
    trained = loaded.config.max_context
    context = options.max_context_tokens or trained
    if context > trained:
        raise ValueError(f"--max-context-tokens: {context} is more than the model was trained for ({trained})")
    cache = options.kv_cache_tokens
    if cache is None:
        per_token = loaded.model.kv_bytes_per_block / 16
        share = KV_SHARE
        if loaded.cache_room_bytes is not None:
            available, share = loaded.cache_room_bytes, GPU_KV_SHARE
        cache = kv_cache_tokens(per_token, options.max_concurrency * context, available, share)
        if cache < 16:
            raise ValueError(
                f"no room for a KV cache: {available / 2**20:.0f} MiB are free and a token takes {per_token:.0f} bytes"
            )
    if context > cache:
        if options.max_context_tokens is not None:
            raise ValueError(f"--max-context-tokens: {context} does not fit in a KV cache of {cache} tokens")
        log.warning("context limited to %d of %d tokens by the KV cache", cache, context)
        context = cache
    return EngineConfig(
        max_running=options.max_concurrency,
        max_waiting=options.max_queue,
        max_context_tokens=context,
        kv_cache_tokens=cache,
        token_budget=options.batch_tokens,
        gap_seconds=options.gap_seconds,
        promised_gap_seconds=options.inter_token_latency_p99_seconds or math.inf,
        session_seconds=options.session_seconds,
        speculation=cast("Speculation", options.speculation),
        stall_seconds=options.stall_seconds,
    )
