"""The explorer's routes: the page, its files, and what it asks of the models."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel
from starlette.responses import Response

from lightning_gpt.errors import CallError
from lightning_gpt.exploring import assets_of_page
from lightning_gpt.exploring.answers import cell, depth, keep, lens, overview
from lightning_gpt.exploring.looking import Passes, TextPass
from lightning_gpt.exploring.requests import (
    CellRequest,
    LayerRequest,
    LensRequest,
    NextRequest,
    PassRequest,
    ShownText,
    WorthRequest,
)
from lightning_gpt.models.decoding.sampling import Sampling
from lightning_gpt.serving.app import guarded, read_body
from lightning_gpt.serving.refusals import RefusedError
from lightning_gpt.serving.requests import parsed

_LARGEST_BODY = 2**20
_SECONDS = 30.0
_FRESH = {"cache-control": "no-cache", "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}

Q = TypeVar("Q", bound=BaseModel)


def create_explorer(passes: Passes, text: str) -> FastAPI:
    """The application, for calls by local names only.

    Args:
        passes: The models and the passes over texts.
        text: What the page shows first.
    """
    # one thread, because a model can be recorded by one pass at a time, and torch keeps a pool for each thread
    thread = ThreadPoolExecutor(1, "model")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        thread.shutdown(cancel_futures=True)

    routers = (_page(passes, text), _answers(passes, thread))
    return guarded(routers, lifespan, None, {"localhost", "127.0.0.1", "[::1]"}, _SECONDS)


def _page(passes: Passes, text: str) -> APIRouter:
    router = APIRouter()

    @router.get("/")
    async def index() -> Response:
        headers = {**_FRESH, "content-security-policy": assets_of_page.POLICY}
        return Response(assets_of_page.html(), media_type="text/html", headers=headers)

    @router.get("/assets/{name}")
    async def asset(name: str) -> Response:
        found = assets_of_page.asset(name)
        if found is None:
            raise RefusedError(404, f"the page has no file {name[:80]!r}")
        return Response(found[0], media_type=found[1], headers=_FRESH)

    @router.get("/api/start")
    async def start() -> dict[str, Any]:
        return {"models": passes.shelf.names, "text": text, "longest": passes.longest}

    return router


def _answers(passes: Passes, thread: ThreadPoolExecutor) -> APIRouter:
    router = APIRouter(prefix="/api")

    def offer(path: str, kind: type[Q], answer: Callable[[Q], bytes]) -> None:
        async def answered(request: Request) -> Response:
            asked = parsed(kind, await read_json(request))

            def work() -> bytes:
                return passes.one(lambda: answer(asked))

            try:
                content = await asyncio.get_running_loop().run_in_executor(thread, work)
            except CallError as error:
                raise RefusedError(400, str(error)) from None
            return Response(content, media_type="application/octet-stream", headers=_FRESH)

        router.add_api_route(path, answered, methods=["POST"])

    def look(asked: PassRequest) -> TextPass:
        return passes.look(asked.of)

    def against(asked: PassRequest) -> TextPass | None:
        return None if asked.against is None else passes.look(asked.against)

    def layer_matrices(asked: LayerRequest) -> bytes:
        return overview.layer_matrices(look(asked), against(asked), asked.show, asked.layer, asked.head)

    def whole(asked: LayerRequest) -> bytes:
        return overview.overview(look(asked), against(asked), asked.show, asked.layer, asked.head)

    def next_tokens(asked: NextRequest) -> bytes:
        return lens.next_tokens(look(asked), against(asked), asked.row, _sampling(asked), asked.seed)

    def one_cell(asked: CellRequest) -> bytes:
        column = asked.row if asked.column is None else asked.column
        return cell.cell(look(asked), asked.layer, asked.head, asked.row, column)

    def worth(asked: WorthRequest) -> bytes:
        return depth.worth(passes.look(_unchanged(asked.of)), asked.layer, asked.kind)

    def code(asked: CellRequest) -> bytes:
        return keep.code(passes, look(asked), asked.layer, asked.head, asked.row, asked.column).encode()

    offer("/look", LayerRequest, whole)
    offer("/layer", LayerRequest, layer_matrices)
    offer("/lens", LensRequest, lambda asked: lens.lens(look(asked), asked.first, asked.count))
    offer("/next", NextRequest, next_tokens)
    offer("/cell", CellRequest, one_cell)
    offer("/way", CellRequest, lambda asked: depth.way(look(asked), asked.row))
    offer("/depth", PassRequest, lambda asked: depth.depth(look(asked)))
    offer("/worth", WorthRequest, worth)
    offer("/page", LayerRequest, lambda asked: keep.page(look(asked), asked.layer, asked.head))
    offer("/code", CellRequest, code)
    return router


async def read_json(request: Request) -> bytes:
    """The body of a request from the page."""
    return await read_body(request, _LARGEST_BODY, _SECONDS)


def _sampling(asked: NextRequest) -> Sampling:
    return Sampling(temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p)


def _unchanged(shown: ShownText) -> ShownText:
    return shown.model_copy(update={"changes": "", "other": ""})
