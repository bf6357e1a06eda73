"""Who answers for a pool without workers?  Doors: sockets that hold connections until a worker is ready to join them.

While a pool that may sleep has no ready worker, an EndpointSlice of ours adds the operator's address, and the ports of
the pool's doors, to the pool's Service.  A client's connection is taken at once, its first bytes wake the pool, and it
waits: nothing is answered for the worker, so HTTP, server-sent events and gRPC all pass, byte for byte.  Once a worker
is ready the slice goes, and new connections reach workers directly; those that went through a door stay joined.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from berth_operator.cluster.observe import Worker

log = logging.getLogger(__name__)

PORTS: Final = ("http", "grpc")
"""Ports of a pool's Service, and of its workers, by name: a door each."""
_MOST_CONNECTIONS: Final = 1024
"""Of all pools: a connection costs the operator about 100 KB at worst."""
_CHUNK: Final = 64 * 1024
_LOOK_SECONDS: Final = 0.2
_CONNECT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Doors:
    """Where a pool's clients are taken in."""

    address: str
    ports: Mapping[str, int]
    """By name of the Service's port."""


@dataclass(slots=True)
class _Pool:
    servers: list[asyncio.Server] = field(default_factory=list)
    doors: Doors | None = None
    waiting: int = 0
    """Connections that have sent something and have no worker yet."""
    ready: Sequence[Worker] = ()
    looked_at: float = float("-inf")


class Activator:
    """Keeps doors.  `close()` ends every connection."""

    def __init__(
        self,
        address: str,
        workers: Callable[[str], Sequence[Worker]],
        on_knock: Callable[[str], None],
        *,
        listen: str = "",
    ) -> None:
        """`address`: ours, as clients reach it.  `workers`: those of a pool (`namespace/name`) that are ready.

        `on_knock`: called with the pool when a connection begins to wait.  `listen`: where to bind; empty: anywhere.
        """
        anywhere = "::" if ":" in address else "0.0.0.0"  # noqa: S104 - clients come from all over the cluster
        self._address = address
        self._workers = workers
        self._on_knock = on_knock
        self._listen = listen or anywhere
        self._pools: dict[str, _Pool] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._turn = count()

    async def open(self, pool: str) -> Doors:
        """The doors of a pool (`namespace/name`); opened on the first call.  Raises OSError."""
        entry = self._pools.setdefault(pool, _Pool())
        if entry.doors is None:
            ports = {}
            for name in PORTS:
                take = self._taker(pool, name)
                server = await asyncio.start_server(take, self._listen, 0, limit=_CHUNK, backlog=_MOST_CONNECTIONS)
                entry.servers.append(server)
                ports[name] = server.sockets[0].getsockname()[1]
            entry.doors = Doors(self._address, ports)
        return entry.doors

    def knocking(self, pool: str) -> bool:
        """Whether anybody waits for a worker of the pool."""
        return pool in self._pools and self._pools[pool].waiting > 0

    def keep_only(self, pools: Mapping[str, object] | set[str]) -> None:
        """Close the doors of all other pools; connections that are joined go on."""
        for key in self._pools.keys() - set(pools):
            for server in self._pools.pop(key).servers:
                server.close()

    async def close(self) -> None:
        """Close every door and end every connection."""
        self.keep_only(set())
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    # One connection

    def _taker(self, pool: str, port: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(self._connections) >= _MOST_CONNECTIONS:
                log.warning("%s: a connection is refused: %d are held already", pool, _MOST_CONNECTIONS)
                writer.transport.abort()
                return
            task = asyncio.create_task(self._serve(pool, port, reader, writer), name=f"door of {pool}")
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        return take

    async def _serve(self, pool: str, port: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first = await reader.read(_CHUNK)
            if not first:
                return  # a probe of the port: nobody asked for anything
            upstream = await self._worker(pool, port, reader)
            if upstream is None:
                return
            from_worker, to_worker = upstream
            try:
                to_worker.write(first)
                async with asyncio.TaskGroup() as both:
                    both.create_task(_pass_on(reader, to_worker))
                    both.create_task(_pass_on(from_worker, writer))
            finally:
                to_worker.close()
        except* (OSError, asyncio.IncompleteReadError):
            pass  # one side went away: so does the other
        finally:
            writer.close()

    async def _worker(
        self, pool: str, port: str, client: asyncio.StreamReader
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to a ready worker, as soon as there is one; None when the client has gone meanwhile."""
        entry = self._pools.get(pool)
        if entry is None:
            return None
        entry.waiting += 1
        self._on_knock(pool)
        try:
            while not client.at_eof() and client.exception() is None:
                ready = [w for w in self._ready(pool, entry) if w.address and port in w.ports]
                if ready:
                    worker = ready[next(self._turn) % len(ready)]
                    try:
                        async with asyncio.timeout(_CONNECT_SECONDS):
                            return await asyncio.open_connection(worker.address, worker.ports[port], limit=_CHUNK)
                    except (OSError, TimeoutError) as error:
                        log.info("%s: worker %s takes no connection yet: %s", pool, worker.name, error)
                await asyncio.sleep(_LOOK_SECONDS)
            return None
        finally:
            entry.waiting -= 1

    def _ready(self, pool: str, entry: _Pool) -> Sequence[Worker]:
        """Looked up once for all who wait."""
        now = asyncio.get_running_loop().time()
        if now - entry.looked_at >= _LOOK_SECONDS:
            entry.ready, entry.looked_at = self._workers(pool), now
        return entry.ready


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes from one side to the other, no faster than it takes them, and then the end of the stream."""
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
