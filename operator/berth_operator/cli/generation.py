"""How do we talk to a worker that we know nothing of?  gRPC server reflection: it tells us its own messages.

So the operator's distribution carries no generated code of the worker's, and a worker of another version answers as
long as the fields used here keep their names (`berth.v1.Generation/Generate`).
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import grpc
import grpc.aio
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICE: Final = "berth.v1.Generation"
_METHOD: Final = "Generate"
_CONNECT_SECONDS: Final = 10.0
_MANY_STREAMS: Final = (("grpc.use_local_subchannel_pool", 1),)


class GenerationError(Exception):
    """The worker refused, failed, or could not be reached; the text is what a person needs."""

    def __init__(self, message: str, *, bad_input: bool = False) -> None:
        super().__init__(message)
        self.bad_input = bad_input
        """Whether what was asked for must change."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the output, as it arrived."""

    at: float
    """time.perf_counter() when it arrived."""
    text: str
    tokens: int
    """Tokens in it; 0 for a last message that only ends the stream."""
    prompt_tokens: int | None = None
    """On the last piece alone; likewise below."""
    cached_prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """The one method of the service, and its request's class, as the worker describes them."""

    path: str
    request: type[Any]
    response: type[Any]


def discover(address: str) -> GenerateCall:
    """Ask the worker at `address` (host:port) for its messages.  Raises GenerationError."""
    channel = grpc.insecure_channel(address)
    try:
        _connect(channel, address)
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        method = pool.FindServiceByName(SERVICE).methods_by_name[_METHOD]
        return GenerateCall(
            f"/{SERVICE}/{_METHOD}",
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
    except grpc.RpcError as error:
        raise GenerationError(f"{address} answers no gRPC reflection: {_said(error)}") from None
    except KeyError:
        raise GenerationError(f"{address} does not serve {SERVICE}: is it a Berth worker's gRPC port?") from None
    finally:
        channel.close()


def _connect(channel: grpc.Channel, address: str) -> None:
    """Wait until the channel is connected; a refused connection is an answer, too."""
    states: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
    channel.subscribe(states.put, try_to_connect=True)
    deadline = time.monotonic() + _CONNECT_SECONDS
    state = None
    while state is not grpc.ChannelConnectivity.READY:
        try:
            state = states.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise GenerationError(f"no gRPC server answers at {address} within {_CONNECT_SECONDS:g} s") from None
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            raise GenerationError(f"no gRPC server answers at {address}: the connection failed")


class GenerationClient:
    """`async with GenerationClient(address, discover(address)) as client: ...`"""

    def __init__(self, address: str, call: GenerateCall) -> None:
        self._address = address
        self._call = call

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self._address, options=_MANY_STREAMS)
        self._generate = self._channel.unary_stream(
            self._call.path,
            request_serializer=self._call.request.SerializeToString,
            response_deserializer=self._call.response.FromString,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def chat(
        self, prompt: str, *, model: str = "", max_tokens: int | None = None, temperature: float = 0.0
    ) -> AsyncIterator[Piece]:
        """Stream the answer to one user message.  Raises GenerationError."""
        sampling = {"temperature": temperature} | ({} if max_tokens is None else {"max_tokens": max_tokens})
        request = self._call.request(
            model=model, chat={"messages": [{"role": "user", "content": prompt}]}, sampling=sampling
        )
        async for piece in self._stream(request):
            yield piece

    async def complete_tokens(
        self, token_ids: Sequence[int], *, model: str, output_tokens: int
    ) -> AsyncIterator[Piece]:
        """Stream exactly `output_tokens` tokens, drawn at temperature 1, after a prompt of token ids.

        Raises GenerationError.
        """
        request = self._call.request(
            model=model,
            token_ids={"ids": list(token_ids)},
            sampling={"max_tokens": output_tokens, "temperature": 1.0, "ignore_eos": True},
        )
        async for piece in self._stream(request):
            yield piece

    async def _stream(self, request: Any) -> AsyncIterator[Piece]:
        call = self._generate(request)
        try:
            async for response in call:
                at = time.perf_counter()
                last = response.HasField("usage")
                yield Piece(
                    at,
                    response.text,
                    len(response.token_ids),
                    response.usage.prompt_tokens if last else None,
                    response.usage.cached_prompt_tokens if last else None,
                )
        except grpc.aio.AioRpcError as error:
            refused = error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
            raise GenerationError(f"{self._address} refused: {_said(error)}", bad_input=refused) from None
        except asyncio.CancelledError:
            call.cancel()
            raise


def _said(error: grpc.RpcError) -> str:
    code = error.code() if hasattr(error, "code") else None
    details = error.details() if hasattr(error, "details") else ""
    return f"{code.name if code else 'error'}: {details or error}"
