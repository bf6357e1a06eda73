"""How near are the Arm kernels' inner loops to what the pipes of a Graviton allow, and when do they outrun its memory?

On paper, without Arm hardware: the kernels are cross-compiled, each inner loop is cut out of the assembly and given to
llvm-mca, whose models of Neoverse N1, V1 and V2 follow Arm's software optimization guides.  A limit is what the pipes
that a loop cannot do without take of its best instruction: sdot or smmla, and for one row also the load of the weights.

    python benchmarks/arm_static.py [--quick] [--json FILE]

Needs g++-aarch64-linux-gnu and llvm-19 (LLVM 14 and 16 have no models of V1 and V2 of their own).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

WORKER = Path(__file__).parents[1] / "worker"
CSRC = WORKER / "berth_worker/kernels/csrc"
CROSS = "aarch64-linux-gnu-g++"
BAR = 0.85


@dataclass(frozen=True)
class Chip:
    """Published figures, whole chip; bandwidth in GB/s is that of its memory channels at their rated speed."""

    core: str
    sve_bits: int
    cores: int
    ghz: float
    gb_per_s: float
    dispatched: tuple[str, ...]  # what each number of rows runs on is taken from the first of these sets


# Graviton2: 64 Neoverse N1 at 2.5 GHz, 8 channels of DDR4-3200 (AWS, 2019).  Graviton3: 64 V1 at 2.6 GHz, 8 of
# DDR5-4800.  Graviton4: 96 V2 at 2.8 GHz, 12 of DDR5-5600 (AWS, 2021 and 2023).
CHIPS = {
    "Graviton2": Chip("neoverse-n1", 0, 64, 2.5, 204.8, ("dotprod",)),
    "Graviton3": Chip("neoverse-v1", 256, 64, 2.6, 307.2, ("sve_i8mm", "i8mm")),
    "Graviton4": Chip("neoverse-v2", 128, 96, 2.8, 537.6, ("i8mm", "sve_i8mm")),
}


@dataclass(frozen=True)
class Loop:
    """An inner loop: the function it is in (part of the mangled name), and what one step of it is about."""

    isa: str
    unit: str  # source file
    rows: int
    bits: int
    function: str

    @property
    def name(self) -> str:
        kind = "gemv" if self.rows == 1 else f"gemm{self.rows}"
        return f"{self.isa.replace('-', '_')}_{kind}{'' if self.bits == 8 else '_int4'}"


def loops(sve_bits: int) -> list[Loop]:
    """What a processor runs; without SVE, sdot alone (Neoverse N1)."""
    found = [Loop("dotprod", "neon_dotprod", r, b, f"9tile_rowsILi{r}ELi{b}ELNS0_3AskE2") for r, b in FEW]
    if not sve_bits:
        return found
    columns = {2: 4, 3: 2, 4: 2}
    for bits in (8, 4):
        for pairs in range(2, 9):
            name = f"14multiply_pairsILi{pairs}ELi{bits}ELi{columns.get(pairs, 1)}ELb0"
            found.append(Loop("i8mm", "neon_i8mm", 2 * pairs, bits, name))
    vectors = 512 // sve_bits
    found += [Loop("sve", "sve_i8mm", r, b, f"12sve_dot_rowsILi{vectors}ELi{r}ELi{b}ELNS0_3AskE2") for r, b in FEW]
    for bits in (8, 4):
        for pairs in range(2, 9):
            found.append(Loop("sve_i8mm", "sve_i8mm", 2 * pairs, bits, f"18sve_multiply_pairsILi{pairs}ELi{bits}ELb0"))
    return found


FEW = [(rows, bits) for bits in (8, 4) for rows in (1, 2, 3, 4)]


def march() -> dict[str, str]:
    """The flags that worker/CMakeLists.txt gives each Arm unit."""
    text = (WORKER / "CMakeLists.txt").read_text()
    return dict(re.findall(r'SOURCES}/(\w+)\.cpp PROPERTIES COMPILE_OPTIONS "(-march=[^"]+)"', text))


def assembly(unit: str, folder: Path) -> list[str]:
    """A unit as CMake would compile it."""
    text = (WORKER / "CMakeLists.txt").read_text()
    common = re.search(r"target_compile_options\(berth_kernels PRIVATE (.*)\)", text)
    assert common, "worker/CMakeLists.txt: no compile options"
    to = folder / f"{unit}.s"
    flags = [*common[1].split(), "-std=c++20", "-fPIC", "-DBERTH_AARCH64", march()[unit]]
    subprocess.run([CROSS, *flags, "-S", CSRC / f"{unit}.cpp", "-o", to], check=True)
    return to.read_text().splitlines()


def innermost(lines: list[str], function: str) -> list[str]:
    """The loop of a function that has most multiply instructions for its length.

    Raises:
        LookupError: the assembly has no such function, or it has no such loop.
    """
    start = next((i for i, line in enumerate(lines) if re.match(rf"_Z\w*{function}[\w.]*:", line)), None)
    if start is None:
        raise LookupError(f"no function {function} in the assembly")
    end = next(i for i in range(start, len(lines)) if ".cfi_endproc" in lines[i])
    body = lines[start:end]
    labels = {line[:-1]: i for i, line in enumerate(body) if re.match(r"\.L\d+:$", line)}
    best: list[str] = []
    for i, line in enumerate(body):
        jump = re.match(r"\t(?:b\.?\w*|cbn?z|tbn?z)\t(?:.*, ?)?(\.L\d+)$", line)
        if jump and labels.get(jump[1], len(body)) < i:
            loop = [x for x in body[labels[jump[1]] : i + 1] if re.match(r"\t[a-z]", x)]
            if _density(loop) > _density(best):
                best = loop
    if not best:
        raise LookupError(f"{function} has no loop that multiplies")
    return best


def _density(loop: list[str]) -> float:
    return sum(_multiplies(x) for x in loop) / len(loop) if len(loop) > 8 else 0.0


def _multiplies(line: str) -> bool:
    return line.startswith(("\tsdot", "\tsmmla"))


@dataclass(frozen=True)
class Cost:
    """Cycles of one pass: simulated over many, and the bound that the busiest pipe sets."""

    simulated: float
    bound: float


def simulate(core: str, code: list[str], iterations: int) -> Cost:
    """What llvm-mca says of some instructions, repeated."""
    command = ["llvm-mca-19", "-mtriple=aarch64", f"-mcpu={core}", "-mattr=+dotprod,+i8mm,+sve"]
    text = "\n".join(x for x in code if not x.startswith("\tb")) + "\n"  # all branches are taken and predicted
    done = subprocess.run(
        [*command, f"-iterations={iterations}"], input=text, capture_output=True, text=True, check=True
    )
    cycles, bound = re.search(r"Total Cycles:\s+(\d+)", done.stdout), re.search(r"RThroughput:\s+([\d.]+)", done.stdout)
    assert cycles and bound, done.stdout
    return Cost(int(cycles[1]) / iterations, float(bound[1]))


def rate(core: str, instruction: str) -> float:
    """How many of an instruction the core's pipes take a cycle: independent ones, 48 of them."""
    code = [f"\t{instruction.format(i % 16)}" for i in range(48)]
    return 48 / simulate(core, code, 100).bound


