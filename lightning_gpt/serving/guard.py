"""What stands before every route: who may call, what an error looks like, and clients that stop reading."""

import asyncio
import hmac
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightning_gpt.console import say
from lightning_gpt.serving.refusals import RefusedError

OPEN_PATHS = ("/health",)
"""Paths that need no token: a load balancer asks there whether the server lives."""


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: The application.
        token: What clients must send as ``Authorization: Bearer``; None if everyone may call.
        hosts: Names by which the server may be called, without the port; None for any. A page in a browser that has
            its own name resolved to this machine is refused by it.
        send_seconds: The longest that a client may take to read a part of the reply.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: Collection[str] | None, send_seconds: float) -> None:
        self._app, self._hosts, self._send_seconds = app, hosts, send_seconds
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_in_time(message: Message) -> None:
            nonlocal started
            started = True
            async with asyncio.timeout(self._send_seconds):
                await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, send_in_time)
        except TimeoutError:
            if not started:
                raise
            # the connection is closed, since the reply is not complete
        except RefusedError as refused:
            if not started:
                await JSONResponse(refused.body, refused.status, refused.headers)(scope, receive, send_in_time)
        except Exception as error:
            say(f"a request failed: {type(error).__name__}: {error}")
            if not started:
                body = RefusedError(500, "the server failed; its log says why", "server_error").body
                await JSONResponse(body, 500)(scope, receive, send_in_time)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if self._hosts is not None and name.lower() not in self._hosts:
            allowed = ", ".join(sorted(self._hosts))
            raise RefusedError(403, f"the host {name[:80]!r} is not served; allowed: {allowed}")
        if self._token is None or scope["path"] in OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), self._token):
            what = "wrong" if given else "missing"
            message = f"the token is {what}: send it as Authorization: Bearer TOKEN (api_key of OpenAI's client)"
            headers_back = {"www-authenticate": "Bearer"}
            raise RefusedError(401, message, "authentication_error", "invalid_api_key", headers=headers_back)
