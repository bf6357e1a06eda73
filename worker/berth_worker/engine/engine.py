"""How do many clients share one model? A thread that schedules, runs and samples, step after step, and streams out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from berth_worker.engine.blocks import BlockManager, blocks_for
from berth_worker.engine.limits import EngineConfig, NotAcceptingError, allowed_tokens
from berth_worker.engine.report import Observer, Silent, Stats, StepReport
from berth_worker.engine.request import FinishReason, Request, SamplingParams
from berth_worker.engine.sampling import StopText, sample
from berth_worker.engine.scheduler import Scheduled, Scheduler
from berth_worker.engine.step import run_step, warm_up
from berth_worker.engine.stream import AsyncStream, Chunk, Completion, Finish, SyncStream, merge

if TYPE_CHECKING:
    from berth_worker.model.interface import Model, Tokenizer

__all__ = ["Engine"]

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Active:
    request: Request
    text: StopText
    stream: AsyncStream | SyncStream


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
        )
        self._model = model
        self._cache = model.new_cache(self._blocks.num_blocks)
        warm_up(model, self._cache)
        self._observer: Observer = observer or Silent()
        self._active: dict[Request, _Active] = {}
        self._cancelled: set[Request] = set()
        self._lock = threading.Condition()
        """Guards the scheduler and all below; never held while the model runs."""
        self._accepting = True
        self._stopping = False
        self._failure: str | None = None
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
    ) -> AsyncStream:
        """Queue a request from an event loop and return its stream at once.

        request_id is for logs alone and need not be unique. Raises InvalidRequestError, QueueFullError,
        NotAcceptingError.
        """
        request = self._request(prompt, params, request_id, priority, session_id)
        stream = AsyncStream(request.id, lambda: self._cancel(request))
        self._enter(request, stream)
        return stream

    def generate(self, prompt: Sequence[int], params: SamplingParams, *, session_id: str = "") -> Completion:
        """Run a request to its end and block meanwhile. Raises as `submit` does, and RuntimeError if it failed."""
        stream = SyncStream()
        self._enter(self._request(prompt, params, "", 0, session_id), stream)
        whole = merge(stream)
        assert whole.finish is not None  # noqa: S101 - the last chunk has it
        if whole.finish.error:
            raise RuntimeError(whole.finish.error)
        return Completion(whole.text, whole.token_ids, whole.finish)

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
            scheduler = self._scheduler
            return Stats(len(scheduler.running), len(scheduler.waiting), self._blocks.held, self._blocks.num_blocks)

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

    def _enter(self, request: Request, stream: AsyncStream | SyncStream) -> None:
        active = _Active(request, StopText(self.tokenizer.stream(), request.params.stop), stream)
        with self._lock:
            if self._failure is not None:
                raise NotAcceptingError(f"engine failed: {self._failure}")
            if not self._accepting:
                raise NotAcceptingError("the worker is going down; ask another one")
            self._scheduler.add(request)
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
            self._deliver([(active, self._end(active, FinishReason.ABORT)) for active in cancelled])
            if more:
                return True

    def _step(self) -> None:
        scheduler = self._scheduler
        with self._lock:
            before = (scheduler.preemptions, scheduler.prefix_queried, scheduler.prefix_hits)
            work = scheduler.schedule()
            report = StepReport(
                rows=sum(item.count for item in work),
                preemptions=scheduler.preemptions - before[0],
                prefix_queried=scheduler.prefix_queried - before[1],
                prefix_hits=scheduler.prefix_hits - before[2],
            )
        if not work:
            return
        now = time.monotonic()
        for item in work:
            if item.request.admitted is None:
                item.request.admitted = now
        self._step_began = now
        try:
            logits = run_step(self._model, self._cache, work)
        finally:
            self._step_began = None
        now = time.monotonic()
        sampling: list[Scheduled] = [item for item in work if item.samples]
        with self._lock:
            scheduler.complete(work)
        chunks = []
        for item, row in zip(sampling, logits, strict=True):
            active = self._active[item.request]
            try:
                chunk = self._advance(active, sample(row, item.request), now, report)
            except Exception as error:  # this request's alone: the others go on
                log.exception("request %s failed", item.request.id)
                chunk = self._end(active, FinishReason.ERROR, error=f"{type(error).__name__}: {error}")
            chunks.append((active, chunk))
        self._observer.step(report)
        self._deliver(chunks)

    def _advance(self, active: _Active, token: int, now: float, report: StepReport) -> Chunk:
        """Add a token to a request, and end it if that is its last."""
        request = active.request
        request.tokens.append(token)
        report.generated += 1
        if request.first_token is None:
            request.first_token = now
            report.prompt_tokens += request.prompt_tokens
            report.first_token_seconds.append(now - request.arrived)
        elif request.last_token is not None:
            report.gap_seconds.append(now - request.last_token)
        request.last_token = now
        text = active.text.push(token)
        ends = token in request.params.stop_token_ids or (
            token in self.tokenizer.eos_ids and not request.params.ignore_eos
        )
        if ends or active.text.stopped:
            return self._end(active, FinishReason.STOP, text=text, token=token)
        if request.generated >= request.max_tokens:
            return self._end(active, FinishReason.LENGTH, text=text, token=token)
        return Chunk(text, (token,))

    def _end(
        self, active: _Active, reason: FinishReason, *, text: str = "", token: int | None = None, error: str = ""
    ) -> Chunk:
        """Take a request out, free its blocks, and make its last chunk."""
        request = active.request
        request.finish_reason = reason
        text += active.text.flush() if reason in {FinishReason.STOP, FinishReason.LENGTH} else ""
        with self._lock:
            if self._failure is None:  # else the scheduler may be in the middle of a step
                self._scheduler.finish(request)
            self._active.pop(request, None)
            self._lock.notify_all()
        now = time.monotonic()
        admitted = now if request.admitted is None else request.admitted
        first = admitted if request.first_token is None else request.first_token
        finish = Finish(
            reason=reason,
            prompt_tokens=request.prompt_tokens,
            cached_prompt_tokens=request.cached_tokens,
            completion_tokens=request.generated,
            queue_seconds=admitted - request.arrived,
            prefill_seconds=first - admitted,
            decode_seconds=(first if request.last_token is None else request.last_token) - first,
            error=error,
        )
        self._observer.finished(finish, now - request.arrived)
        return Chunk(text, () if token is None else (token,), finish)

    def _end_all(self, reason: FinishReason, error: str) -> None:
        with self._lock:
            self._accepting = False
            left = list(self._active.values())
        self._deliver([(active, self._end(active, reason, error=error)) for active in left])

    def _deliver(self, chunks: Sequence[tuple[_Active, Chunk]]) -> None:
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
