"""How is a server process started, watched and ended, so that none is ever left behind?"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.05


class ProcessError(RuntimeError):
    """A process died, or did not become ready in time; the message ends with the tail of its log."""


def die_with_parent() -> Callable[[], None] | None:
    """A ``preexec_fn`` that has Linux kill the child when the *thread* that started it ends.

    So start processes from the main thread. Elsewhere than on Linux there is no such thing, and None is returned.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before the fork: after it only the call itself is safe
    parent = os.getpid()

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return arm


class Process:
    """One server in a session of its own, so that Ctrl-C at a terminal reaches only us and we end it in order."""

    def __init__(self, name: str, command: Sequence[str | Path], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        self._command = [str(part) for part in command]
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                self._command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                preexec_fn=die_with_parent(),  # noqa: PLW1509  safe: see there
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def check(self) -> None:
        """Raise if it has died."""
        code = self._process.poll()
        if code is not None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited {code}"
            raise ProcessError(f"{self.name} (process {self.pid}) {how}; the end of its log:\n{self.log_tail()}")

    def log_tail(self, lines: int = 20) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (empty)"


def kill(processes: Iterable[Process]) -> None:
    """End processes at once, all together: what they hold is thrown away, so there is nothing to save."""
    ending = list(processes)
    for process in ending:
        if process.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    for process in ending:
        process._process.wait()


def own_environment() -> dict[str, str]:
    """This process's environment for a program that talks to others of this machine: without proxies."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def wait_for(what: str, condition: Callable[[], T], timeout_s: float = 30.0, watch: Iterable[Process] = ()) -> T:
    """Poll until ``condition`` returns something true, and return that; fail at once if a watched process dies."""
    watched = list(watch)
    deadline = time.monotonic() + timeout_s
    while True:
        for process in watched:  # first: what answers on a dead process's port is another's
            process.check()
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            logs = "".join(f"\nthe end of the log of {process.name}:\n{process.log_tail()}" for process in watched)
            raise ProcessError(f"{what}: not so after {timeout_s:g} s{logs}")
        time.sleep(_POLL_S)
