"""What does every step stand on?  The control plane, the servers beside it, and the commands that are shown."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from devcluster import ControlPlane, ensure
from devcluster.recipes import MODULES

from demo.narrator import DemoError, Narrator
from demo.programs import Program, start

ROOT: Final = MODULES.parent

Manifest = dict[str, Any]


class Stage:
    """Brings parts up and takes them down; `close` may be called at any time."""

    def __init__(self, narrator: Narrator, logs: Path) -> None:
        self._tell = narrator
        self._logs = logs
        self._stack = ExitStack()
        self._cluster = ControlPlane()
        self._programs: list[Program] = []
        self._pids: list[int] = []

    @property
    def logs(self) -> list[Path]:
        """Logs of the operator and the worker, as far as they came."""
        return [program.log for program in self._programs]

    def close(self) -> None:
        """End every process and remove every file, at once."""
        for program in self._programs:
            program.ask_to_leave()
        for program in self._programs:
            try:
                program.terminate(timeout_s=10)
            except DemoError as error:
                self._tell.say(str(error))
        self._programs = []
        self._stack.close()

    def _bring_up(self) -> None:
        """The control plane, and the environment of everything that is run against it."""
        self._tools = ensure(["kubectl", "helm"])
        self._stack.enter_context(self._cluster)
        self._pids += self._cluster.pids.values()
        self._env = self._environment(self._cluster.kubeconfig)

    def _start(self, name: str, command: list[str], environment: Mapping[str, str]) -> Program:
        program = start(name, command, self._logs / f"{name}.log", environment)
        self._programs.append(program)
        self._pids.append(program.pid)
        return program

    def _await(self, what: str, condition: Callable[[], object], timeout_s: float = 30) -> None:
        def checked() -> object:
            for program in self._programs:
                program.check()
            return condition()

        self._cluster.wait_for(what, checked, timeout_s)

    def _environment(self, kubeconfig: Path | None) -> dict[str, str]:
        """Of what we start: our tools first on PATH, no proxy, and a home that goes with the cluster."""
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.lower().endswith("_proxy") and not k.startswith(("BERTH_", "KUBE", "HELM_"))
        }
        folders = [str(Path(sys.executable).parent), *(str(path.parent) for path in self._tools.values())]
        kept["PATH"] = os.pathsep.join([*dict.fromkeys(folders), kept.get("PATH", os.defpath)])
        kept["HOME"] = str(self._cluster.folder)
        if shutil.which("kubectl", path=kept["PATH"]) is None:
            raise DemoError("kubectl was built and cannot be found")
        return kept | ({"KUBECONFIG": str(kubeconfig)} if kubeconfig else {})

    def _kubectl(self, *args: str, quiet: bool = False, fails: bool = False) -> str:
        return self._run("kubectl", *args, quiet=quiet, fails=fails)

    def _run(
        self,
        *command: str,
        quiet: bool = False,
        live: bool = False,
        fails: bool = False,
        redirected_to: str = "",
    ) -> str:
        return self._tell.run(
            *command,
            env=self._env,
            cwd=ROOT,
            quiet=quiet,
            live=live,
            fails=fails,
            redirected_to=redirected_to,
        )
