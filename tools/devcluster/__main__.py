"""``python -m devcluster build [TOOL...]`` and ``python -m devcluster up``: the same things by hand."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from devcluster.binaries import ensure
from devcluster.controlplane import ControlPlane
from devcluster.processes import ProcessError
from devcluster.recipes import BINARIES, ToolError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m devcluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build what is missing, and print the path of each tool")
    build.add_argument("tools", nargs="*", metavar="TOOL", help=f"of {', '.join(BINARIES)} (default: all)")
    commands.add_parser("up", help="run a control plane until Ctrl-C")
    options = parser.parse_args(arguments)
    try:
        return _build(options.tools) if options.command == "build" else _up()
    except (ToolError, ProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _build(names: Sequence[str]) -> int:
    for name, path in ensure(names or BINARIES).items():
        print(f"{name}\t{path}")
    return 0


def _up() -> int:
    signal.signal(signal.SIGTERM, _interrupt)  # so that 'kill' cleans up as Ctrl-C does
    began = time.monotonic()
    with ControlPlane() as cluster:
        print(f"# up in {time.monotonic() - began:.1f} s; logs in {cluster.logs_dir}; Ctrl-C takes it down", flush=True)
        print(f"export KUBECONFIG={cluster.kubeconfig}", flush=True)
        try:
            while True:
                cluster.check()
                time.sleep(1)
        except KeyboardInterrupt:
            return 0


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
