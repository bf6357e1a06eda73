"""Which writes failed a moment ago, and when may each be tried again?  One growing delay for each object."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Hashable
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import Final

from berth_operator.cluster.kube import ApiError

log = logging.getLogger(__name__)

_DELAY_SECONDS: Final = (1.0, 60.0)


class ForeignObjectError(Exception):
    """An object of the name that we need exists and belongs to somebody else."""


class Result(StrEnum):
    """What became of one write."""

    WRITTEN = "Written"
    SAME = "Same"
    FAILED = "Failed"
    HELD = "Held"
    """Not tried, as it failed a moment ago; or too late, as the object has changed: the next pass sees how."""


@dataclass(frozen=True, slots=True)
class _Failure:
    until: float
    delay_s: float
    message: str
    reason: str
    """CamelCase, where repeating alone will not mend it; empty where it may."""


@dataclass(slots=True)
class Attempts:
    """Memory of failures, by object."""

    clock: Callable[[], float] = time.monotonic
    _failures: dict[Hashable, _Failure] = field(default_factory=dict)

    async def attempt(self, key: Hashable, what: str, write: Callable[[], Awaitable[bool]]) -> Result:
        """Run `write`, which returns whether it wrote, unless it failed a moment ago.

        An ApiError or ForeignObjectError is logged (once as a warning as long as it stays the same) and remembered;
        anything else is raised.
        """
        failure = self._failures.get(key)
        if failure and failure.until > self.clock():
            return Result.HELD
        try:
            written = await write()
        except (ApiError, ForeignObjectError) as error:
            if isinstance(error, ApiError) and error.status == HTTPStatus.CONFLICT:
                log.debug("%s: %s", what, error)
                return Result.HELD
            self._remember(key, what, error)
            return Result.FAILED
        if self._failures.pop(key, None):
            log.info("%s: succeeded after failures", what)
        return Result.WRITTEN if written else Result.SAME

    def retry_in_s(self) -> float | None:
        """Seconds until the first failed object may be tried again; None when there is none."""
        soonest = min((failure.until for failure in self._failures.values()), default=None)
        return None if soonest is None else max(0.0, soonest - self.clock())

    def refused(self) -> dict[Hashable, tuple[str, str]]:
        """(reason, message) of the failures that somebody has to mend, by object."""
        return {key: (failure.reason, failure.message) for key, failure in self._failures.items() if failure.reason}

    def keep_only(self, keys: Collection[Hashable]) -> None:
        """Forget objects that nobody wants written any more."""
        for key in self._failures.keys() - set(keys):
            del self._failures[key]

    def _remember(self, key: Hashable, what: str, error: ApiError | ForeignObjectError) -> None:
        message = str(error)
        reason = "NameTaken" if isinstance(error, ForeignObjectError) else "" if error.transient else "Refused"
        before = self._failures.get(key)
        first, most = _DELAY_SECONDS
        delay = min(before.delay_s * 2, most) if before else first
        self._failures[key] = _Failure(self.clock() + delay, delay, message, reason)
        level = logging.DEBUG if before and before.message == message else logging.WARNING
        log.log(level, "%s: %s; trying again in %.0f s", what, message, delay)
