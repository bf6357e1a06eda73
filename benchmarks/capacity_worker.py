"""What does each step of a worker do, and when?  `berth-worker`, with its steps and requests recorded.

`python capacity_worker.py FILE ARGUMENTS...`: records go to FILE.steps and FILE.requests, eight and six doubles each,
as `capacity_trace` reads them; times are those of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from typing import Any

from berth_worker.engine import engine as module
from berth_worker.engine.cost import Load
from berth_worker.engine.engine import Engine
from berth_worker.engine.scheduler import Scheduled, Scheduler
from berth_worker.engine.stream import Chunk
from berth_worker.server.main import main

_STEP, _REQUEST = struct.Struct("8d"), struct.Struct("6d")


def record(path: str) -> None:
    """From now on, engines of this process write down what they do."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    steps, requests = (os.open(f"{path}.{kind}", flags) for kind in ("steps", "requests"))
    next_work, step, end = module.next_work, Engine._step, Engine._end
    last: list[float] = []

    def noting_work(scheduler: Scheduler, *rest: Any) -> list[Scheduled]:
        work = next_work(scheduler, *rest)
        decodes = sum(item.request.decoding for item in work)
        load = Load()
        for item in work:
            load.add(item.start, item.rows, 0)
        inside = len(scheduler.running) + len(scheduler.waiting)
        last[:] = [decodes, load.rows - decodes, len(work) - decodes, load.attended, inside, len(scheduler.waiting)]
        return work

    def noting_step(self: Engine) -> None:
        began = time.monotonic()
        step(self)
        os.write(steps, _STEP.pack(began, time.monotonic(), *last))

    def noting_end(self: Engine, active: Any, last: Chunk | None = None) -> Chunk:
        chunk = end(self, active, last)
        request = active.request
        times = (request.arrived, request.admitted, request.first_token, request.last_token)
        figures = [time or 0.0 for time in times]
        os.write(requests, _REQUEST.pack(*figures, request.prompt_tokens, request.cached_tokens))
        return chunk

    module.next_work = noting_work
    Engine._step = noting_step  # type: ignore[method-assign]
    Engine._end = noting_end  # type: ignore[method-assign]


if __name__ == "__main__":
    record(sys.argv[1])
    main(sys.argv[2:])
