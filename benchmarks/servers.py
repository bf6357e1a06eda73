"""How does a client see a turn?  llama-server or berth-worker as a real process on loopback, and one turn of it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc
import httpx
from berth_worker.proto.berth.v1 import generation_pb2 as pb
from berth_worker.proto.berth.v1 import generation_pb2_grpc
from llamacpp_runs import Setting
from peers import llama_cpp

__all__ = ["BerthServer", "LlamaServer", "Server", "Turn"]

CONTEXT = 4096
_READY = re.compile(r"berth-worker ready grpc=(\S+)")
_START_SECONDS = 120


@dataclass(frozen=True)
class Turn:
    """One request as its client saw it."""

    seconds: float
    first_token_seconds: float
    tokens: tuple[int, ...]
    cached: int
    """Prompt tokens that were not computed again."""


class Server(Protocol):
    def turn(self, prompt: Sequence[int], count: int) -> Turn:
        """Generate `count` tokens, the likeliest each time, whatever they are."""
        ...

    def close(self) -> None: ...


class LlamaServer:
    """llama-server with one slot and its prompt cache; streamed over HTTP."""

    def __init__(self, model: Path, setting: Setting, threads: int, more: Sequence[str] = ()) -> None:
        tools = llama_cpp()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = ["-m", str(model), "-t", str(threads), "-c", str(CONTEXT), "-np", "1", "--host", "127.0.0.1"]
        flags += ["--port", str(port), "-fa", "on" if setting.flash else "off"]
        flags += ["-ctk", setting.kv, "-ctv", setting.kv, *([] if setting.repack else ["--no-repack"]), *more]
        self._process = subprocess.Popen(
            tools.command("llama-server", *flags),
            env=tools.environment(setting.variant, setting.huge_pages),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # a connection a request: llama-server may close one that is kept just as the next request goes out on it
        once = httpx.Limits(max_keepalive_connections=0)
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False, limits=once)
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise RuntimeError(f"llama-server ended with code {self._process.returncode}")
            try:
                if self._client.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        self.close()
        raise RuntimeError("llama-server was not ready in time")

    def turn(self, prompt: Sequence[int], count: int) -> Turn:
        greedy = {"temperature": 0, "samplers": ["top_k"], "top_k": 1, "ignore_eos": True}
        request = {"prompt": list(prompt), "n_predict": count, "cache_prompt": True, "stream": True, **greedy}
        tokens: list[int] = []
        first, cached = 0.0, 0
        began = time.perf_counter()
        with self._client.stream("POST", "/completion", json={**request, "return_tokens": True}) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                part = json.loads(line[6:])
                if part.get("tokens") and not part.get("stop"):
                    first = first or time.perf_counter() - began
                    tokens += part["tokens"]
                if part.get("stop"):
                    cached = int(part["timings"]["cache_n"])
        if answer.status_code != 200:
            raise RuntimeError(f"llama-server answered {answer.status_code}")
        return Turn(time.perf_counter() - began, first, tuple(tokens), cached)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._client.close()


class BerthServer:
    """berth-worker; streamed over gRPC (berth.v1)."""

    def __init__(self, model: str, threads: int, more: Sequence[str] = ()) -> None:
        command = [str(Path(sys.executable).with_name("berth-worker")), "--model", model, "--host", "127.0.0.1"]
        command += ["--grpc-port", "0", "--http-port", "0", "--threads", str(threads)]
        command += ["--max-context-tokens", str(CONTEXT), "--kv-cache-tokens", str(8 * CONTEXT), *more]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=dict(os.environ)
        )
        assert self._process.stdout is not None
        found = next((match for line in self._process.stdout if (match := _READY.search(line))), None)
        if found is None:
            raise RuntimeError(f"berth-worker ended with code {self._process.wait()}")
        self._channel = grpc.insecure_channel(found[1])
        self._stub = generation_pb2_grpc.GenerationStub(self._channel)  # type: ignore[no-untyped-call]

    def turn(self, prompt: Sequence[int], count: int) -> Turn:
        greedy = pb.SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=greedy, session_id="agent")
        tokens: list[int] = []
        first, cached = 0.0, 0
        began = time.perf_counter()
        for part in self._stub.Generate(request, timeout=600):
            if part.token_ids:
                first = first or time.perf_counter() - began
                tokens += part.token_ids
            cached = part.usage.cached_prompt_tokens or cached
        return Turn(time.perf_counter() - began, first, tuple(tokens), cached)

    def close(self) -> None:
        """End the process."""
        self._channel.close()
        self._process.kill()
        self._process.wait()
