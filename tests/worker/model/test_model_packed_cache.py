"""Does a second start read what the first one packed, and never anything else?"""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from berth_worker.model import packed_cache
from berth_worker.model.gguf_file import GgufFile
from berth_worker.model.llama_gguf import LlamaReader
from berth_worker.model.llama_safetensors import SafetensorsReader
from berth_worker.model.packed_cache import PackedKey, cache_directory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

packed = functools.partial(packed_cache.packed, smallest=0)
KEY = PackedKey("source", "w8a8-g32", 1)
SIZE = 2 * packed_cache._PIECE + 4099  # two pieces and a rest that is no multiple of 8


def built(seed: int = 0, size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8),
        torch.randint(-(1 << 40), 1 << 40, (77,), generator=generator),
    )


def never() -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("packed again")


def equal(found: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("size", [SIZE, 8, 1])
def test_a_second_start_reads_what_the_first_one_packed(tmp_path: Path, mapped: bool, size: int) -> None:
    folder = tmp_path / "not" / "yet"
    assert equal(packed(KEY, lambda: built(size=size), folder, mapped=mapped), built(size=size))
    weights, plan = packed(KEY, never, folder, mapped=mapped)
    assert equal((weights, plan), built(size=size))
    assert weights.data_ptr() % 4096 == 0
    assert (folder.stat().st_mode & 0o777) == 0o700
    assert [path.name for path in folder.iterdir()] == [KEY.file_name]


@pytest.mark.parametrize(
    "other", [{"source": "x"}, {"recipe": "w4"}, {"layout": 2}, {"code": "x"}], ids=lambda change: next(iter(change))
)
def test_another_source_recipe_layout_or_code_is_another_model(tmp_path: Path, other: dict[str, Any]) -> None:
    packed(KEY, built, tmp_path)
    key = replace(KEY, **other)
    assert equal(packed(key, lambda: built(1), tmp_path), built(1))
    # and a file under a wrong name is not believed
    (tmp_path / KEY.file_name).replace(tmp_path / key.file_name)
    assert equal(packed(key, lambda: built(2), tmp_path), built(2))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_packed_again_and_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: st.DataObject
) -> None:
    small = functools.partial(built, size=20_003)
    path = tmp_path / KEY.file_name
    packed(KEY, small, tmp_path)
    content = bytearray(path.read_bytes())
    match data.draw(st.sampled_from(["front", "weights", "cut", "longer", "zeroed", "empty"])):
        case "front" | "weights" as where:
            # magic, header and most of the plan; after it comes padding
            least, most = (0, 600) if where == "front" else (8192, len(content) - 1)
            content[data.draw(st.integers(least, most))] ^= data.draw(st.integers(1, 255))
        case "cut":
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        case "longer":
            content += b"\0"
        case "zeroed":  # what a crash leaves of a file that was renamed before it was on the disk
            at = data.draw(st.integers(1, len(content) // 4096 - 2)) * 4096
            content[at : at + 4096] = bytes(4096)
        case "empty":
            content.clear()
    path.write_bytes(content)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert equal(packed(KEY, small, tmp_path), small())
    assert "packing again" in caplog.text
    assert equal(packed(KEY, never, tmp_path), small())


def test_a_cache_that_cannot_be_written_costs_one_line_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert equal(packed(KEY, built, tmp_path / "file" / "cache"), built())
    assert len(caplog.records) == 1
    assert "every start packs them again" in caplog.text
    assert equal(packed(KEY, built, None), built())
    assert len(caplog.records) == 1


def test_a_full_disk_leaves_no_half_of_a_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_cache, "DISK_RESERVE", 1 << 60)
    assert equal(packed(KEY, built, tmp_path), built())
    assert "do not fit" in caplog.text
    monkeypatch.undo()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert equal(packed(KEY, built, tmp_path), built())
    assert "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_link_and_a_file_of_another_user_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(KEY, built, tmp_path / "real")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / KEY.file_name).symlink_to(tmp_path / "real" / KEY.file_name)
    assert equal(packed(KEY, lambda: built(1), tmp_path / "linked"), built(1))
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    (tmp_path / "real" / KEY.file_name).chmod(0o666)
    if uid != 0:  # root's files are believed
        assert equal(packed(KEY, lambda: built(2), tmp_path / "real"), built(2))


def test_the_least_recently_used_model_makes_room(tmp_path: Path) -> None:
    keys = [replace(KEY, source=str(i)) for i in range(3)]
    limit = 2 * (SIZE + 16384)
    for key in keys[:2]:
        packed(key, built, tmp_path, limit=limit)
    for age, key in enumerate(keys[:2]):
        used = time.time() - 1000 + age  # the first is the older one
        os.utime(tmp_path / key.file_name, (used, used))
    packed(keys[0], never, tmp_path, limit=limit)  # but it was used last
    packed(keys[2], built, tmp_path, limit=limit)
    assert {path.name for path in tmp_path.iterdir()} == {keys[0].file_name, keys[2].file_name}
    packed(keys[1], built, tmp_path, limit=100)  # larger than the limit: nobody is sent away for it
    assert {path.name for path in tmp_path.iterdir()} == {keys[0].file_name, keys[2].file_name}


def test_what_a_killed_worker_left_and_what_nobody_uses_is_cleared_away(tmp_path: Path) -> None:
    month = 31 * 24 * 3600
    for name, age in ((".packing-old", month), (".packing-new", 0), ("old.packed", month), ("other-file", month)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    packed(KEY, built, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".packing-new", "other-file", KEY.file_name}


_WRITER = """
import os, sys, time, torch
from pathlib import Path
from berth_worker.model import packed_cache
os.fsync = lambda _: time.sleep(600)
weights = torch.zeros(1 << 20, dtype=torch.uint8), torch.zeros(9, dtype=torch.int64)
packed_cache.packed(packed_cache.PackedKey("killed", "w", 1), lambda: weights, Path(sys.argv[1]), smallest=0)
"""


def test_what_a_worker_writes_is_left_alone_until_it_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def half() -> list[Path]:
        return [path for path in tmp_path.glob(".packing-*") if path.stat().st_size > 1 << 20]

    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)])
    try:
        deadline = time.monotonic() + 120
        while not half() and writer.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        (path,) = half()
        quiet = time.time() - 3600
        os.utime(path, (quiet, quiet))
        packed(KEY, built, tmp_path)
        assert path.exists()
    finally:
        writer.kill()
        writer.wait()
    with caplog.at_level(logging.INFO):
        assert equal(packed(replace(KEY, recipe="other"), built, tmp_path), built())
    assert not path.exists()
    assert f"{path}: removed, 1,0" in caplog.text
    assert "bytes of a worker that ended while it wrote" in caplog.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; skips where none may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False).returncode:
        pytest.skip("no file system may be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_disk_that_fills_up_and_one_that_is_read_only_cost_a_line_and_nothing_else(
    small_disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_cache, "DISK_RESERVE", -(1 << 40))  # as where others take the room meanwhile
    assert equal(packed(KEY, built, small_disk), built())
    (told,) = caplog.messages
    assert told.startswith(f"packed weights are not kept in {small_disk}: [Errno 28] No space left on device")
    assert list(small_disk.iterdir()) == []
    caplog.clear()
    fits = functools.partial(built, size=20_003)
    packed(KEY, fits, small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert equal(packed(KEY, never, small_disk), fits())
    assert not caplog.messages
    assert equal(packed(replace(KEY, layout=2), fits, small_disk), fits())
    (told,) = caplog.messages
    assert told.startswith(f"packed weights are not kept in {small_disk}: [Errno 30] Read-only file system")


def test_a_model_that_is_packed_in_a_moment_is_not_kept(tmp_path: Path) -> None:
    assert equal(packed_cache.packed(KEY, built, tmp_path / "cache"), built())
    assert not (tmp_path / "cache").exists()


def test_workers_that_pack_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    together = threading.Barrier(3)

    def build() -> tuple[torch.Tensor, torch.Tensor]:
        together.wait(60)  # all three looked, and found nothing
        return built()

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: packed(KEY, build, tmp_path), range(3)))
    assert all(equal(one, built()) for one in found)
    assert equal(packed(KEY, never, tmp_path), built())
    assert [path.name for path in tmp_path.iterdir()] == [KEY.file_name]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"BERTH_CACHE_DIR": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, Path("/c")),
        ({"BERTH_CACHE_DIR": "", "HOME": "/h"}, None),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, Path("/x/berth")),
        ({"HOME": "/h"}, Path("/h/.cache/berth")),
        ({}, None),
    ],
)
def test_the_cache_lies_where_the_environment_says(environment: dict[str, str], expected: Path | None) -> None:
    assert cache_directory(environment) == expected


