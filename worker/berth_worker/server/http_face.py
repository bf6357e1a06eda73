"""What answers over HTTP?  /healthz, /readyz and /metrics, and OpenAI's API under /v1 (`openai_face`)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import anyio
import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from berth_worker.server.openai_face import OpenAiFace, problem
from berth_worker.server.request_ids import RequestIds
from berth_worker.server.worker import Worker

__all__ = ["HttpServer", "application"]

KEEP_ALIVE_SECONDS = 120
"""An idle connection is kept longer than proxies keep theirs (60 s is usual), so that none sends into a closed one."""


def application(worker: Worker, openai: OpenAiFace) -> ASGIApp:
    """The ASGI application over a worker in any phase."""

    async def healthz(_: Request) -> Response:
        return _verdict(worker.unhealthy())

    async def readyz(_: Request) -> Response:
        return _verdict(worker.unready())

    async def metrics(request: Request) -> Response:
        registry = CollectorRegistry() if worker.metrics is None else worker.metrics.registry
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    own = [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]
    return RequestIds(Starlette(routes=[*own, *openai.routes], exception_handlers={HTTPException: problem}))


def _verdict(problem: str | None) -> Response:
    return PlainTextResponse("ok\n") if problem is None else PlainTextResponse(f"{problem}\n", status_code=503)


class HttpServer:
    """Serves the application in the running event loop."""

    def __init__(self, worker: Worker, host: str, port: int) -> None:
        """Binds at once, so that a port in use is known before a model is loaded. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family)
        # Connections inherit it. asyncio leaves it off on sockets that it did not make, and then what follows the head
        # of an answer waits for the client to acknowledge that: 40 ms on Linux.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port: int = self._socket.getsockname()[1]
        self._openai = OpenAiFace(worker)
        config = uvicorn.Config(
            application(worker, self._openai),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    @property
    def open_calls(self) -> int:
        """Answers that are still being sent."""
        return self._openai.open_calls

    def start(self) -> None:
        """Begin to answer."""
        anyio.get_cancelled_exc_class()  # imports what Starlette streams with, 20 ms, or the first answer would
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="http")

    async def stop(self) -> None:
        """Stop answering, within about a second."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._socket.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the worker's own: SIGTERM drains it, and /metrics is wanted until the end."""
        yield
