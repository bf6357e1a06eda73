"""How does berth.v1.Generation reach the engine?  Only translation: messages in, engine calls, messages out."""

from __future__ import annotations

import functools
import math
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from berth_worker.engine.limits import NotAcceptingError
from berth_worker.engine.request import FinishReason, InvalidRequestError, SamplingParams
from berth_worker.engine.scheduler import QueueFullError
from berth_worker.proto.berth.v1 import generation_pb2 as pb
from berth_worker.proto.berth.v1 import generation_pb2_grpc as pb_grpc
from berth_worker.server.background import in_thread_if
from berth_worker.server.openai_asked import Asked
from berth_worker.server.openai_fields import Fields
from berth_worker.server.openai_form import Form, form_of
from berth_worker.server.worker import Phase, Worker

if TYPE_CHECKING:
    from berth_worker.engine.engine import Engine
    from berth_worker.engine.stream import Chunk
    from berth_worker.model.interface import Tokenizer

__all__ = ["SERVICE", "GrpcServer"]

SERVICE = pb.DESCRIPTOR.services_by_name["Generation"].full_name
MAX_ID = 256
INLINE_CHARACTERS = 4096
"""Longer text is tokenized in a thread."""
MESSAGE_CHARACTERS = 64
"""As many as a message counts for beside its text."""
MAX_MESSAGE = 16 << 20
"""Bytes, as of an HTTP body; gRPC itself answers a larger one, with RESOURCE_EXHAUSTED."""
OPTIONAL = [field.name for field in pb.SamplingParams.DESCRIPTOR.fields if field.has_presence]
"""Sampling parameters whose default is the engine's."""
REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


class GenerationServicer(pb_grpc.GenerationServicer):
    """Generate, over a worker in any phase."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.open_calls = 0
        """Calls whose client has not been sent everything yet, though the engine may be done with them."""

    async def Generate(  # noqa: N802 - the name in the protocol
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        """See generation.proto."""
        engine = self._worker.engine
        if engine is None or self._worker.phase is Phase.LOADING:
            await _refuse(context, grpc.StatusCode.UNAVAILABLE, "the model is not loaded yet; ask another worker")
        if request.model and request.model != self._worker.model_name:
            await _refuse(
                context,
                grpc.StatusCode.NOT_FOUND,
                f"model: found {request.model!r}; this worker serves {self._worker.model_name!r}",
            )
        try:
            _check_ids(request)
            params = sampling_params(request.sampling)
            grammar = await self._worker.constraints.grammar(Asked(None, params, form=_form(request)), engine)
            stream = engine.submit(
                await _prompt(request, engine),
                params,
                constraint=None if grammar is None else grammar.start(),
                request_id=request.request_id,
                priority=request.priority,
                session_id=request.session_id,
            )
        except InvalidRequestError as error:
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, _named(error, request))
        except QueueFullError as error:
            # what gRPC's own retries wait for (gRFC A6)
            context.set_trailing_metadata((("grpc-retry-pushback-ms", str(math.ceil(1000 * error.retry_seconds))),))
            await _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, f"the queue is full: {error}")
        except NotAcceptingError as error:
            await _refuse(context, grpc.StatusCode.UNAVAILABLE, str(error))
        self.open_calls += 1
        try:
            async for chunk in stream:
                if chunk.finish is not None and chunk.finish.reason not in REASONS:
                    aborted = chunk.finish.reason is FinishReason.ABORT
                    code = grpc.StatusCode.UNAVAILABLE if aborted else grpc.StatusCode.INTERNAL
                    await _refuse(context, code, chunk.finish.error)
                yield response(stream.request_id, chunk, engine.tokenizer)
        finally:
            self.open_calls -= 1
            stream.cancel()  # the client has gone, or there is nothing left to cancel


async def _refuse(context: grpc.aio.ServicerContext, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError("abort raises")  # for the type checker: grpc has no types


def _check_ids(request: pb.GenerateRequest) -> None:
    for name in ("request_id", "session_id"):
        if (length := len(getattr(request, name))) > MAX_ID:
            raise InvalidRequestError(name, f"{length} characters; at most {MAX_ID}")


async def _prompt(request: pb.GenerateRequest, engine: Engine) -> list[int]:
    """The prompt's tokens. Raises InvalidRequestError."""
    kind = request.WhichOneof("prompt")
    tokenizer, most = engine.tokenizer, engine.config.max_context_tokens - 1
    if kind == "token_ids":
        return list(request.token_ids.ids)
    if kind == "text":
        if not request.text:
            raise InvalidRequestError("prompt", "empty; at least one character")
        size = len(request.text)
        encode = functools.partial(tokenizer.encode, request.text, most=most)
    elif kind == "chat":
        if not request.chat.messages:
            raise InvalidRequestError("prompt", "no messages; at least one")
        for index, message in enumerate(request.chat.messages):
            if not message.role:
                raise InvalidRequestError(f"chat.messages[{index}].role", "empty; one of system, user, assistant, tool")
        messages = [{"role": message.role, "content": message.content} for message in request.chat.messages]
        size = sum(MESSAGE_CHARACTERS + len(message.content) for message in request.chat.messages)
        encode = functools.partial(tokenizer.encode_chat, messages, most=most)
    else:
        raise InvalidRequestError("prompt", "nothing to continue; set one of text, chat and token_ids")
    try:
        return await in_thread_if(size > INLINE_CHARACTERS, encode)
    except ValueError as error:
        raise InvalidRequestError("prompt", str(error)) from error


