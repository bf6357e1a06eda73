"""How does the committed gRPC code come from the .proto files?  `python -m berth_worker.proto.generate`.

Needs grpcio-tools in the version that the workspace pins; a test fails when the committed code differs.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["generate"]

HERE = Path(__file__).parent


def generate(target: Path) -> list[Path]:
    """Write the Python code of every .proto file here into target, laid out as in this package; returns the files.

    Raises RuntimeError if protoc refuses a file, and ImportError without grpcio-tools.
    """
    from grpc_tools import protoc  # noqa: PLC0415 - a tool of developers, not a dependency of the worker

    sources = sorted(path.relative_to(HERE) for path in HERE.rglob("*.proto"))
    arguments = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{HERE}", *arguments, *map(str, sources)]):
        raise RuntimeError(f"protoc refused one of {', '.join(map(str, sources))}")
    written = [
        target / source.with_name(source.stem + end)
        for source in sources
        for end in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
    ]
    for path in written:  # protoc imports siblings from the root of its search path; ours live inside this package
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"^from berth\.", "from berth_worker.proto.berth.", text, flags=re.MULTILINE), "utf-8")
    return written


if __name__ == "__main__":
    for file in generate(HERE):
        sys.stdout.write(f"{file}\n")
