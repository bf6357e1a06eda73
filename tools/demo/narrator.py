"""How does a person follow what happens?  Numbered steps, the commands as they are run, and what was checked."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

_WIDTH_WITHOUT_TERMINAL = 120
_COMMAND_SECONDS = 150


class DemoError(Exception):
    """A step did not do what it must; the message says which, and what was found."""


class Narrator:
    """Prints the story and runs the commands in it.  Everything it says is on stdout, in order."""

    def __init__(self, steps: int) -> None:
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH_WITHOUT_TERMINAL
        self.console = Console(width=width, highlight=False)
        self._steps = steps
        self._number = 0
        self._checks = 0
        self._began = time.monotonic()
        self._durations: list[tuple[str, float]] = []

    @contextmanager
    def step(self, title: str, *words: str) -> Iterator[None]:
        """One step: its title, what it is for, and at its end how long it took."""
        self._number += 1
        self._checks = 0
        self.console.print()
        self.console.print(
            Rule(Text(f" {self._number}/{self._steps}  {title} ", "bold cyan"), align="left", style="cyan")
        )
        for text in words:
            self.say(text)
        began = time.monotonic()
        yield
        if not self._checks:
            raise DemoError(f"step {self._number} ({title}) checked nothing")
        seconds = time.monotonic() - began
        self._durations.append((title, seconds))
        self.console.print(Text(f"  {seconds:.1f} s", "dim"))

    def say(self, text: str) -> None:
        """A sentence of the story."""
        self.console.print(Padding(Text(text), (0, 0, 0, 2), expand=False))

    def show(self, text: str) -> None:
        """Output of a program, as it is; lines longer than the terminal run on."""
        for line in text.rstrip("\n").splitlines():
            self.console.print(Text(f"    {line}", no_wrap=True), soft_wrap=True)

    def check(self, what: str, holds: object, found: object = "") -> None:
        """Go on only if it holds; say so either way.  Raises DemoError."""
        if not holds:
            raise DemoError(f"{what}: it is not so" + (f"; found {found}" if found != "" else ""))
        self._checks += 1
        self.console.print(Text.assemble(("  ✓ ", "bold green"), what))

    def run(
        self,
        *command: str,
        env: Mapping[str, str],
        cwd: Path,
        quiet: bool = False,
        live: bool = False,
        fails: bool = False,
        redirected_to: str = "",
    ) -> str:
        """Print a command as a person would type it, run it, print its output, and return its stdout.

        `quiet` leaves its output out; `live` lets it talk on our stderr while it runs; `fails` takes exit code 1 as an
        answer; `redirected_to` names the file that its stdout goes to.  Raises DemoError.
        """
        redirect = f" > {redirected_to}" if redirected_to else ""
        self.console.print(Text(f"  $ {shlex.join(command)}{redirect}", "bold"), soft_wrap=True)
        try:
            done = subprocess.run(
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=None if live else subprocess.PIPE,
                text=True,
                timeout=_COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DemoError(f"{shlex.join(command)}: not done after {_COMMAND_SECONDS} s") from None
        if done.returncode not in ((0, 1) if fails else (0,)):
            raise DemoError(f"{shlex.join(command)} exited {done.returncode}:\n{done.stderr or done.stdout}")
        if not quiet and not redirected_to:
            self.show(done.stdout)
        return done.stdout

    def end(self) -> None:
        """How long each step took."""
        total = time.monotonic() - self._began
        self.console.print()
        self.console.print(Rule(Text(" Every step was checked ", "bold green"), align="left", style="green"))
        for number, (title, seconds) in enumerate(self._durations, start=1):
            self.console.print(f"  {number:>2}  {title:<50} {seconds:6.1f} s")
        self.console.print(f"      {'in all':<50} {total:6.1f} s")

    def fail(self, error: BaseException, logs: Sequence[Path]) -> None:
        """What went wrong, and the end of each log."""
        self.console.print()
        self.console.print(Rule(Text(" The demo failed ", "bold red"), align="left", style="red"))
        self.show(str(error) or repr(error))
        for log in logs:
            if log.is_file():
                lines = log.read_text(errors="replace").splitlines()
                self.console.print(Text(f"  the end of {log}", "bold"))
                self.show("\n".join(lines[-25:]))
