"""Is a model that does not fit refused with the numbers, under every limit that would kill it?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from berth_worker.model import ModelError, load, room
from berth_worker.model.config import LlamaConfig
from berth_worker.model.int8 import Int8Llama
from berth_worker.model.llama import Llama
from berth_worker.model.room import Room, check_room, kv_bytes, packing_bytes, weight_bytes

GIB = 1 << 30


def machine(folder: Path, *, total: int = 64 * GIB, free: int = 40 * GIB, cgroup: str = "0::/\n") -> Path:
    proc = folder / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: {total // 1024} kB\nMemFree: 1 kB\nMemAvailable: {free // 1024} kB\n")
    (proc / "self" / "cgroup").write_text(cgroup)
    return proc


def limits(folder: Path, names: tuple[str, str], limit: object, usage: int, stat: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    if stat:
        (folder / "memory.stat").write_text(stat)


V1, V2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    limits(tmp_path / "cg", V2, "max", GIB)
    assert room.room(machine(tmp_path), tmp_path / "cg") == Room(40 * GIB, 64 * GIB, "this machine")


def test_a_container_sees_its_own_limit_at_the_root(tmp_path: Path) -> None:
    limits(tmp_path / "cg", V2, 8 * GIB, 3 * GIB)
    assert room.room(machine(tmp_path), tmp_path / "cg") == Room(5 * GIB, 8 * GIB, "the container")


@pytest.mark.parametrize("inner", ["max", 30 * GIB])
def test_a_limit_above_counts_as_much_as_ones_own(tmp_path: Path, inner: object) -> None:
    proc = machine(tmp_path, cgroup="0::/pods/one/main\n")
    limits(tmp_path / "cg" / "pods" / "one" / "main", V2, inner, GIB)
    limits(tmp_path / "cg" / "pods" / "one", V2, 4 * GIB, 3 * GIB)
    assert room.room(proc, tmp_path / "cg") == Room(GIB, 4 * GIB, "the container")


@pytest.mark.parametrize("mount", ["memory", "cpu,memory"])
def test_version_1_of_cgroups_is_read_too(tmp_path: Path, mount: str) -> None:
    proc = machine(tmp_path, cgroup=f"9:name=systemd:/\n4:{mount}:/pods/one\n")
    limits(tmp_path / "cg" / mount / "pods" / "one", V1, 6 * GIB, 2 * GIB)
    limits(tmp_path / "cg" / mount, V1, (1 << 63) - 4096, 50 * GIB)
    assert room.room(proc, tmp_path / "cg") == Room(4 * GIB, 6 * GIB, "the container")


@pytest.mark.parametrize(("names", "prefix"), [(V1, "total_"), (V2, "")])
def test_page_cache_does_not_count_as_used(tmp_path: Path, names: tuple[str, str], prefix: str) -> None:
    stat = f"anon 1\n{prefix}active_file {GIB}\n{prefix}inactive_file {2 * GIB}\n"
    cgroup = "0::/\n" if names is V2 else "4:memory:/\n"
    folder = tmp_path / "cg" if names is V2 else tmp_path / "cg" / "memory"
    limits(folder, names, 8 * GIB, 5 * GIB, stat)
    assert room.room(machine(tmp_path, cgroup=cgroup), tmp_path / "cg").free == 6 * GIB


def test_where_nothing_can_be_read_nothing_is_refused(tmp_path: Path) -> None:
    assert room.room(tmp_path, tmp_path).free > 1 << 50


def test_a_model_that_does_not_fit_is_refused_with_the_numbers_before_it_is_read(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = tiny.Shape()
    path = tiny.write_gguf(tmp_path / "tiny.gguf", shape, tiny.random_state(shape))
    monkeypatch.setattr(room, "room", lambda: Room(10_000, 20_000, "the container"))
    says = (
        r"tiny.gguf: 56,064 weights need 0.\d\d MiB of memory \(0.06 MiB as Int8, 0.\d\d MiB while they are packed\); "
        r"the container has 0.02 MiB, of which 0.01 MiB are free"
    )
    with pytest.raises(ModelError, match=says):
        load(str(path), quantization="Int8", threads=1)


LLAMA_8B = LlamaConfig(128256, 4096, 14336, 32, 32, 8, 128, 1e-5, 5e5, 131072, tie_embeddings=False)


class Weights:
    config, path, parameters = LLAMA_8B, Path("llama-8b"), 8_030_261_248


@pytest.mark.parametrize(
    ("free", "options", "says"),
    [
        (20, {"packed": True}, None),
        (9, {"packed": True}, None),
        (9, {}, r"need 13\.\d GiB of memory \(7\.95 GiB as Int8, 5\.87 GiB while they are packed\)"),
        (14, {}, None),
        (14, {"kv_tokens": 131072}, r"need 16\.\d GiB .*8\.\d\d GiB for 131,072 tokens of KV\)"),
        (14, {"quantization": "BF16"}, r"need 20\.\d GiB of memory \(15\.0 GiB as BF16, .*\)"),
    ],
)
def test_what_an_8b_llama_needs(free: int, options: dict[str, Any], says: str | None) -> None:
    found = Room(free * GIB, 64 * GIB, "this machine")
    arguments = {"quantization": "Int8", "available": found} | options
    if says is None:
        check_room(Weights(), **arguments)  # type: ignore[arg-type]
    else:
        with pytest.raises(ModelError, match=says + rf"; this machine has 64\.0 GiB, of which {free}(\.0\d?)? GiB are"):
            check_room(Weights(), **arguments)  # type: ignore[arg-type]


def test_the_estimates_are_what_the_models_take(tiny: Any, tiny_reader: Any) -> None:
    import torch  # noqa: PLC0415

    reader = tiny_reader(tiny.Shape(tied=False))
    plain = Llama(reader, torch.float32)
    assert weight_bytes(reader, "FP32") == plain.resident_bytes
    assert kv_bytes(reader.config, 160, "FP32") == 10 * plain.kv_bytes_per_block
    assert kv_bytes(reader.config, 145, "Int8") == 10 * Int8Llama(reader, 1).kv_bytes_per_block
    assert packing_bytes(reader.config, 2) > 0
