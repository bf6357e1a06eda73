"""Where is the binary of a tool, building it first if need be?

A binary is looked for in ``KUBEBUILDER_ASSETS`` (only what setup-envtest puts there), then in the cache under
``$XDG_CACHE_HOME/berth/tools``, and is built with ``go`` when it is in neither.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from devcluster.processes import die_with_parent
from devcluster.progress import Progress
from devcluster.recipes import BINARIES, Family, ToolError

Paths = Mapping[str, Path]

CONTROL_PLANE = ("etcd", "kube-apiserver", "kubectl", "kube-scheduler", "kube-controller-manager", "kwok")
_FROM_ASSETS = frozenset({"etcd", "kube-apiserver", "kubectl"})
_LOG_TAIL_LINES = 30


def ensure(names: Iterable[str] = tuple(BINARIES)) -> Paths:
    """Paths of the named tools, in the order given; builds what is missing. All tools when none is named."""
    wanted = list(names)
    unknown = sorted(set(wanted) - BINARIES.keys())
    if unknown:
        raise ToolError(f"unknown tool {', '.join(unknown)}: expected one of {', '.join(BINARIES)}")
    missing = [name for name in wanted if locate(name) is None]
    for number, name in enumerate(missing, start=1):
        _build(name, BINARIES[name], f"[{number}/{len(missing)}] building {name} {BINARIES[name].version}")
    return {name: locate(name) or cache_folder(BINARIES[name]) / name for name in wanted}


def locate(name: str) -> Path | None:
    """The path of a tool that is already there, or None."""
    candidates = [cache_folder(BINARIES[name]) / name]
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and name in _FROM_ASSETS:
        candidates.insert(0, Path(assets).expanduser().resolve() / name)
    return next((path for path in candidates if os.access(path, os.X_OK) and path.is_file()), None)


def cache_folder(family: Family) -> Path:
    """Where this family's binaries are kept, whether built yet or not."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser().resolve() / "berth" / "tools" / family.key()


def _build(name: str, family: Family, label: str) -> None:
    go = _go(name)
    folder = cache_folder(family)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / ".lock", f"waiting for another build in {folder.name}"):
        if (folder / name).is_file():
            return
        scratch = folder / ".building"  # ours alone while we hold the lock; a build that was killed leaves its own
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            with Progress(label) as progress:
                _go_build(go, family, name, scratch, progress)
            (scratch / name).replace(folder / name)
        finally:
            shutil.rmtree(scratch)


def _go_build(go: str, family: Family, name: str, scratch: Path, progress: Progress) -> None:
    log = scratch / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [go, "build", "-o", str(scratch / name), *family.build_arguments(name)],
            cwd=family.path,
            env=_go_environment(),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            preexec_fn=die_with_parent(),  # noqa: PLW1509  safe: see there
        )
        try:
            while _running(process):
                progress.tick()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
        raise ToolError(f"go build of {name} {family.version} in {family.path} exited {process.returncode}:\n{tail}")


def _running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return True
    return False


def _go(name: str) -> str:
    go = shutil.which("go")
    if go is None:
        assets = ", or set KUBEBUILDER_ASSETS to a folder that holds it" if name in _FROM_ASSETS else ""
        raise ToolError(f"{name} must be built, and no 'go' is on PATH: install Go 1.26 or newer{assets}")
    return go


def _go_environment() -> dict[str, str]:
    """The caller's, less what would build for another machine or from other sources."""
    unwanted = {"GOOS", "GOARCH", "GOFLAGS", "GO111MODULE"}
    return {k: v for k, v in os.environ.items() if k not in unwanted} | {"CGO_ENABLED": "0", "GOWORK": "off"}


@contextmanager
def _locked(path: Path, waiting: str) -> Iterator[None]:
    """Hold an exclusive lock on a file, over threads and processes; the system frees it when the holder dies."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with Progress(waiting):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
