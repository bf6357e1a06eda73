"""How do many clients share one model? A thread that schedules, runs and samples, step after step, and streams out."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from berth_worker.engine.active import Active
from berth_worker.engine.blocks import BlockManager, blocks_for
from berth_worker.engine.constraint import Constraint
from berth_worker.engine.cost import Load, StepCost
from berth_worker.engine.limits import EngineConfig, NotAcceptingError, allowed_tokens
from berth_worker.engine.pacing import Gaps, next_work
from berth_worker.engine.readmission import Readmission
from berth_worker.engine.report import Observer, Silent, Stats, StepReport
from berth_worker.engine.request import FinishReason, Request, SamplingParams
from berth_worker.engine.scheduler import QueueFullError, Scheduled, Scheduler
from berth_worker.engine.speculation import Acceptance, Drafter
from berth_worker.engine.step import run_step, warm_up
from berth_worker.engine.stream import AsyncStream, Chunk, Completion, SyncStream, merge

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from berth_worker.model.interface import Model, Tokenizer

__all__ = ["Engine"]

log = logging.getLogger(__name__)


class Engine:
    """One model, one KV cache, one thread. Every method can be called from any thread."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, config: EngineConfig, *, observer: Observer | None = None
    ) -> None:
        """Allocates the KV cache and runs the model once; `start` begins to serve.

        Raises ModelError if the cache does not fit in memory.
        """
        self.config = config
        self.tokenizer = tokenizer
        self.vocab_size = model.config.vocab_size
        self._blocks = BlockManager(blocks_for(config.kv_cache_tokens))
        self._scheduler = Scheduler(
            self._blocks,
            max_running=config.max_running,
            max_waiting=config.max_waiting,
            token_budget=config.token_budget,
            session_seconds=config.session_seconds,
        )
        self._model = model
        self._cache = model.new_cache(self._blocks.num_blocks)
        self._cost = StepCost()
        self._gaps = Gaps(config.gap_seconds, config.promised_gap_seconds)
        warm_up(model, self._cache, self._cost)
        self._acceptance = Acceptance()
        self._observer: Observer = observer or Silent()
        self._active: dict[Request, Active] = {}
        self._cancelled: set[Request] = set()
        self._lock = threading.Condition()
        """Guards the scheduler and all below; never held while the model runs."""
        self._accepting = True
        self._stopping = False
        self._failure: str | None = None
        self._refused = 0
        self._readmission = Readmission()
        self._step_began: float | None = None
        self._thread = threading.Thread(target=self._serve, name="berth-engine", daemon=True)

    # -- the outside -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str = "",
        priority: int = 0,
        session_id: str = "",
        constraint: Constraint | None = None,
    ) -> AsyncStream:
        """Queue a request from an event loop and return its stream at once.

        request_id is for logs alone and need not be unique; constraint belongs to this request from now on. Raises
        InvalidRequestError, QueueFullError, NotAcceptingError.
        """
        request = self._request(prompt, params, request_id, priority, session_id)
        stream = AsyncStream(request.id, lambda: self._cancel(request))
        self._enter(request, stream, constraint)
        return stream

    def generate(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        session_id: str = "",
        constraint: Constraint | None = None,
    ) -> Completion:
        """Run a request to its end and block meanwhile. Raises as `submit` does, and RuntimeError if it failed."""
        stream = SyncStream()
        self._enter(self._request(prompt, params, "", 0, session_id), stream, constraint)
        whole = merge(stream)
        assert whole.finish is not None  # noqa: S101 - the last chunk has it
        if whole.finish.error:
            raise RuntimeError(whole.finish.error)
        return Completion(whole.text, whole.token_ids, whole.finish, whole.logprobs)

    def refuse_new(self) -> None:
        """From now on `submit` raises NotAcceptingError; what is queued or runs goes on."""
        with self._lock:
            self._accepting = False

    @property
    def idle(self) -> bool:
        """Nothing runs or waits."""
        return not self._active

    def stop(self, timeout: float = 10.0) -> int:
        """End the thread after the step that runs; what has not finished is aborted. Returns how many that were."""
        with self._lock:
            self._accepting = False
            self._stopping = True
            cut = len(self._active)
            self._lock.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return cut

    def stats(self) -> Stats:
        """Counts of this moment."""
        with self._lock:
            scheduler, blocks = self._scheduler, self._blocks
            if self._failure is None:
                scheduler.tick(time.monotonic())
            return Stats(
                running=len(scheduler.running),
                waiting=len(scheduler.waiting),
                blocks_held=blocks.held,
                blocks=blocks.num_blocks,
                sessions_retained=len(scheduler.sessions),
                blocks_retained=blocks.retained,
                refused=self._refused,
            )

    def unhealthy(self) -> str | None:
        """Why the engine cannot serve any more: its thread has failed, or a step is stuck. None while it can."""
        began = self._step_began
        if self._failure is not None:
            return f"engine failed: {self._failure}"
        if began is not None and (taken := time.monotonic() - began) > self.config.stall_seconds:
            return f"engine stuck: a step runs for {taken:.0f} s, more than {self.config.stall_seconds:g} s"
        return None

    # -- admission and cancellation ----------------------------------------------------------------------------------

    def _request(
        self, prompt: Sequence[int], params: SamplingParams, request_id: str, priority: int, session_id: str
    ) -> Request:
        return Request(
            id=request_id or uuid.uuid4().hex,
            tokens=list(prompt),
            params=params,
            max_tokens=allowed_tokens(self.config, self.vocab_size, prompt, params),
            priority=priority,
            session_id=session_id,
            arrived=time.monotonic(),
        )

    def _enter(self, request: Request, stream: AsyncStream | SyncStream, constraint: Constraint | None) -> None:
        drafts = self.config.speculation != "off"
        drafter = Drafter(request, Acceptance(self._acceptance), constraint) if drafts else None
        active = Active.start(request, self.tokenizer, stream, drafter, constraint)
        with self._lock:
            if self._failure is not None:
                raise NotAcceptingError(f"engine failed: {self._failure}")
            if not self._accepting:
                raise NotAcceptingError("the worker is going down; ask another one")
            try:
                self._scheduler.add(request)
            except QueueFullError as error:
                self._refused += 1
                now = time.monotonic()
                running = [now - r.admitted for r in self._scheduler.running if r.admitted is not None]
                error.retry_seconds = self._readmission.seconds(now, running)
                raise
            self._active[request] = active
            self._lock.notify_all()

    def _cancel(self, request: Request) -> None:
        """End a request early, if it is still here; its blocks are free after the step that runs."""
        with self._lock:
            if request in self._active:
                self._cancelled.add(request)
                self._lock.notify_all()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while self._wait_for_work():
                self._step()
            self._end_all(FinishReason.ABORT, "the worker went down before the request had finished; ask another one")
        except BaseException as error:
            log.exception("the engine failed; every request of this worker ends here")
            with self._lock:
                self._failure = f"{type(error).__name__}: {error}"
            self._end_all(FinishReason.ERROR, f"engine failed: {self._failure}")

    def _wait_for_work(self) -> bool:
        """Block until there is a step to run; False when it is time to stop."""
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._stopping or self._cancelled or not self._scheduler.idle)
                if self._stopping:
                    return False
                cancelled = [self._active[request] for request in self._cancelled if request in self._active]
                self._cancelled.clear()
                more = not self._scheduler.idle
            for active in cancelled:
                active.ended = FinishReason.ABORT
            self._deliver([(active, self._end(active)) for active in cancelled])
            if more:
                return True

    def _step(self) -> None:
        began = time.monotonic()
        scheduler = self._scheduler
        with self._lock:
            scheduler.tick(began)
            before = (scheduler.preemptions, scheduler.prefix_queried, scheduler.prefix_hits)
            work = next_work(scheduler, self._cost, self._gaps, lambda r: self._active[r].drafter)
            report = StepReport(
                rows=sum([item.rows for item in work]),
                preemptions=scheduler.preemptions - before[0],
                prefix_queried=scheduler.prefix_queried - before[1],
                prefix_hits=scheduler.prefix_hits - before[2],
            )
        if not work:
            return
        load = Load()
        self._step_began = now = time.monotonic()
        for item in work:
            load.add(item.start, item.rows, 1 + len(item.draft) if item.samples else 0)
            if item.request.admitted is None:
                item.request.admitted = now
        try:
            logits, best = run_step(self._model, self._cache, work, scheduler.copies)
        finally:
            self._step_began = None
        now = time.monotonic()
        moved, row = [], 0
        for item in work:
            if item.samples:
                end = row + 1 + len(item.draft)
                moved.append((item, *self._advance(item, logits[row:end], best[row:end], now, report)))
                row = end
        with self._lock:
            scheduler.complete(work)
        chunks = [(active, self._end(active, chunk) if active.ended else chunk) for _, active, chunk in moved]
        self._observer.step(report)
        self._deliver(chunks)
        self._cost.observe(load, time.monotonic() - began)

    def _advance(
        self, item: Scheduled, logits: NDArray[np.float32], best: Sequence[int], now: float, report: StepReport
    ) -> tuple[Active, Chunk]:
        """What comes next of a request; one that fails ends alone, the others go on."""
        active = self._active[item.request]
        try:
            return active, active.advance(logits, best, item.draft, now, report)
        except Exception as error:
            log.exception("request %s failed", item.request.id)
            active.ended = FinishReason.ERROR
            active.error = f"{type(error).__name__}: {error}"
            return active, Chunk("", ())

    def _end(self, active: Active, last: Chunk | None = None) -> Chunk:
        """Take a request out, free its blocks, and make its last chunk."""
        request = active.request
        with self._lock:
            if self._failure is None:  # else the scheduler may be in the middle of a step
                self._scheduler.finish(request)
            self._active.pop(request, None)
            now = time.monotonic()
            if request.admitted is not None:
                self._readmission.ended(now - request.admitted)
            self._lock.notify_all()
        finish = active.finish(now)
        self._observer.finished(finish, now - request.arrived)
        return dataclasses.replace(last or Chunk("", ()), finish=finish)

    def _end_all(self, reason: FinishReason, error: str) -> None:
        with self._lock:
            self._accepting = False
            left = list(self._active.values())
        for active in left:
            active.ended, active.error = reason, error
        self._deliver([(active, self._end(active)) for active in left])

    def _deliver(self, chunks: Sequence[tuple[Active, Chunk]]) -> None:
        """Hand chunks to their readers: one wake-up of each event loop, however many of its streams move."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[AsyncStream, Chunk]]] = defaultdict(list)
        for active, chunk in chunks:
            if isinstance(active.stream, AsyncStream):
                by_loop[active.stream.loop].append((active.stream, chunk))
            else:
                active.stream.put(chunk)
        for loop, moved in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
                loop.call_soon_threadsafe(_put_all, moved)


def _put_all(moved: Sequence[tuple[AsyncStream, Chunk]]) -> None:
    for stream, chunk in moved:
        stream.put(chunk)
