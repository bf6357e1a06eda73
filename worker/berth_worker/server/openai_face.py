"""How does an OpenAI client reach the engine?  What begins with /v1, as ASGI.

Only translation, over the same engine and the same limits as gRPC.  A client that goes away frees what it held.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from berth_worker.engine.limits import NotAcceptingError
from berth_worker.engine.request import FinishReason, InvalidRequestError
from berth_worker.engine.scheduler import QueueFullError
from berth_worker.server.answer_items import AnswerItems
from berth_worker.server.background import in_thread_if
from berth_worker.server.events import EventStream
from berth_worker.server.openai_asked import Asked, Prompt
from berth_worker.server.openai_body import parse_body
from berth_worker.server.openai_reply import ChatChoice, Choice, ChoicesReply, Reply, TextChoice, error_body
from berth_worker.server.openai_request import read_chat, read_completion
from berth_worker.server.refusals import RefusedError
from berth_worker.server.request_ids import request_id
from berth_worker.server.responses_reply import ResponseReply
from berth_worker.server.responses_request import read_response
from berth_worker.server.worker import Phase, Worker

if TYPE_CHECKING:
    from berth_worker.engine.engine import Engine
    from berth_worker.engine.stream import AsyncStream, Chunk

__all__ = ["OpenAiFace", "problem"]

log = logging.getLogger(__name__)

SERVED = ("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/models")
MAX_BODY = 16 << 20
"""Bytes; a context of a million tokens is less."""
INLINE_CHARACTERS = 4096
"""Longer prompts are tokenized in a thread."""
INLINE_BODY = 1 << 16
"""Bytes; larger bodies are read in a thread."""
MESSAGE_CHARACTERS = 64
"""As many as a message, or a call in one, counts for beside its text; a tool counts for four times as many."""


class OpenAiFace:
    """The routes, over a worker in any phase."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.open_calls = 0
        """Requests that have arrived and whose client has not been sent everything yet."""
        self.routes = [
            Route("/v1/models", self._models),
            Route("/v1/models/{model:path}", self._model),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/responses", self._responses, methods=["POST"]),
        ]

    # -- routes ------------------------------------------------------------------------------------------------------

    async def _models(self, _: Request) -> Response:
        try:
            return JSONResponse({"object": "list", "data": [self._card(self._engine())]})
        except RefusedError as error:
            return error.response()

    async def _model(self, request: Request) -> Response:
        try:
            engine = self._engine()
            self._check_model(request.path_params["model"])
            return JSONResponse(self._card(engine))
        except RefusedError as error:
            return error.response()

    async def _completions(self, request: Request) -> Response:
        return await self._answer(request, read_completion)

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, read_chat)

    async def _responses(self, request: Request) -> Response:
        return await self._answer(request, read_response)

    # -- one answer --------------------------------------------------------------------------------------------------

    async def _answer(self, request: Request, read: Callable[[dict[str, Any], str], Asked]) -> Response:
        try:
            engine = self._engine()
            body = await _body(request)
        except RefusedError as error:
            return error.response()
        except ClientDisconnect:
            return Response(status_code=499)
        streams: list[AsyncStream] = []
        answered = False
        self.open_calls += 1  # not before: who stalls in the middle of a request keeps no worker from leaving
        try:
            session = request.headers.get("x-session-id", "")
            try:
                asked = await in_thread_if(len(body) > INLINE_BODY, lambda: read(parse_body(body), session))
            except InvalidRequestError as error:
                raise RefusedError(400, str(error), error.field) from error
            self._check_model(asked.model)
            bound = await self._submit(asked, engine, request_id(request), streams)
            reply = self._reply(asked, engine, streams, sure=bound)
            response: Response
            if asked.stream:
                response = EventStream(_events(reply, streams))
            else:
                whole = await _unless_gone(request, _collect(reply, streams))
                response = Response(status_code=499) if whole is None else JSONResponse(whole)
            answered = True
            return _Tracked(response, lambda: self._done(streams), self._worker)
        except RefusedError as error:
            return error.response()
        except Exception as error:
            log.exception("%s failed, request %s", request.url.path, request_id(request))
            return RefusedError(500, f"the worker failed on this request: {type(error).__name__}").response()
        finally:
            if not answered:
                self._done(streams)

    def _reply(self, asked: Asked, engine: Engine, streams: Sequence[AsyncStream], *, sure: bool) -> Reply:
        """sure: whether the answers keep to a grammar."""
        name, model, tokenizer = streams[0].request_id, self._worker.model_name, engine.tokenizer
        tools = [tool["function"]["name"] for tool in asked.tools if asked.may_call]

        def items() -> AnswerItems:
            return AnswerItems(tools, parallel=asked.parallel_calls, call=asked.call, sure=sure)

        if asked.repeated is not None:
            return ResponseReply(asked, items(), tokenizer, name, model)
        choices: list[Choice] = [
            ChatChoice(i, tokenizer, items()) if asked.messages else TextChoice(i, tokenizer)
            for i in range(len(streams))
        ]
        return ChoicesReply(asked, choices, name, model)

    def _done(self, streams: Sequence[AsyncStream]) -> None:
        """All is sent, or nobody reads any more."""
        self.open_calls -= 1
        for stream in streams:
            stream.cancel()

    async def _submit(self, asked: Asked, engine: Engine, name: str, streams: list[AsyncStream]) -> bool:
        """Queue every choice of every prompt, into streams, so that those already queued are ended if one cannot be;
        whether the answers keep to a grammar."""
        try:
            most = engine.config.max_running + engine.config.max_waiting
            if (answers := max(1, len(asked.prompts)) * asked.choices) > most:
                raise InvalidRequestError("n", f"{answers} answers in all; this worker has room for {most}")
            grammar = await self._worker.constraints.grammar(asked, engine)
            prompts = [await _ids(prompt, engine) for prompt in asked.prompts] or [await _chat_ids(asked, engine)]
            for ids in prompts:
                for choice in range(asked.choices):
                    params = asked.params_of(choice, engine.config.max_context_tokens - len(ids))
                    output = None if grammar is None else grammar.start()
                    streams.append(
                        engine.submit(ids, params, request_id=name, session_id=asked.session_id, constraint=output)
                    )
            return grammar is not None
        except InvalidRequestError as error:
            name = asked.renamed(error.field)
            message, code = f"{name}: {error.problem}", None
            if _too_long(error, asked, engine):  # OpenAI's words, by which agents know that they have to cut histories
                message += f". This model's maximum context length is {engine.config.max_context_tokens} tokens."
                code = "context_length_exceeded"
            raise RefusedError(400, message, name, code) from error
        except QueueFullError as error:
            message = f"the queue is full: {error}"
            raise RefusedError(429, message, code="queue_full", retry_seconds=error.retry_seconds) from error
        except NotAcceptingError as error:
            raise RefusedError(503, str(error), code="not_accepting") from error

    # -- what is served ----------------------------------------------------------------------------------------------

    def _engine(self) -> Engine:
        engine = self._worker.engine
        if engine is None or self._worker.phase is Phase.LOADING:
            raise RefusedError(503, "the model is not loaded yet; ask another worker", code="loading")
        return engine

    def _check_model(self, model: str | None) -> None:
        if model and model != self._worker.model_name:
            message = f"model: found {model!r}; this worker serves {self._worker.model_name!r}"
            raise RefusedError(404, message, "model", "model_not_found")

    def _card(self, engine: Engine) -> dict[str, Any]:
        return {
            "id": self._worker.model_name,
            "object": "model",
            "created": int(self._worker.served_since),
            "owned_by": "berth",
            "max_model_len": engine.config.max_context_tokens,
        }


