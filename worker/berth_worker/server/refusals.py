"""How does an OpenAI client learn that it is not answered, why, and when to ask again?"""

from __future__ import annotations

import math
import random
from typing import Any

from starlette.responses import JSONResponse

from berth_worker.server.openai_reply import error_body

__all__ = ["RefusedError"]


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        *,
        retry_seconds: float | None = None,
    ) -> None:
        """retry_seconds: when to ask again, of a 429 or 503; None: soon, for another worker may be asked at once."""
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self._retry_seconds = retry_seconds

    def body(self) -> dict[str, Any]:
        """In OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return error_body(str(self), "rate_limit_error" if self.status == 429 else kind, self.param, self.code)

    def response(self) -> JSONResponse:
        """Of a request that was not begun to be answered."""
        return JSONResponse(self.body(), self.status, self._elsewhere() if self.status in (429, 503) else None)

    def _elsewhere(self) -> dict[str, str]:
        """A client tries again on the connection that it has, so here, unless it is closed: another may have room.

        `Retry-After` has whole seconds alone (RFC 9110, 10.2.3); OpenAI's clients read `retry-after-ms` first.
        """
        seconds = random.uniform(0.5, 1) if self._retry_seconds is None else self._retry_seconds  # noqa: S311 - no secret
        milliseconds = math.ceil(1000 * seconds)
        after = str(math.ceil(milliseconds / 1000))
        return {"retry-after": after, "retry-after-ms": str(milliseconds), "connection": "close"}
