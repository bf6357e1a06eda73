"""How does a worker start, serve and leave?  `berth-worker --model SOURCE`.

Exit codes: 0 left cleanly, 2 a model or an argument that cannot work (one line on stderr), 1 anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from berth_worker.server.grpc_face import GrpcServer
from berth_worker.server.http_face import HttpServer
from berth_worker.server.options import Options, parse
from berth_worker.server.worker import Phase, Worker, build_engine

if TYPE_CHECKING:
    from berth_worker.engine.engine import Engine
    from berth_worker.server.metrics import Metrics

__all__ = ["BadStartError", "main", "run"]

log = logging.getLogger("berth_worker")

FLUSH_SECONDS = 1.0
"""Of the grace period, kept for sending what was generated last."""
HEALTH_SECONDS = 1.0
"""How often the gRPC health service looks whether the engine is still well."""


class BadStartError(Exception):
    """The worker cannot start as it was asked to; the message is one line."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; ends the process."""
    options = parse(sys.argv[1:] if arguments is None else arguments, os.environ)
    logging.basicConfig(
        stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    _open_as_many_files_as_allowed()
    # A stream's next piece waits for the interpreter at most this long while the engine's thread computes in Python.
    sys.setswitchinterval(0.001)
    try:
        code = asyncio.run(run(options))
    except BadStartError as error:
        print(f"berth-worker: {error}", file=sys.stderr)
        code = 2
    except Exception:
        log.exception("berth-worker ends")
        code = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: a step that is stuck or a model that is still loading sits in a native thread, and the interpreter
    # would wait for it or tear torch down beneath it.
    os._exit(code)


def _open_as_many_files_as_allowed() -> None:
    """Each connection is one, idle ones too, and containers begin with 1,024 since containerd 2.0: beyond them no probe
    would be answered, and the kubelet would end a worker that is well."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def run(options: Options) -> int:
    """Serve until told to leave; returns the exit code. Raises BadStartError."""
    began = time.monotonic()
    worker = Worker()
    try:
        http = HttpServer(worker, options.host, options.http_port)
    except OSError as error:
        raise BadStartError(f"--http-port: cannot listen on {options.host}:{options.http_port}: {error}") from error
    try:
        grpc = GrpcServer(worker, options.host, options.grpc_port)
    except OSError as error:
        raise BadStartError(f"--grpc-port: cannot listen on {options.host}:{options.grpc_port}: {error}") from error
    signals = _Signals()
    http.start()
    await grpc.start()
    log.info("loading %s", options.model)  # which takes minutes where a large one has to be packed
    loading = asyncio.create_task(_load(options))
    leaving = asyncio.create_task(signals.first.wait())
    try:
        await asyncio.wait({loading, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            worker.serve(*loading.result())
            await grpc.show_health()
            log.info(
                "berth-worker ready grpc=%s:%d http=%s:%d model=%s",
                *(options.host, grpc.port, options.host, http.port, worker.model_name),
            )
            log.info("ready %.1f s after start", time.monotonic() - began)
            await _watch(worker, grpc, leaving)
        cut = await _drain(worker, lambda: grpc.open_calls + http.open_calls, grpc, options, signals)
    finally:
        leaving.cancel()
        loading.cancel()
        await grpc.stop(FLUSH_SECONDS)
        await http.stop()
    if cut:
        why = "a second signal came" if signals.second.is_set() else f"--grace-seconds is {options.grace_seconds:g}"
        log.error("left with %d requests cut off: %s", cut, why)
        return 1
    log.info("left cleanly")
    return 0


class _Signals:
    """SIGTERM or SIGINT: the first asks the worker to leave, the second not to wait for anything."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._received, number)

    def _received(self, number: signal.Signals) -> None:
        log.info("%s", number.name)
        (self.second if self.first.is_set() else self.first).set()


async def _load(options: Options) -> tuple[Engine, str, Metrics]:
    """Build the engine in a thread that does not keep the process alive. Raises BadStartError."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[Engine, str, Metrics]] = loop.create_future()

    def set_result(result: tuple[Engine, str, Metrics] | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def load() -> None:
        try:
            result, error = build_engine(options), None
        except BaseException as caught:
            result, error = None, caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: told to leave while loading
            loop.call_soon_threadsafe(set_result, result, error)

    threading.Thread(target=load, name="berth-load", daemon=True).start()
    try:
        return await future
    except Exception as error:
        from berth_worker.model.interface import ModelError  # noqa: PLC0415 - imports torch; by now it is there

        if isinstance(error, ModelError | ValueError):
            raise BadStartError(" ".join(str(error).split())) from error
        raise


async def _watch(worker: Worker, grpc: GrpcServer, leaving: asyncio.Task[bool]) -> None:
    """Until it is time to leave, tell gRPC health when the engine fails or gets stuck."""
    shown = worker.unready()
    while not leaving.done():
        await asyncio.wait({leaving}, timeout=HEALTH_SECONDS)
        problem = worker.unready()
        if (problem is None) != (shown is None):
            log.error("not serving: %s", problem) if problem else log.info("serving again")
            await grpc.show_health()
        shown = problem


async def _drain(
    worker: Worker, open_calls: Callable[[], int], grpc: GrpcServer, options: Options, signals: _Signals
) -> int:
    """Go unready, admit for a little longer, refuse, finish what runs. Returns how many requests were cut off."""
    deadline = time.monotonic() + options.grace_seconds
    engine = worker.engine
    if engine is None:
        return 0
    worker.phase = Phase.LEAVING
    await grpc.show_health()
    await _sleep_unless(signals.second, min(options.drain_lag_seconds, options.grace_seconds / 2))
    worker.phase = Phase.DRAINING
    engine.refuse_new()
    log.info("draining: %s", engine.stats())
    while not (engine.idle and open_calls() == 0):
        if signals.second.is_set() or time.monotonic() > deadline - FLUSH_SECONDS:
            break
        await _sleep_unless(signals.second, 0.02)
    unread = open_calls()
    return max(unread, await asyncio.to_thread(engine.stop, FLUSH_SECONDS))


async def _sleep_unless(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


if __name__ == "__main__":
    main()
