"""One Python peer in its own process: started by python_peers.py, it answers each line of input with a number.

    python python_peer_process.py PEER HF_FOLDER THREADS STEPS
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PROMPT = 256

Runs = dict[str, Callable[[], float]]


def ids(count: int, seed: int = 0) -> list[int]:
    return [(i * 7919 + seed) % 40000 + 100 for i in range(count)]


def ctranslate2(folder: Path, threads: int, steps: int) -> Runs:
    """Decode from a prompt of one token; a prompt's forward pass, which gives the logits of every position."""
    import ctranslate2  # noqa: PLC0415

    converted = folder.with_name("135m-ctranslate2-int8")
    if not (converted / "model.bin").exists():
        converter = ctranslate2.converters.TransformersConverter(str(folder))
        converter.convert(str(converted), quantization="int8", force=True)
    # measured here: int8 is faster than int8_float32 and int8_bfloat16 or the same; intra_threads is the pool's size
    generator = ctranslate2.Generator(str(converted), intra_threads=threads, compute_type="int8")
    words = [line for line in json.loads((converted / "vocabulary.json").read_text())]

    def decode() -> float:
        one = {"beam_size": 1, "include_prompt_in_result": False, "end_token": []}
        began = time.perf_counter()
        result = generator.generate_batch([[words[1]]], max_length=steps, min_length=steps, **one)
        return len(result[0].sequences_ids[0]) / (time.perf_counter() - began)

    def prefill() -> float:
        """A prompt of 256 and one token: the token's step would take less than a hundredth of it, and is counted."""
        tokens = [words[i] for i in ids(PROMPT)]
        one = {"beam_size": 1, "include_prompt_in_result": False, "end_token": []}
        began = time.perf_counter()
        generator.generate_batch([tokens], max_length=1, min_length=1, **one)
        return PROMPT / (time.perf_counter() - began)

    return {"decode": decode, "prefill": prefill}


def transformers(folder: Path, dtype: torch.dtype, *, compiled: bool, change: Callable[[Any], None] | None) -> Any:
    """The forward of a Llama: (ids [1, n], position) -> logits of the last token; the cache is static if compiled."""
    from transformers import AutoModelForCausalLM, DynamicCache, StaticCache  # noqa: PLC0415

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    if change is not None:
        change(model)
    static = StaticCache(config=model.config, max_cache_len=512) if compiled else None
    step = torch.compile(model.forward, dynamic=False) if compiled else model.forward
    state: dict[str, Any] = {}

    def forward(tokens: list[int], position: int) -> Any:
        if position == 0:
            state["cache"] = static or DynamicCache(config=model.config)
            if static is not None:
                static.reset()
        places = torch.arange(position, position + len(tokens))
        more = {"cache_position": places} if compiled else {}
        return step(
            input_ids=torch.tensor([tokens]),
            position_ids=places[None],
            past_key_values=state["cache"],
            use_cache=True,
            logits_to_keep=1,
            **more,
        ).logits

    return forward


def torch_runs(forward: Any, steps: int) -> Runs:
    def decode() -> float:
        with torch.inference_mode():
            forward([1], 0)
            began = time.perf_counter()
            for position in range(1, steps + 1):
                forward([position], position)
            return steps / (time.perf_counter() - began)

    def prefill() -> float:
        with torch.inference_mode():
            began = time.perf_counter()
            forward(ids(PROMPT), 0)
            return PROMPT / (time.perf_counter() - began)

    return {"decode": decode, "prefill": prefill}


class Int8Linear(torch.nn.Module):
    """Weights in int8 per channel, activations in bfloat16: torch's own kernel."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(1) / 127).clamp_min(1e-9)
        self.register_buffer("packed", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.to(torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        return torch._weight_int8pack_mm(flat, self.packed, self.scale).reshape(*x.shape[:-1], -1)


def int8pack(model: Any) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(module, name, Int8Linear(child))


def torchao(model: Any) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_  # noqa: PLC0415

    quantize_(model, Int8DynamicActivationInt8WeightConfig())


def build(name: str, folder: Path, threads: int, steps: int) -> Runs:
    if name == "ctranslate2":
        return ctranslate2(folder, threads, steps)
    bf16 = torch.float32 if name.startswith("fp32") else torch.bfloat16
    change = {"int8pack": int8pack, "torchao_int8": torchao}.get(name)
    return torch_runs(transformers(folder, bf16, compiled=not name.endswith("eager"), change=change), steps)


def main() -> None:
    name, folder, threads, steps = sys.argv[1:]
    torch.set_num_threads(int(threads))
    runs = build(name, Path(folder), int(threads), int(steps))
    for run in runs.values():  # compiles, and warms up
        run()
    for line in sys.stdin:
        value = 1.0 if line.strip() == "ready" else runs[line.strip()]()
        print(json.dumps({"value": value}), flush=True)


if __name__ == "__main__":
    main()
