"""How fast is our int8 step beside what Python users run: CTranslate2 int8, transformers, torch.compile, torch's int8?

Decode at batch 1 on an empty context, and a prompt of 256 tokens with the logits of its last one.  Every peer runs in a
process of its own with as many threads, which waits while another is measured; rounds are interleaved.

    python benchmarks/python_peers.py [--quick] [--json FILE] [--threads N] [--only PEER ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import models
from _common import Report, interleave, options, progress
from berth_worker.model.load import load
from ours import Decode, Prefill
from peers import CTRANSLATE2, TORCHAO, python_peers

PEERS = {
    "ctranslate2": "CTranslate2 int8",
    "fp32_eager": "transformers, float32",
    "bf16_eager": "transformers, bfloat16",
    "fp32_compile": "transformers, float32, torch.compile with a static cache",
    "bf16_compile": "transformers, bfloat16, torch.compile with a static cache",
    "int8pack": "transformers, bfloat16, linear layers through torch._weight_int8pack_mm, torch.compile",
    "torchao_int8": "torchao Int8DynamicActivationInt8Weight, torch.compile",
}


class Peer:
    """A peer in its own process: a line in, a number out."""

    def __init__(self, name: str, threads: int, steps: int) -> None:
        program = str(Path(__file__).with_name("python_peer_process.py"))
        folder = str(models.hugging_face())
        variables = {**python_peers(), "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, program, name, folder, str(threads), str(steps)],
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: str) -> float:
        """Of "ready", "decode" or "prefill": tokens a second (1 for ready).  Raises RuntimeError if the peer fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(what + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in self._process.stdout:
            if line.startswith("{"):
                return float(json.loads(line)["value"])
        _, error = self._process.communicate()
        raise RuntimeError(error.strip().splitlines()[-1] if error.strip() else "ended without a word")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", nargs="*", choices=PEERS, default=[], help="only these peers")
    chosen = parser.parse_args()
    rounds, steps = (2, 16) if chosen.quick else (7, 48)
    names = chosen.only or (["ctranslate2", "fp32_eager"] if chosen.quick else list(PEERS))

    report = Report(chosen.threads)
    loaded = load(models.EMBEDDED, threads=chosen.threads)
    report.note("berth", f"{loaded.name} {loaded.recipe} {loaded.path}")
    report.note("pins", f"{CTRANSLATE2} {TORCHAO}")
    peers: dict[str, Peer] = {}
    for name in names:
        progress(f"starting {name}")
        peer = Peer(name, chosen.threads, steps)
        try:
            peer.ask("ready")
        except RuntimeError as error:  # said, and left out: a peer that cannot run here is no peer to beat
            report.note(f"{name}_failed", str(error))
            peer.close()
            continue
        peers[name] = peer
        report.note(name, PEERS[name])
    sides: dict[str, Callable[[], float]]
    for case, figure in (("decode", "decode_b1"), ("prefill", "prefill256")):
        ours = Decode(loaded.model, 1, 0, steps) if case == "decode" else Prefill(loaded.model, 256, 0)
        ours.run()
        sides = {"berth": ours.run}
        for name, peer in peers.items():
            sides[name] = lambda peer=peer, case=case: peer.ask(case)  # type: ignore[misc]
        values = interleave(rounds, sides, figure)
        mine = values.pop("berth")
        report.speeds(f"berth_{figure}", mine)
        for name, found in values.items():
            report.speeds(f"{name}_{figure}", found)
            report.ratio(f"{figure}_vs_{name}", mine, {name: found})
    for peer in peers.values():
        peer.close()
    report.write(chosen.json)


if __name__ == "__main__":
    main()
