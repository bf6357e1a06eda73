"""What can be said to a worker when it starts?  Each option is a flag, or a variable of the environment."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

__all__ = ["Options", "parse"]

DEFAULT_BATCH_TOKENS = 256


def _integer(low: int, high: int | None = None) -> Callable[[str], int]:
    def convert(text: str) -> int:
        value = int(text)
        if value < low or (high is not None and value > high):
            raise ValueError
        return value

    convert.__name__ = f"whole number from {low}" + ("" if high is None else f" to {high}")
    return convert


def _seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError
    return value


_seconds.__name__ = "number of seconds, 0 or more"


def _more_than_none(text: str) -> float:
    value = _seconds(text)
    if value == 0:
        raise ValueError
    return value


_more_than_none.__name__ = "number of seconds, more than 0"


def _word(text: str) -> str:
    if not text.strip():
        raise ValueError
    return text


_word.__name__ = "text that is not empty"


def _choice(*allowed: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        for value in allowed:
            if value.lower() == text.lower():
                return value
        raise ValueError

    convert.__name__ = "one of " + ", ".join(allowed)
    return convert


def _node(text: str) -> str:
    return text.lower() if text.lower() in ("auto", "off") else str(_integer(0, 1023)(text))


_node.__name__ = "one of auto, off and the number of a node"


def _option(default: Any, convert: Callable[[str], Any], text: str) -> Any:
    return dataclasses.field(default=default, metadata={"convert": convert, "help": text})


@dataclass(frozen=True, slots=True)
class Options:
    """The worker's options; None where the model or the machine decides."""

    model: str = _option(
        "smollm2-135m-instruct", _word, "model to serve: a name that comes with the worker, file://, pvc:// or hf://"
    )
    served_model_name: str | None = _option(None, _word, "name that clients and metrics see (default: the model's)")
    quantization: str = _option(
        "Int8",
        _choice("Int8", "Int4", "BF16", "FP32"),
        "how weights are held and multiplied: Int8, Int4 (a 4-bit checkpoint's own grid), BF16 or FP32",
    )
    device: str = _option(
        "cpu",
        _choice("cpu", "cuda", "auto"),
        "where the model runs: cpu, cuda (BF16 or FP32), or auto: a GPU for BF16 if one is there, else the CPU",
    )
    host: str = _option("0.0.0.0", _word, "address to listen on")  # noqa: S104 - a pod's address is not known before
    grpc_port: int = _option(9000, _integer(0, 65535), "gRPC port; 0: any free one, printed when ready")
    http_port: int = _option(
        8000,
        _integer(0, 65535),
        "HTTP port of OpenAI's API, /healthz, /readyz and /metrics; 0: any free one, printed when ready",
    )
    max_concurrency: int = _option(16, _integer(1, 4096), "requests that run at once")
    max_queue: int = _option(64, _integer(0), "requests that wait beyond those; the next one is refused at once")
    max_context_tokens: int | None = _option(
        None, _integer(2), "prompt and output of one request together (default: what the model was trained for)"
    )
    kv_cache_tokens: int | None = _option(
        None,
        _integer(16),
        "tokens that the KV cache holds (default: max-concurrency contexts, in at most half of the free memory)",
    )
    max_batch_tokens: int | None = _option(
        None,
        _integer(1),
        "rows of one step at most, and of a prompt's chunk while nothing else runs "
        f"(default: {DEFAULT_BATCH_TOKENS}, or twice max-concurrency if that is more)",
    )
    gap_seconds: float = _option(
        0.02,
        _seconds,
        "while prompts are read, running streams wait at most so long for their next token, or twice as long as they "
        "would without if that is more: larger is faster prefill beside them",
    )
    inter_token_latency_p99_seconds: float | None = _option(
        None,
        _more_than_none,
        "what was promised between tokens: prompts and drafts never make running streams wait longer for the next one, "
        "whatever gap-seconds says (default: nothing was)",
    )
    speculation: str = _option(
        "prompt-lookup",
        _choice("prompt-lookup", "off"),
        "guess the next tokens from earlier ones where that is measured to pay, and verify several a step; the output "
        "is the same: prompt-lookup or off",
    )
    session_seconds: float = _option(
        300.0,
        _seconds,
        "keep the blocks of a session_id for its next turn for so long, unless requests need the memory; 0: not at all",
    )
    threads: int | None = _option(None, _integer(1, 1024), "threads of a step (default: the CPUs that are allowed)")
    numa_node: str = _option(
        "auto",
        _node,
        "NUMA node to run on, with its memory: auto (the one with the most free memory that has a CPU for each "
        "thread), off, or a number; run one replica a node on machines of several chips",
    )
    drain_lag_seconds: float = _option(
        5.0, _seconds, "after SIGTERM, admit for so long while endpoints catch up; at most half of grace-seconds"
    )
    grace_seconds: float = _option(
        25.0, _seconds, "after SIGTERM, be gone within this time; stay below the pod's termination grace period"
    )
    stall_seconds: float = _option(120.0, _seconds, "a step that takes longer makes /healthz fail")

    @property
    def batch_tokens(self) -> int:
        """Rows of one step: as given, or enough for every running request and a chunk of a prompt."""
        return self.max_batch_tokens or max(DEFAULT_BATCH_TOKENS, 2 * self.max_concurrency)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"berth-worker: {message}\n")


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Options from flags, else from BERTH_WORKER_* variables, else defaults.

    Exits with code 2 and one line on stderr for what cannot be understood, and 0 after --help and --version.
    """
    parser = _Parser(
        prog="berth-worker",
        description="Serves one Llama over gRPC (berth.v1.Generation) and HTTP (OpenAI's API, health and metrics).",
        epilog="Every flag can also be set by an environment variable: --grpc-port by BERTH_WORKER_GRPC_PORT.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"berth-worker {_version()}")
    for option in dataclasses.fields(Options):
        shown = "" if option.default is None else f" (default: {option.default})"
        parser.add_argument(
            _flag(option.name), metavar=option.name.upper(), help=(option.metadata["help"] + shown).replace("%", "%%")
        )
    given = vars(parser.parse_args(arguments))
    values: dict[str, Any] = {}
    for option in dataclasses.fields(Options):
        variable = f"BERTH_WORKER_{option.name.upper()}"
        name, text = _flag(option.name), given[option.name]
        if text is None and variable in environment:
            name, text = variable, environment[variable]
        if text is None:
            continue
        convert = option.metadata["convert"]
        try:
            values[option.name] = convert(text)
        except ValueError:
            parser.error(f"{name}: found {text!r}; expected a {convert.__name__}".replace("a one of", "one of"))
    options = Options(**values)
    if options.batch_tokens < options.max_concurrency:
        parser.error(
            f"--max-batch-tokens: {options.max_batch_tokens} is less than --max-concurrency "
            f"({options.max_concurrency}): each running request needs a row of a step"
        )
    return options


def _version() -> str:
    try:
        return importlib.metadata.version("berth-worker")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed: run from its source)"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
