"""What do we measure ourselves against, and how is each peer made its best on this machine?

Peers are built or installed on first use, from their published packages, into the user's cache: `BERTH_PEERS`,
`$XDG_CACHE_HOME/berth/peers` or `~/.cache/berth/peers`.  The project's own environment stays as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from _common import cpu_flags

__all__ = ["CTRANSLATE2", "LLAMA_CPP", "TORCHAO", "LlamaCpp", "english", "llama_cpp", "peers_folder", "python_peers"]

LLAMA_CPP = "llama-cpp-python==0.3.36"
"""Its source package carries llama.cpp itself, under vendor/."""
CTRANSLATE2 = "ctranslate2==4.8.5"
TORCHAO = "torchao==0.18.0"
ENGLISH = "Brotli==1.2.1"
"""Its source package carries two public-domain texts of the Canterbury corpus among its test data."""

_TARGETS = ["llama-bench", "llama-batched-bench", "llama-quantize", "llama-server", "llama-perplexity"]
_OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_UI=OFF",
]
_WITHOUT_AMX = "-U__AMX_INT8__ -U__AMX_TILE__ -U__AMX_BF16__"
_ONLY_AVX2 = {
    "CT2_FORCE_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
"""Variables of CTranslate2, torch, and of the libraries that multiply matrices for both."""

# GCC 12.2's _tile_loadconfig() tells the compiler that it reads 8 of the 64 bytes of a tile configuration; the stores
# to the others are dropped and the instruction faults: built natively, llama.cpp dies on AMX at its first matrix.
_TILE_FIX = """\
#pragma once
#if defined(__cplusplus) && defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg\\t%X0" ::"m"(*(const char(*)[64])(config)))
#endif
"""


def peers_folder() -> Path:
    """Where peers, their models and the texts are kept."""
    if named := os.environ.get("BERTH_PEERS"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "berth" / "peers"


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp's programs, with the CPU backend in the variants that this machine can tell apart."""

    binaries: Path
    variants: dict[str, Path]
    """Name -> folder of libraries to load before those in `binaries`: "native", and "no-amx" where AMX is there,
    because AMX takes the place of the AVX-512 kernels and of 4-bit repacking even where those would be faster. Where
    BERTH_ISA keeps our side from newer instructions "no-amx" or "avx2" alone, which has none beyond AVX2's."""

    def command(self, program: str, *arguments: str) -> list[str]:
        return [str(self.binaries / program), *arguments]

    def environment(self, variant: str = "", huge_pages: bool = False) -> dict[str, str]:
        """Variables of a run ("": the first variant); huge_pages: glibc's malloc asks for transparent huge pages."""
        environment = dict(os.environ)
        folders = dict.fromkeys([str(self.variants[variant or next(iter(self.variants))]), str(self.binaries)])
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(folders)
        environment.pop("GLIBC_TUNABLES", None)
        if huge_pages:
            environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        return environment


def llama_cpp() -> LlamaCpp:
    """llama.cpp, built with native flags on first use: about 10 minutes of one core, and 4 for each further variant."""
    name, _, version = LLAMA_CPP.partition("==")
    root = peers_folder() / f"llama.cpp-{version}"
    build = root / "build"
    source = _source_package(LLAMA_CPP, root / "source")
    fix = root / "tile_config.h"
    fix.write_text(_TILE_FIX)

    def folder(variant: str) -> Path:
        return build if variant == "native" else root / variant

    # GGML_NATIVE=OFF: SSE 4.2, AVX, AVX2, BMI2, FMA and F16C, nothing else
    flags = {"native": f"-include {fix}", "no-amx": _WITHOUT_AMX, "avx2": ""}
    variants = _variants()
    for variant in dict.fromkeys(["native", *variants]):
        done = folder(variant) / "complete"
        if not done.exists():
            _say(f"building {name} {version} ({variant}) into {folder(variant)}")
            native = f"-DGGML_NATIVE={'OFF' if variant == 'avx2' else 'ON'}"
            targets = _TARGETS if variant == "native" else ["ggml-cpu"]
            _cmake(next(source.glob("*/vendor/llama.cpp")), folder(variant), flags[variant], [native], targets)
            done.touch()
    return LlamaCpp(build / "bin", {variant: folder(variant) / "bin" for variant in variants})


def _variants() -> list[str]:
    """Of llama.cpp's CPU backend those that may run beside ours."""
    amx = "amx_int8" in cpu_flags()
    match os.environ.get("BERTH_ISA"):
        case "avx2" if cpu_flags() & {"avx512f", "avx_vnni"}:
            return ["avx2"]
        case "avx512vnni" if amx:
            return ["no-amx"]
        case _:
            return ["native", "no-amx"] if amx else ["native"]


def python_peers() -> dict[str, str]:
    """Variables with which our own interpreter finds CTranslate2 and torchao too, installed beside, not into it.

    With BERTH_ISA=avx2 they keep these and torch to AVX2, too."""
    folder = peers_folder() / "python"
    marker = folder / ".complete"
    pins = f"{CTRANSLATE2} {TORCHAO}"
    if not marker.exists() or marker.read_text() != pins:
        _say(f"installing {pins} into {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        # --no-deps: both run on the torch, numpy and transformers that are there, as our own side does
        _run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *pins.split()])
        marker.write_text(pins)
    limits = _ONLY_AVX2 if _variants() == ["avx2"] else {}
    return {**os.environ, **limits, "PYTHONPATH": str(folder)}


def english(characters: int = 120_000) -> Path:
    """A file of English: so many characters each of a report on electronic texts (1992) and of Alice in Wonderland."""
    path = peers_folder() / f"english-{characters}.txt"
    if not path.exists():
        data = next(_source_package(ENGLISH, peers_folder() / "texts").glob("*/tests/testdata"))
        parts = [(data / name).read_text(encoding="latin-1")[:characters] for name in ("lcet10.txt", "alice29.txt")]
        path.write_text("\n".join(part.replace("\r", "") for part in parts))
    return path


def _source_package(pin: str, folder: Path) -> Path:
    """The unpacked source package, fetched on first use."""
    if not (folder / ".unpacked").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation"]
            _run([*pip, "--no-binary", ":all:", "-d", scratch, pin])
            with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as archive:
                archive.extractall(folder, filter="data")
        (folder / ".unpacked").touch()
    return folder


def _cmake(source: Path, build: Path, flags: str, options: list[str], targets: list[str]) -> None:
    tools = Path(sys.executable).parent  # cmake and ninja are development dependencies
    path = os.pathsep.join([str(tools), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path}
    c_flags = [f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}"]
    _run(["cmake", "-G", "Ninja", "-S", str(source), "-B", str(build), *_OPTIONS, *options, *c_flags], environment)
    _run(["nice", "ninja", "-C", str(build), *targets], environment)


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-4000:]}")


def _say(message: str) -> None:
    print(f"peers: {message} (once)", file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(llama_cpp().binaries)
    print(python_peers()["PYTHONPATH"])
    print(english())