def limit(chip: Chip, loop: Loop) -> float:
    """Multiply-adds a cycle, of which no loop with these instructions can do more."""
    wide = loop.isa.startswith("sve")
    vector = (chip.sve_bits if wide else 128) // 8
    register = "z{}.s, z20.b, z21.b" if wide else "v{}.4s, v20.16b, v21.16b"
    matrix = loop.isa.endswith("i8mm")
    best = rate(chip.core, f"{'smmla' if matrix else 'sdot'} {register}") * vector * (2 if matrix else 1)
    if loop.rows > 1:
        return best
    load = rate(chip.core, "ld1b {{z{}.b}}, p0/z, [x0]" if wide else "ldr q{}, [x0]")
    return min(best, load * vector * 8 / loop.bits)  # a weight that is loaded is used once


@dataclass(frozen=True)
class Result:
    macs: float  # a cycle, simulated
    bound: float  # a cycle, by the busiest pipe
    limit: float
    line: float  # cycles for 16 channels x 4 of depth of all rows

    @property
    def share(self) -> float:
        return self.macs / self.limit


def measure(chip: Chip, loop: Loop, lines: list[str], iterations: int) -> Result:
    code = innermost(lines, loop.function)
    vector = (chip.sve_bits if loop.isa.startswith("sve") else 128) // 8
    # A row's or pair's share of an instruction that multiplies rows is as many channels x depths of each.
    macs = sum(vector * (2 if x.startswith("\tsmmla") else 1) for x in code if _multiplies(x))
    cost = simulate(chip.core, code, iterations)
    each = macs / cost.simulated
    return Result(each, macs / cost.bound, limit(chip, loop), loop.rows * 64 / each)


