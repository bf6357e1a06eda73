"""How does a person, or a CI log, see that a long step is alive?

On a terminal one line counts the seconds; elsewhere a line comes when the step starts, every half minute, and at its
end.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

_SPEAK_EVERY_S = 30.0


class Progress:
    """One step: ``with Progress("building etcd 3.6.5") as progress: ... progress.tick()``."""

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self._label = label
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._started = self._spoke = time.monotonic()

    def __enter__(self) -> Progress:
        self._say("...")
        return self

    def tick(self) -> None:
        """Call about once a second while the step lasts."""
        now = time.monotonic()
        if self._live or now - self._spoke >= _SPEAK_EVERY_S:
            self._spoke = now
            self._say(f"... {now - self._started:.0f} s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ending = "done" if kind is None else "failed"
        self._say(f"{ending} in {time.monotonic() - self._started:.1f} s", last=True)

    def _say(self, text: str, *, last: bool = False) -> None:
        start, end = ("\r\x1b[K", "\n" if last else "") if self._live else ("", "\n")
        self._stream.write(f"{start}  {self._label} {text}{end}")
        self._stream.flush()
