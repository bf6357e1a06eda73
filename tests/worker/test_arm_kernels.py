"""Do the Arm kernels give the scalar set's bits, and is the right set picked?  Cross-compiled, run by qemu-aarch64.

And do those of x86, natively?"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "worker/berth_worker/kernels/csrc"
PROGRAM = Path(__file__).parent / "arm"
CMAKE = (ROOT / "worker/CMakeLists.txt").read_text()
CROSS, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"

N1 = "neoverse-n1"  # sdot, and nothing newer
A64FX = "a64fx"  # SVE of 512 bits without NEON's sdot and without smmla
NO_SVE = "max,sve=off"


def sve(bits: int) -> str:
    """A processor with everything, and vectors of so many bits."""
    return f"max,sve-default-vector-length={bits // 8}"


AVAILABLE = {  # best first
    "cortex-a72": "scalar",
    N1: "dotprod scalar",
    NO_SVE: "i8mm dotprod scalar",
    A64FX: "sve scalar",
    sve(128): "i8mm sve_i8mm dotprod sve scalar",
    sve(256): "sve_i8mm i8mm sve dotprod scalar",
    sve(512): "sve_i8mm i8mm sve dotprod scalar",
}
COMPARED = [
    (N1, "dotprod"),
    (NO_SVE, "dotprod"),
    (NO_SVE, "i8mm"),
    (A64FX, "sve"),
    *[(sve(bits), name) for bits in (128, 256) for name in ("sve", "sve_i8mm")],
    (sve(512), "sve_i8mm"),
    (sve(1024), "sve"),
]


def _compile(compiler: str, sources: dict[Path, list[str]], folder: Path) -> Path:
    flags = re.search(r"target_compile_options\(berth_kernels PRIVATE (.*)\)", CMAKE)
    assert flags, "worker/CMakeLists.txt: no compile options"
    common = [*flags[1].split(), "-std=c++20", f"-I{CSRC}"]

    def one(item: tuple[Path, list[str]]) -> str:
        source, options = item
        to = str(folder / f"{source.stem}.o")
        subprocess.run([compiler, *common, *options, "-c", source, "-o", to], check=True)
        return to

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(one, sources.items()))
    program = folder / "kernels_check"
    subprocess.run([compiler, "-static", *objects, "-o", program], check=True)
    return program


def _built(request: pytest.FixtureRequest, compiler: str, sets: dict[str, list[str]], define: list[str]) -> Path:
    """The program for one compiler, kept in pytest's cache until a source changes."""
    files = sorted([*CSRC.iterdir(), *PROGRAM.iterdir(), Path(__file__), ROOT / "worker/CMakeLists.txt"])
    key = hashlib.sha256(compiler.encode() + b"".join(f.read_bytes() for f in files)).hexdigest()[:16]
    cache = request.config.cache
    assert cache is not None
    folder = cache.mkdir(f"berth-{compiler}")
    if not (program := folder / key).exists():
        shutil.rmtree(folder)
        folder.mkdir()
        shared = ["scalar", "dispatch", "model", "attention", "attention_plan", "step", "pool"]
        sources = {CSRC / f"{name}.cpp": define for name in shared} | {CSRC / f"{n}.cpp": f for n, f in sets.items()}
        _compile(compiler, {PROGRAM / "kernels_check.cpp": [*define, "-O1"]} | sources, folder).rename(program)
    return program


@pytest.fixture(scope="session")
def arm(request: pytest.FixtureRequest) -> Path:
    missing = [tool for tool in (CROSS, QEMU) if shutil.which(tool) is None]
    if missing:
        assert not os.environ.get("CI"), f"CI must have {', '.join(missing)} (.ci/run installs them)"
        pytest.skip(f"no {', '.join(missing)} here: apt-get install g++-aarch64-linux-gnu qemu-user")
    arm_part = CMAKE[CMAKE.index('MATCHES "aarch64') :]
    march = dict(re.findall(r'SOURCES}/(\w+)\.cpp PROPERTIES COMPILE_OPTIONS "(-march=[^"]+)"', arm_part))
    return _built(
        request, CROSS, {name: [flag, "-DBERTH_AARCH64"] for name, flag in march.items()}, ["-DBERTH_AARCH64"]
    )