@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_an_identity_follows_the_weights_and_not_the_name(tiny: Any, tmp_path: Path, kind: str) -> None:
    shape = tiny.Shape()
    state = tiny.random_state(shape)

    def identity(name: str, state: dict[str, torch.Tensor], **changes: Any) -> str:
        path = tmp_path / name
        if kind == "gguf":
            tiny.write_gguf(path, shape, state, **changes)
            os.utime(path, (1, 1))  # as if a copy had kept the time
            return LlamaReader(GgufFile(path)).identity()
        tiny.write_folder(path, shape, state, **changes)
        os.utime(path / "model.safetensors", (1, 1))
        return SafetensorsReader(path).identity()

    first = identity("first", state)
    assert identity("second", state) == first
    for name in ("model.layers.1.mlp.down_proj.weight", "model.norm.weight"):
        assert identity("tuned", state | {name: state[name] * 1.01}) != first
    if kind == "gguf":
        assert identity("theta", state, metadata={"llama.rope.freq_base": 500000.0}) != first
    else:
        assert identity("theta", state, config={"rope_theta": 500000.0}) != first
    path = tmp_path / "first" / ("model.safetensors" if kind == "folder" else "")
    os.utime(path, (2, 2))
    reader = SafetensorsReader(path.parent) if kind == "folder" else LlamaReader(GgufFile(path))
    assert reader.identity() != first