# Vector operations for each vector of sums, once a unit of activations: begin, subtract (the conversion), multiply-add
# and store for rotated models; one more for each unit's scale.  Counted, not simulated.
SETTLE = 5
UNIT = 256


def whole(name: str, result: Result, pipes: float) -> float:
    """Cycles for 16 channels x 4 of depth of all rows, with what each unit of 256 adds."""
    rows = int(re.findall(r"gem[mv](\d*)", name)[0] or 1)
    return result.line + rows * 16 / 4 * SETTLE / pipes / (UNIT / 4)  # V1's SVE does as much in half the pipes


def turn(chip: Chip, results: dict[str, Result]) -> tuple[int, float]:
    """The first batch whose multiplications take longer than reading the weights, and its multiply-adds a cycle."""
    pipes = rate(chip.core, "fmla v{}.4s, v20.4s, v21.4s")
    first = chip.dispatched[0]
    few = "sve" if first == "sve_i8mm" else "dotprod"
    few_most = 3 if first != "dotprod" else 4

    def cycles(rows: int) -> float:
        total, most = 0.0, 16 if first != "dotprod" else 4
        while rows > 0:
            now = min(rows, most)
            kind = few if now <= few_most else first
            tile = now if now <= few_most else now + now % 2
            name = Loop(kind, "", tile, 8, "").name
            total += whole(name, results[name], pipes)
            rows -= now
        return total

    line = 64 * (1 + 2 / UNIT)  # bytes: int8 weights and a bf16 scale for each unit
    memory = line / (chip.gb_per_s / chip.cores / chip.ghz)  # cycles of a core, whose share of the bandwidth this is
    rows = next(n for n in count(1) if cycles(n) >= memory)
    return rows, rows * 64 / cycles(rows)


def show(results: dict[str, Result]) -> Iterator[str]:
    for name, r in results.items():
        mark = "" if r.share >= BAR else "  below 85 %"
        yield f"  {name:22} {r.macs:7.1f} {r.bound:8.1f} {r.limit:7.1f} {100 * r.share:6.1f} %{mark}"


def main() -> None:
    """Print the tables; exit 1 if a tool is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer simulated iterations, and 8-bit loops alone")
    parser.add_argument("--json", type=Path, help="write the figures there, a flat object")
    args = parser.parse_args()
    missing = [tool for tool in (CROSS, "llvm-mca-19") if shutil.which(tool) is None]
    if missing:
        sys.exit(f"arm_static: {', '.join(missing)} not found: apt-get install g++-aarch64-linux-gnu llvm-19")
    iterations = 200 if args.quick else 2000
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        units = {unit: assembly(unit, Path(folder)) for unit in ("neon_dotprod", "neon_i8mm", "sve_i8mm")}
    print(
        "Multiply-adds a cycle and core of each inner loop, out of the L1 cache: simulated, by the busiest pipe, limit"
    )
    for chip_name, chip in CHIPS.items():
        chosen = [loop for loop in loops(chip.sve_bits) if loop.bits == 8 or not args.quick]
        results = {loop.name: measure(chip, loop, units[loop.unit], iterations) for loop in chosen}
        sve = f", SVE of {chip.sve_bits} bits" if chip.sve_bits else ""
        print(f"\n{chip_name} ({chip.core}{sve})     simulated    bound   limit   share")
        print("\n".join(show(results)))
        rows, macs = turn(chip, results)
        print(
            f"  {chip.cores} cores at {chip.ghz} GHz, {chip.gb_per_s} GB/s: from {rows} rows on, computing takes "
            f"longer than reading int8 weights ({macs:.0f} multiply-adds a cycle with scales for every {UNIT} values)"
        )
        key = chip.core.replace("-", "_")
        for name, r in results.items():
            figures[f"arm_{key}_{name}_macs_per_cycle"] = round(r.macs, 2)
            figures[f"arm_{key}_{name}_share_of_limit"] = round(r.share, 4)
        figures[f"arm_{chip_name.lower()}_compute_bound_from_rows"] = rows
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