def _form(request: pb.GenerateRequest) -> Form | None:
    """What the output has to be. Raises InvalidRequestError."""
    if not request.HasField("output"):
        return None
    output = request.output
    texts = list(output.choices.texts)
    fields = Fields({"json_schema": output.json_schema, "regex": output.regex, "choices.texts": texts}, "output.")
    kind = output.WhichOneof("form")
    if kind == "json_schema":
        return form_of(fields, kind, "json")
    if kind == "regex":
        return form_of(fields, kind, "regex")
    if kind == "choices":
        return form_of(fields, "choices.texts", "choice")
    raise InvalidRequestError("output", "nothing to keep to; set one of json_schema, regex and choices")


def sampling_params(sampling: pb.SamplingParams) -> SamplingParams:
    """The engine's parameters, defaults filled in. Raises InvalidRequestError."""
    given: dict[str, Any] = {name: getattr(sampling, name) for name in OPTIONAL if sampling.HasField(name)}
    return SamplingParams(
        **given,
        stop=tuple(sampling.stop),
        stop_token_ids=tuple(sampling.stop_token_ids),
        logit_bias=dict(sampling.logit_bias),
        ignore_eos=sampling.ignore_eos,
    )


def _named(error: InvalidRequestError, request: pb.GenerateRequest) -> str:
    """The error with the field's name as the client knows it."""
    name = error.field
    if name.startswith("prompt["):
        name = name.replace("prompt", "token_ids.ids")
    elif name == "prompt":
        name = request.WhichOneof("prompt") or "prompt"
    elif name.split("[")[0] in pb.SamplingParams.DESCRIPTOR.fields_by_name:
        name = f"sampling.{name}"
    return f"{name}: {error.problem}"


def response(request_id: str, chunk: Chunk, tokenizer: Tokenizer) -> pb.GenerateResponse:
    """The message that says what a chunk says."""
    message = pb.GenerateResponse(request_id=request_id, text=chunk.text, token_ids=chunk.token_ids)
    for place in chunk.logprobs:
        entry = message.logprobs.add()
        for logprob, (token, value) in (
            (entry.chosen, (place.token, place.logprob)),
            *((entry.top.add(), pair) for pair in place.top),
        ):
            logprob.token_id, logprob.logprob = token, value
            logprob.text = tokenizer.decode([token], skip_special_tokens=False)
    finish = chunk.finish
    if finish is not None:
        message.finish_reason = REASONS[finish.reason]
        message.usage.prompt_tokens = finish.prompt_tokens
        message.usage.cached_prompt_tokens = finish.cached_prompt_tokens
        message.usage.completion_tokens = finish.completion_tokens
        message.timings.queue_seconds = finish.queue_seconds
        message.timings.prefill_seconds = finish.prefill_seconds
        message.timings.decode_seconds = finish.decode_seconds
    return message


class GrpcServer:
    """The gRPC server in the running event loop: Generation, health and reflection."""

    def __init__(self, worker: Worker, host: str, port: int) -> None:
        """Binds at once. Raises OSError if the port is in use."""
        self._worker = worker
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.so_reuseport", 0),  # a second worker on the port must fail, not take half of the calls
                ("grpc.keepalive_permit_without_calls", 1),  # idle clients behind a load balancer may ping
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ]
        )
        self._generation = GenerationServicer(worker)
        pb_grpc.add_GenerationServicer_to_server(self._generation, self._server)  # type: ignore[no-untyped-call]
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._server)
        if port:  # ask the system first: gRPC hides its reason and prints a line of its own
            socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
        self.port: int = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")

    @property
    def open_calls(self) -> int:
        """Generate calls that are still being answered."""
        return self._generation.open_calls

    async def start(self) -> None:
        """Begin to answer: NOT_SERVING until `show_health` finds the worker ready."""
        await self.show_health()
        await self._server.start()

    async def show_health(self) -> None:
        """Bring the health service in line with the worker; its watchers are told."""
        ready = self._worker.unready() is None
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE):
            await self._health.set(service, status)

    async def stop(self, grace: float) -> None:
        """Stop answering; calls that still run get grace seconds to send what they have."""
        await self._server.stop(grace)
