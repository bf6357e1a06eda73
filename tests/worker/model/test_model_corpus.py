"""Do the inputs that a fuzzer found, and small changes of good ones, still end in a model or in one clear line?

Under a memory limit a little above what the process has: a length that a file makes up must not be allocated.
"""

from __future__ import annotations

import contextlib
import json
import resource
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from berth_worker.model import ModelError
from berth_worker.model.gguf_file import GgufFile
from berth_worker.model.interface import Tokenizer
from berth_worker.model.load import open_checkpoint
from berth_worker.model.tokenizer import GgufTokenizer
from berth_worker.model.weights import LlamaWeights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "corpus"
ROOM = 512 << 20


@pytest.fixture(scope="module", autouse=True)
def little_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def use(weights: LlamaWeights, tokenizer: Tokenizer) -> None:
    """Everything that loading and serving read."""
    tokenizer.decode(tokenizer.encode("ab <s> c 12"))
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}])
    except ValueError as error:
        assert str(error)
    weights.embedding(), weights.output(), weights.output_norm(), weights.identity()
    for index in range(min(2, weights.config.num_layers)):
        weights.layer(index), weights.grids(index)


def outcome(path: Path) -> str:
    """ "model", or the one line that refuses it."""
    try:
        use(*open_checkpoint(path))
    except ModelError as error:
        assert "\n" not in str(error)
        return str(error)
    return "model"


def test_files_that_a_fuzzer_found_load_or_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    outcomes = []
    with zipfile.ZipFile(CORPUS / "gguf.zip") as corpus:
        for name in corpus.namelist():
            path.write_bytes(corpus.read(name))
            outcomes.append(outcome(path))
            with contextlib.suppress(ModelError):  # whatever the weights are, the tokenizer must hold too
                GgufTokenizer(GgufFile(path))
    assert outcomes.count("model") >= 3
    assert len(set(outcomes)) > 30


def test_folders_that_a_fuzzer_found_load_or_are_refused(tmp_path: Path) -> None:
    outcomes = []
    with zipfile.ZipFile(CORPUS / "folders.zip") as corpus:
        corpus.extractall(tmp_path)
        for name in corpus.namelist():
            if not name.startswith("damaged/"):
                continue
            _, folder, file, _ = name.split("/")
            target = tmp_path / "base" / folder / file
            before = target.read_bytes() if target.exists() else None
            target.write_bytes(corpus.read(name))
            outcomes.append(outcome(tmp_path / "base" / folder))
            target.unlink() if before is None else target.write_bytes(before)
        assert all(outcome(folder) == "model" for folder in (tmp_path / "base").iterdir())
    assert outcomes.count("model") >= 5
    assert len(set(outcomes)) > 25


def mutate(value: Any, draw: st.DataObject) -> Any:
    """A JSON value with one thing in it replaced, dropped or doubled."""
    odd = st.sampled_from(
        [None, True, -1, 0, 1, 7, 1 << 31, 1 << 70, 0.5, 1e308, "", "x", "\ud800", [], {}, [[]], {"a": {}}]
    )
    if isinstance(value, dict) and value and draw.draw(st.booleans()):
        key = draw.draw(st.sampled_from(sorted(value)))
        if draw.draw(st.integers(0, 4)) == 0:
            return {name: item for name, item in value.items() if name != key}
        return value | {key: mutate(value[key], draw)}
    if isinstance(value, list) and value and draw.draw(st.booleans()):
        index = draw.draw(st.integers(0, len(value) - 1))
        if draw.draw(st.integers(0, 4)) == 0:
            return [*value, value[index]]
        return [*value[:index], mutate(value[index], draw), *value[index + 1 :]]
    if isinstance(value, int) and draw.draw(st.booleans()):
        return value + draw.draw(st.integers(-9, 9))
    return draw.draw(odd)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folders")
    with zipfile.ZipFile(CORPUS / "folders.zip") as corpus:
        corpus.extractall(path, [name for name in corpus.namelist() if name.startswith("base/")])
    return path / "base"


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_value_in_any_json_file_or_header_loads_or_is_refused(folders: Path, data: st.DataObject) -> None:
    folder = folders / data.draw(st.sampled_from(["plain", "untied", "gptq", "awq"]))
    name = data.draw(st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]))
    before = (folder / name).read_bytes()
    header = int.from_bytes(before[:8], "little") if name == "model.safetensors" else 0
    content = json.loads(before[8 : 8 + header] if header else before)
    for _ in range(data.draw(st.integers(1, 3))):
        content = mutate(content, data)
    changed = json.dumps(content).encode()
    (folder / name).write_bytes(
        len(changed).to_bytes(8, "little") + changed + before[8 + header :] if header else changed
    )
    try:
        outcome(folder)
    finally:
        (folder / name).write_bytes(before)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_anywhere_in_a_safetensors_file_load_or_are_refused(folders: Path, data: st.DataObject) -> None:
    path = folders / data.draw(st.sampled_from(["plain", "gptq", "awq"])) / "model.safetensors"
    before = path.read_bytes()
    damaged = bytearray(before)
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(damaged) - 1))
        damaged[begin : begin + data.draw(st.sampled_from([0, 1, 4]))] = data.draw(st.binary(min_size=1, max_size=4))
    path.write_bytes(damaged)
    try:
        outcome(path.parent)
    finally:
        path.write_bytes(before)
