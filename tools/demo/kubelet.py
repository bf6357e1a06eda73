"""What would a kubelet do with this container?  Its command, arguments and environment, run here as a process.

No container is made: the image's entry point is the command of the same name in this virtual environment.  Fields that
only a kubelet knows (`metadata.name`, `metadata.namespace`) are filled in; what this machine must have otherwise is
added by the caller, who says so.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.narrator import DemoError

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Container:
    """A container as it would be run."""

    image: str
    command: Sequence[str]
    """Command and arguments."""
    environment: Mapping[str, str]

    def local_command(self) -> list[str]:
        """The same with the program's full path here.  Raises DemoError when it is not installed."""
        program = Path(sys.executable).parent / self.command[0]
        if not program.is_file():
            raise DemoError(f"{self.command[0]} is not installed beside {sys.executable}: run `make setup`")
        return [str(program), *self.command[1:]]

    def lines(self) -> str:
        """Image, command and environment, for people."""
        settings = "\n".join(f"  {name}={shlex.quote(value)}" for name, value in self.environment.items())
        return f"image {self.image}\n{shlex.join(self.command)}\nwith\n{settings}"


def container_of(deployment: Manifest, *, pod: str, entry_point: Sequence[str] = ()) -> Container:
    """The first container of a Deployment's pods; `pod` is the name of the pod it stands for.

    `entry_point` is the image's own, for a container that names no command.
    """
    template = deployment["spec"]["template"]
    container = template["spec"]["containers"][0]
    known = {
        "metadata.name": pod,
        "metadata.namespace": deployment["metadata"]["namespace"],
        "status.podIP": "127.0.0.1",
    }
    return Container(
        image=container["image"],
        command=[*container.get("command", entry_point), *container.get("args", ())],
        environment={item["name"]: _value(item, known) for item in container.get("env", ())},
    )


def _value(item: Manifest, known: Mapping[str, str]) -> str:
    if "valueFrom" not in item:
        return str(item.get("value", ""))
    source = item["valueFrom"]
    path = source.get("fieldRef", {}).get("fieldPath", "")
    if path not in known:
        raise DemoError(f"environment variable {item['name']} comes from {source}, which nobody here can fill in")
    return known[path]