def problem(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself, in OpenAI's form: clients show it, and some ask without the /v1."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    text = f"{request.method} {request.url.path}: {error.detail}"
    if error.status_code == 404:
        text += f"; this worker serves {', '.join(SERVED)}"
    return JSONResponse(error_body(text, "invalid_request_error"), error.status_code, error.headers)


class _Tracked(Response):
    """A response after which something is done, whether or not its client waited for the end."""

    def __init__(self, inner: Response, done: Callable[[], None], worker: Worker) -> None:
        self._inner, self._done, self._worker = inner, done, worker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            """A worker that leaves closes its connections, so that their clients find another."""
            if message["type"] == "http.response.start" and self._worker.phase is not Phase.SERVING:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            await self._inner(scope, receive, closing)
        finally:
            self._done()


async def _body(request: Request) -> bytes:
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY:
            raise RefusedError(413, f"body: more than {MAX_BODY} bytes", "body")
        pieces.append(piece)
    return b"".join(pieces)


async def _ids(prompt: Prompt, engine: Engine) -> list[int]:
    if isinstance(prompt, list):
        return prompt
    most = engine.config.max_context_tokens - 1
    try:
        return await in_thread_if(len(prompt) > INLINE_CHARACTERS, lambda: engine.tokenizer.encode(prompt, most=most))
    except ValueError as error:
        raise InvalidRequestError("prompt", str(error)) from error


async def _chat_ids(asked: Asked, engine: Engine) -> list[int]:
    things = sum(1 + len(message.get("tool_calls", ())) for message in asked.messages) + 4 * len(asked.tools)
    size = sum(len(message["content"] or "") for message in asked.messages) + MESSAGE_CHARACTERS * things

    def encode() -> list[int]:
        most = engine.config.max_context_tokens - 1
        return engine.tokenizer.encode_chat(asked.messages, tools=asked.tools, call=asked.call, most=most)

    try:
        return await in_thread_if(size > INLINE_CHARACTERS, encode)
    except (ValueError, RecursionError) as error:  # tools can be nested as deep as JSON is read
        raise InvalidRequestError("prompt", str(error).removeprefix("messages: ")) from error


def _too_long(error: InvalidRequestError, asked: Asked, engine: Engine) -> bool:
    """Whether a shorter prompt would do: clients shorten theirs then."""
    if error.field == "max_tokens":
        return asked.params.max_tokens is not None and asked.params.max_tokens < engine.config.max_context_tokens
    return error.field == "prompt" and "too many" in error.problem


async def _merged(streams: Sequence[AsyncStream]) -> AsyncIterator[tuple[int, Chunk]]:
    """Chunks of all streams as they come, until all have ended. Raises RefusedError for one that failed."""
    if len(streams) == 1:
        async for chunk in streams[0]:
            yield 0, _checked(chunk)
        return
    arrived: asyncio.Queue[tuple[int, Chunk]] = asyncio.Queue()

    async def read(index: int, stream: AsyncStream) -> None:
        async for chunk in stream:
            arrived.put_nowait((index, chunk))

    readers = [asyncio.create_task(read(index, stream)) for index, stream in enumerate(streams)]
    try:
        open_streams = len(streams)
        while open_streams:
            index, chunk = await arrived.get()
            yield index, _checked(chunk)
            open_streams -= chunk.finish is not None
    finally:
        for reader in readers:
            reader.cancel()


def _checked(chunk: Chunk) -> Chunk:
    if chunk.finish is not None and chunk.finish.reason in (FinishReason.ABORT, FinishReason.ERROR):
        aborted = chunk.finish.reason is FinishReason.ABORT
        raise RefusedError(503 if aborted else 500, chunk.finish.error or "the request was ended")
    return chunk


async def _collect(reply: Reply, streams: Sequence[AsyncStream]) -> dict[str, Any]:
    async for index, chunk in _merged(streams):
        reply.take(index, chunk)
    return reply.whole()


async def _events(reply: Reply, streams: Sequence[AsyncStream]) -> AsyncIterator[bytes]:
    """Server-sent events; an error ends them."""
    if events := reply.begun():
        yield reply.encoded(events)
    try:
        async for index, chunk in _merged(streams):
            if events := reply.take(index, chunk):
                yield reply.encoded(events)
    except RefusedError as error:
        yield reply.encoded(reply.failed(error.body()))
        return
    yield reply.encoded(reply.ended()) + reply.last


async def _unless_gone(request: Request, work: Any) -> dict[str, Any] | None:
    """What the work gives, or None once the client is not there any more."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
