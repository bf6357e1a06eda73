"""Does each item of each phase run exactly once, whoever is late, and without a data race?"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[2] / "worker" / "berth_worker" / "kernels" / "csrc"
COMPILER = shutil.which("g++")


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pool_stress.cpp and the pool under ThreadSanitizer."""
    if COMPILER is None:
        pytest.skip("needs g++, to build the pool under ThreadSanitizer")
    program = tmp_path_factory.mktemp("pool") / "stress"
    options = ["-std=c++20", "-O1", "-g", "-fsanitize=thread", f"-I{SOURCES}"]
    subprocess.run([COMPILER, *options, HERE / "pool_stress.cpp", SOURCES / "pool.cpp", "-o", program], check=True)
    return program


@pytest.mark.parametrize("threads", [1, 2, 3, 8])  # 8: more than this machine has, so that some are late
def test_every_item_runs_once_and_no_access_races(stress: Path, threads: int) -> None:
    done = subprocess.run([stress, str(threads), "20000"], capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_only_the_units_of_an_instruction_set_use_its_intrinsics() -> None:
    headers = {"immintrin.h": {"avx2.cpp", "vnni.h"}, "arm_neon.h": {"neon.h"}, "arm_sve.h": {"sve_dot.h"}}
    shared = {
        "attend.h",
        "attention.cpp",
        "attention.h",
        "attention_plan.cpp",
        "attention_plan.h",
        "body.h",
        "dispatch.cpp",
        "isa.h",
        "model.cpp",
        "model.h",
        "ops.cpp",
        "pool.cpp",
        "scalar.cpp",
        "step.cpp",
    }
    sources = {path.name: path.read_text() for path in SOURCES.iterdir()}
    for header, units in headers.items():
        assert {name for name, text in sources.items() if header in text} == units
    inside = {"vnni.h", "neon.h", "sve_dot.h", "neon_dot.h", "neon_mmla.h", "mmla.h"}
    for name in shared:
        text = sources[name]
        assert "_mm256" not in text and "_mm512" not in text
        assert not any(f'#include "{header}"' in text for header in inside)
