"""When does the operator start, end, and count as alive?  kopf's decorators and nothing else.

kopf runs the process: signals, start-up and clean-up, the liveness endpoint.  It watches nothing.  State comes from the
reflectors in `cluster/`, and they must also be what wakes the loop: woken by kopf's own watch, the loop could look
before the reflector has seen the change, and sleep over it.  A second watch of the same objects would then cost a
stream a kind, a task an event and a second way to fail, and bring nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from berth_operator.kopf_import import kopf


class Operator(Protocol):
    """What kopf starts, stops and asks."""

    async def start(self) -> None:
        """Begin; returns at once."""

    async def stop(self) -> None:
        """End what `start` began, also when it began only half."""

    async def connection(self) -> kopf.ConnectionInfo:
        """How to reach the API server, and as whom."""
        ...

    def health(self) -> str:
        """A word on how it is; raises when only a restart helps."""
        ...


class _Forever:
    """Delays between attempts to reach the API server: waiting for it is better than exiting."""

    def __iter__(self) -> Iterator[float]:
        delay = 1.0
        while True:
            yield delay
            delay = min(2 * delay, 10.0)


@kopf.on.startup()
async def start(settings: kopf.OperatorSettings, memo: Operator, **_: Any) -> None:
    """Settle what kopf must not do on its own, then start following the cluster."""
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.networking.error_backoffs = _Forever()
    await memo.start()


@kopf.on.login()
async def login(memo: Operator, **_: Any) -> kopf.ConnectionInfo:
    """For the one thing that kopf asks the API server: whether it is there."""
    return await memo.connection()


@kopf.on.cleanup()
async def stop(memo: Operator, **_: Any) -> None:
    """Stop writing, give up the Lease, close connections."""
    await memo.stop()


@kopf.on.probe(id="loop")
async def alive(memo: Operator, **_: Any) -> str:
    """What the liveness endpoint says; a loop that is stuck makes it answer 500."""
    return memo.health()