@pytest.fixture(scope="session")
def here(request: pytest.FixtureRequest) -> Path:
    if platform.machine() != "x86_64":
        return _built(request, "g++", {}, ["-O1"])
    part = CMAKE[CMAKE.index('MATCHES "x86_64') : CMAKE.index('MATCHES "aarch64')]
    flags = dict(re.findall(r"set\((AVX\w*) ([^)]*)\)", part))
    options = re.findall(r'SOURCES}/(\w+)\.cpp PROPERTIES COMPILE_OPTIONS "([^"]+)"', part)
    for name in ("AVX512", "AVX2"):
        options = [(source, text.replace(f"${{{name}}}", flags[name])) for source, text in options]
    sets = {source: ["-DBERTH_X86", *text.replace(";", " ").split()] for source, text in options}
    return _built(request, "g++", sets, ["-O1", "-DBERTH_X86"])


def run(program: Path, cpu: str, *command: str, isa: str = "") -> subprocess.CompletedProcess[str]:
    env = {"BERTH_ISA": isa} if isa else {}
    return subprocess.run(
        [QEMU, "-cpu", cpu, program, *command], capture_output=True, text=True, env=env, timeout=120, check=False
    )


@pytest.mark.parametrize(("cpu", "name"), COMPARED)
def test_arm_set_gives_the_bits_of_the_scalar_one(arm: Path, cpu: str, name: str) -> None:
    """Products of every kind, quantization, attention, and steps of two small models; ends of the range included."""
    done = run(arm, cpu, "compare", name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (found := re.fullmatch(rf"{name}: (\d+) results compared, 0 differ", done.stdout.strip())), done.stdout
    assert int(found[1]) > 1500


@pytest.mark.parametrize(("cpu", "names"), AVAILABLE.items())
def test_the_best_set_that_an_arm_processor_has_is_picked(arm: Path, cpu: str, names: str) -> None:
    assert run(arm, cpu, "sets").stdout.splitlines() == [names, names.split(maxsplit=1)[0]]


@pytest.mark.parametrize("name", AVAILABLE[sve(128)].split())
def test_berth_isa_picks_any_set_that_an_arm_processor_has(arm: Path, name: str) -> None:
    assert run(arm, sve(128), "sets", isa=name).stdout.splitlines()[-1] == name


ABSENT = [(N1, "i8mm"), (N1, "sve"), (A64FX, "sve_i8mm"), (NO_SVE, "sve"), (N1, "avx2")]


@pytest.mark.parametrize(("cpu", "name"), ABSENT)
def test_a_set_that_an_arm_processor_lacks_is_refused_with_those_it_has(arm: Path, cpu: str, name: str) -> None:
    done = run(arm, cpu, "sets", isa=name)
    assert done.returncode == 2
    assert f"BERTH_ISA: found '{name}'; this build on this machine has: {AVAILABLE[cpu]}" in done.stderr


@pytest.mark.parametrize(("cpu", "name"), [(N1, "i8mm"), (NO_SVE, "sve"), (A64FX, "dotprod"), (A64FX, "sve_i8mm")])
def test_the_emulator_stops_instructions_that_a_processor_lacks(arm: Path, cpu: str, name: str) -> None:
    """Else the tests above would prove nothing about what a set was compiled for."""
    assert "Illegal instruction" in run(arm, cpu, "unchecked", name).stderr


@pytest.mark.parametrize("name", ["avx2", "avx512vnni", "amx"])
def test_x86_set_gives_the_bits_of_the_scalar_one(here: Path, name: str) -> None:
    if name not in subprocess.run([here, "sets"], capture_output=True, text=True, check=True).stdout.split():
        pytest.skip(f"this machine has no {name}")
    done = subprocess.run([here, "compare", name], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (found := re.fullmatch(rf"{name}: (\d+) results compared, 0 differ", done.stdout.strip())), done.stdout
    assert int(found[1]) > 1500


def test_scalar_set_gives_the_same_bits_on_arm_and_here(arm: Path, here: Path) -> None:
    native = subprocess.run([here, "digest"], capture_output=True, text=True, check=True, timeout=120).stdout
    assert run(arm, N1, "digest").stdout == native
