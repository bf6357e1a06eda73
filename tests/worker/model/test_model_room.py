"""Is a model that does not fit refused with the numbers, under every limit that would kill it?"""

from __future__ import annotations

import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from berth_worker.model import ModelError, load, packed_cache, room
from berth_worker.model.config import LlamaConfig
from berth_worker.model.int8 import Int8Llama
from berth_worker.model.llama import Llama
from berth_worker.model.room import Room, check_room, kv_bytes, weight_bytes

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
        (8, {"packed": True}, None),
        (8, {}, r"need 8\.\d\d GiB of memory \(7\.71 GiB as Int8, \d{3}\.\d\d MiB while they are packed\)"),
        (9, {}, None),
        (9, {"threads": 8}, r"need 11\.\d GiB of memory \(7\.71 GiB as Int8, 3\.\d\d GiB while they are packed\)"),
        (14, {"kv_tokens": 131072}, r"need 16\.\d GiB .*8\.\d\d GiB for 131,072 tokens of KV\)"),
        (
            14,
            {"quantization": "BF16"},
            r"need 16\.\d GiB .*\(15\.0 GiB as BF16, 1\.96 GiB while they are read\)",
        ),
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


PACK = """
import sys, torch
from berth_worker.model.load import open_checkpoint
from berth_worker.model.packed_weights import pack
from berth_worker.model.quantization import Recipe
from berth_worker.model.room import packing_bytes
from berth_worker.model.sources import resolve

torch.set_num_threads(1)
weights, _ = open_checkpoint(resolve(sys.argv[1]).path)
torch.ones(64, 64) @ torch.ones(64, 64)
print("ready", flush=True)
sys.stdin.readline()
packed, _ = pack(weights, Recipe(), 2)
print(len(packed), packing_bytes(weights.config, 2), flush=True)
"""


@pytest.mark.parametrize("what", ["large matrices", "a large vocabulary"])
def test_packing_takes_no_more_memory_than_is_asked_for_and_not_much_less(tiny: Any, tmp_path: Path, what: str) -> None:
    source = "smollm2-135m-instruct"
    if what == "large matrices":
        shape = tiny.Shape(heads=12, kv_heads=4, head_dim=64, hidden=768, intermediate=3072, layers=2)
        source = str(tiny.write_gguf(tmp_path / "wide.gguf", shape, tiny.random_state(shape)))
    allowance = 12 << 20  # what Python, the thread pool and the C library keep for themselves
    seen = 0
    for _ in range(MOST_LOOKS):
        extra, claimed = looked_at(source)
        assert extra < claimed + allowance
        seen = max(seen, extra)
        if seen > 0.5 * claimed:
            break
    assert seen > 0.5 * claimed


MOST_LOOKS = 5
"""Memory is looked at every millisecond, which misses a peak of a few where the machine is busy."""


def looked_at(source: str) -> tuple[int, int]:
    """Bytes that packing takes beyond what it packs, at the most that was seen, and what it says that it takes."""
    with subprocess.Popen(
        [sys.executable, "-c", PACK, source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        before = peak = anonymous(process.pid)
        process.stdin.write("\n")
        process.stdin.close()
        while not select.select([process.stdout], [], [], 0.001)[0]:
            peak = max(peak, anonymous(process.pid))
        size, claimed = map(int, process.stdout.readline().split())
    return peak - before - size, claimed


def anonymous(pid: int) -> int:
    """Bytes of memory that a process holds and that are not pages of files."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))


def test_a_model_whose_packed_form_is_kept_needs_no_room_for_packing(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = tiny.Shape()
    path = str(tiny.write_gguf(tmp_path / "tiny.gguf", shape, tiny.random_state(shape)))
    monkeypatch.setenv("BERTH_CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr(packed_cache.packed, "__kwdefaults__", packed_cache.packed.__kwdefaults__ | {"smallest": 0})
    first = load(path, threads=1)
    monkeypatch.setattr(room, "room", lambda: Room(90_000, 100_000, "the container"))
    assert load(path, threads=1).resident_bytes == first.resident_bytes
    (kept,) = (tmp_path / "kept").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(ModelError, match="while they are packed"):
        load(path, threads=1)
