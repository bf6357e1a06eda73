"""Is the code in the shape that we promise?  ruff, mypy --strict and the import contracts, as tests."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["operator/berth_operator", "worker/berth_worker", "tools/devcluster", "tools/demo", "tools/chartgen"]


def _passes(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


def test_ruff_finds_nothing() -> None:
    _passes(sys.executable, "-m", "ruff", "check", ".")


def test_every_file_is_formatted() -> None:
    _passes(sys.executable, "-m", "ruff", "format", "--check", ".")


@pytest.mark.timeout(600)
def test_our_packages_are_strictly_typed() -> None:
    _passes(sys.executable, "-m", "mypy", *PACKAGES)


def test_import_contracts_hold() -> None:
    _passes(str(Path(sys.executable).parent / "lint-imports"), "--config", "pyproject.toml")
