"""What happens to one request in a step?  Its next tokens are sampled, become text, and may end it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from berth_worker.engine.constraint import Constraint
from berth_worker.engine.report import StepReport
from berth_worker.engine.request import FinishReason, Request
from berth_worker.engine.sampling import Sampler, TokenLogprobs
from berth_worker.engine.speculation import Drafter
from berth_worker.engine.stop import StopText
from berth_worker.engine.stream import AsyncStream, Chunk, Finish, SyncStream

if TYPE_CHECKING:
    from berth_worker.model.interface import Tokenizer

__all__ = ["Active"]


@dataclass(slots=True, eq=False)
class Active:
    """A request that waits or runs, and who reads it."""

    request: Request
    text: StopText
    sampler: Sampler
    stream: AsyncStream | SyncStream
    ends: frozenset[int]
    """Tokens that end the request."""
    drafter: Drafter | None = None
    constraint: Constraint | None = None
    """What the output may be."""
    ended: FinishReason | None = None
    """Why generation has come to its end, once it has."""
    error: str = ""

    @staticmethod
    def start(
        request: Request,
        tokenizer: Tokenizer,
        stream: AsyncStream | SyncStream,
        drafter: Drafter | None,
        constraint: Constraint | None = None,
    ) -> Active:
        """A request whose stream is about to be read."""
        params = request.params
        ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else tokenizer.eos_ids)
        text = StopText(tokenizer.stream(), params.stop)
        return Active(request, text, Sampler(request, ends, constraint), stream, ends, drafter, constraint)

    def advance(
        self, logits: NDArray[np.float32], best: Sequence[int], draft: Sequence[int], now: float, report: StepReport
    ) -> Chunk:
        """Add what comes next to the request's tokens, and return it.

        logits: float32 [1 + len(draft), vocab], of the request's last token and of each drafted one; best: the greatest
        of each row. Row by row the token is sampled as if there were no draft; the first that differs from it, or that
        ends the request, is the last. Raises NonFiniteLogitsError, ConstraintError.
        """
        request, came, text = self.request, [], ""
        logprobs: list[TokenLogprobs] = []
        for row, greatest, drafted in zip(logits, best, (*draft, None), strict=True):
            token = self.sampler.next(row, greatest)
            if request.params.logprobs is not None:
                logprobs.append(self.sampler.logprobs(row, token, request.params.logprobs))
            request.tokens.append(token)
            came.append(token)
            text += self.text.push(token)
            if token in self.ends or self.text.stopped or self._whole(token):
                self.ended = FinishReason.STOP
            elif request.generated >= request.max_tokens:
                self.ended = FinishReason.LENGTH
            if token != drafted or self.ended:
                break
        if self.ended:
            text += self.text.flush()
        if self.drafter is not None:
            self.drafter.judge(came)
        self._record(len(came), now, report)
        report.drafted += len(draft)
        report.accepted += len(came) - 1
        return Chunk(text, tuple(came), tuple(logprobs))

    def _whole(self, token: int) -> bool:
        """Whether with this token all has come that may."""
        if self.constraint is None:
            return False
        self.constraint.accept(token)
        return self.constraint.ended

    def _record(self, count: int, now: float, report: StepReport) -> None:
        request = self.request
        report.generated += count
        if request.first_token is None:
            request.first_token = now
            report.prompt_tokens += request.prompt_tokens
            report.first_token_seconds.append(now - request.arrived)
        elif request.last_token is not None:
            report.gap_seconds.append(now - request.last_token)
        request.last_token = now

    def finish(self, now: float) -> Finish:
        """How the request ended; `ended` is set."""
        request = self.request
        assert self.ended is not None  # noqa: S101
        request.finish_reason = self.ended
        admitted = now if request.admitted is None else request.admitted
        first = admitted if request.first_token is None else request.first_token
        return Finish(
            reason=self.ended,
            prompt_tokens=request.prompt_tokens,
            cached_prompt_tokens=request.cached_tokens,
            completion_tokens=request.generated,
            queue_seconds=admitted - request.arrived,
            prefill_seconds=first - admitted,
            decode_seconds=(first if request.last_token is None else request.last_token) - first,
            error=self.error,
        )
