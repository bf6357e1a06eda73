"""How does the demo run a server of ours beside the control plane: started, awaited, asked to leave?"""

from __future__ import annotations

import errno
import os
import platform
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from devcluster.processes import Process, kill

from demo.narrator import DemoError


class Program(Process):
    """A server that can be asked to leave, unlike what is thrown away at the end."""

    _asked = False

    def terminate(self, timeout_s: float) -> int:
        """Ask it to leave and return the exit code.  Raises DemoError when it stays."""
        self.ask_to_leave()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            kill([self])
            raise DemoError(f"{self.name} (process {self.pid}) did not leave {timeout_s:g} s after SIGTERM") from None

    def ask_to_leave(self) -> None:
        """Send SIGTERM, once, and go on: a second one means to leave without draining."""
        if self.running and not self._asked:
            self._asked = True
            os.kill(self.pid, signal.SIGTERM)


def start(name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Program:
    """Start a server whose output goes to `log`."""
    return Program(name, command, log, environment)


def answers(url: str) -> bool:
    """Whether an HTTP server on this machine answers 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_loopback_address(*ports: int) -> str:
    """A loopback address on which all these ports are free.  Raises DemoError when there is none."""
    for address in ("127.0.0.1", *(f"127.0.77.{n}" for n in range(1, 20))):
        if all(_free(address, port) for port in ports):
            return address
    raise DemoError(f"ports {' and '.join(map(str, ports))} are taken on every loopback address: stop what uses them")


def _free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
                return False
            raise
    return True


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def this_machine() -> str:
    """What this machine is, in a few words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{usable_cpus()} CPUs of {model} ({platform.machine()}, {platform.system()})"


def peak_memory_gib(pid: int) -> int:
    """The most memory that a process has held, in whole GiB, rounded up."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return -(-int(line.split()[1]) // (1 << 20))
    raise DemoError(f"/proc/{pid}/status has no VmHWM")
