"""`python -m demo`: exit code 0 only if every step was checked; 130 after Ctrl-C.  Nothing is left behind."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from berth_operator.cli.generation import GenerationError
from devcluster import KubectlError, ProcessError, ToolError

from demo.narrator import DemoError, Narrator
from demo.story import STEPS, Demo


def main() -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    narrator = Narrator(STEPS)
    logs = Path(tempfile.mkdtemp(prefix="berth-demo-"))
    demo = Demo(narrator, logs)
    code = 1
    try:
        demo.run()
        code = 0
    except KeyboardInterrupt:
        code = 130
        narrator.say("interrupted: taking everything down")
    except (DemoError, GenerationError, KubectlError, ProcessError, ToolError, OSError) as error:
        narrator.fail(error, demo.logs)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # taking down is not to be cut short
            signal.signal(number, signal.SIG_IGN)
        demo.close()
        if code == 1:
            narrator.say(f"logs are kept in {logs}")
        else:
            shutil.rmtree(logs, ignore_errors=True)
    return code


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
