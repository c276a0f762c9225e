"""The HTTP application: OpenAI's routes over a :class:`~lightning_gpt.serving.service.Service`."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from lightning_gpt.serving.guard import Guard
from lightning_gpt.serving.refusals import RefusedError
from lightning_gpt.serving.requests import ChatRequest, CompletionRequest, GenerationRequest, parsed
from lightning_gpt.serving.service import Answer, Service

Q = TypeVar("Q", bound=GenerationRequest)
_GONE = Response(status_code=499)  # for a client that does not wait for it


def create_app(service: Service, token: str | None = None, hosts: Collection[str] | None = None) -> FastAPI:
    """The application.

    Args:
        service: Answers the requests; started with the application.
        token: What clients must send; None if everyone may call.
        hosts: Names by which the server may be called; None for any.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.engine.close)

    return guarded([_routes(service)], lifespan, token, hosts, service.limits.transfer_seconds)


def guarded(
    routers: Collection[APIRouter],
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    token: str | None,
    hosts: Collection[str] | None,
    send_seconds: float,
) -> FastAPI:
    """An application of ``routers`` behind a :class:`~lightning_gpt.serving.guard.Guard`, whose arguments these are.

    ``lifespan`` is entered when the application starts, and left when it ends.
    """
    # the pages that describe an API load their scripts from elsewhere
    app = FastAPI(title="lightning-gpt", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(HTTPException, _unknown_route)
    app.add_middleware(Guard, token=token, hosts=hosts, send_seconds=send_seconds)
    return app


async def _unknown_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = RefusedError(error.status_code, f"{request.method} {request.url.path[:80]}: {error.detail}")
    return JSONResponse(said.body, error.status_code, error.headers)


def _routes(service: Service) -> APIRouter:
    router = APIRouter()
    started = int(time.time())

    @router.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", **vars(service.engine.counts), "slots": service.engine.slots}

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model()]}

    @router.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> dict[str, Any]:
        if name != service.name:
            raise RefusedError(
                404, f"the model {name[:80]!r} does not exist here", code="model_not_found", param="model"
            )
        return model()

    def model() -> dict[str, Any]:
        return {"id": service.name, "object": "model", "created": started, "owned_by": "lightning-gpt"}

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _answered(service, request, CompletionRequest, service.complete)

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await _answered(service, request, ChatRequest, service.chat)

    return router


async def _answered(
    service: Service, request: Request, kind: type[Q], begin: Callable[[Q], Awaitable[Answer]]
) -> Response:
    """The response to a request, whole or as a stream of events."""
    try:
        body = await read_body(request, service.limits.body, service.limits.transfer_seconds)
    except ClientDisconnect:
        return _GONE
    asked = parsed(kind, body)
    answer = await begin(asked)
    if asked.stream:
        return _EventStream(answer, asked.streams_usage)
    with answer:
        texts = await _unless_gone(request.receive, answer.whole())
        return _GONE if texts is None else JSONResponse(answer.reply.whole(texts))


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """The body of a request.

    Args:
        request: The request.
        most: The largest body, in bytes.
        seconds: The longest that the client may take to send it.

    Raises:
        RefusedError: It is of another type than JSON, too long, or comes too slowly.
        ClientDisconnect: The client has gone.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":  # a page of another site cannot send this type
        raise RefusedError(415, f"the content type is {kind[:80]!r}; it must be application/json")
    body = b""
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise RefusedError(413, f"the body is longer than {most:,} bytes", headers={"connection": "close"})
    except TimeoutError:
        message = f"the body did not arrive within {seconds:g} seconds"
        raise RefusedError(408, message, headers={"connection": "close"}) from None
    return body


T = TypeVar("T")


async def _unless_gone(receive: Receive, work: Awaitable[T]) -> T | None:
    """The result of ``work``; None, and the work is cancelled, if the client closes the connection before."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _EventStream(Response):
    """Server-sent events, one or more tokens each; a client that goes away ends the generation.

    Args:
        answer: What is generated.
        with_usage: Whether the numbers of tokens come last.
    """

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, with_usage: bool) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._answer, self._with_usage = answer, with_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._answer:
            await _unless_gone(receive, self._stream(send))

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

        async def event(content: str) -> None:
            await send({"type": "http.response.body", "body": f"data: {content}\n\n".encode(), "more_body": True})

        reply = self._answer.reply
        try:
            async for index, piece in self._answer.pieces():
                if piece.text or piece.log_probs or piece.is_last:
                    await event(_json(reply.chunk(index, piece)))
                else:
                    reply.count(piece)
            if self._with_usage:
                await event(_json(reply.usage_chunk()))
            await event("[DONE]")
        except RefusedError as refused:
            await event(_json(refused.body))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
