"""How does a temporary folder go away even when its owner was killed?

Its owner holds a lock on a file inside; a folder whose lock is free has no owner, and the next run removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from pathlib import Path
from typing import IO

_PREFIX = "berth-devcluster-"
_LOCK = "owner.lock"


class ScratchFolder:
    """A folder of our own under the system's temporary one."""

    def __init__(self) -> None:
        _sweep()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = (self.path / _LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _sweep() -> None:
    """Remove the folders of owners that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), (folder / _LOCK).open("r") as lock:  # no lock: being made, or not ours
            if _free(lock):
                shutil.rmtree(folder, ignore_errors=True)


def _free(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
