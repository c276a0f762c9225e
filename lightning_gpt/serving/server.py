"""Running the application: the socket, the start, and the stop that loses no accepted request without saying so."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from lightning_gpt.console import say
from lightning_gpt.errors import CallError
from lightning_gpt.serving.engine import Engine
from lightning_gpt.stopping import on_stop, restore

_SECONDS_TO_WRITE = 5.0
"""Time that replies get to reach their clients after the last text was cut."""


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket bound to ``host`` and ``port``; connections are refused until the server has started.

    Raises:
        CallError: The address is not one of this machine, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except UnicodeError:
        raise CallError(f"host {host!r} is not a valid name; choose another --host") from None
    except OSError as error:
        raise CallError(f"host {host!r}, port {port}: {error.strerror}; choose another --host or --port") from None
    return bound


class _Server(uvicorn.Server):
    """Leaves signals to us, and says when it listens."""

    def __init__(self, config: uvicorn.Config, message: str) -> None:
        super().__init__(config)
        self._message = message

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        say(self._message)


def serve_until_stopped(app: FastAPI, engine: Engine, bound: socket.socket, message: str, grace: float) -> None:
    """Serve until Ctrl-C, SIGTERM or SIGHUP.

    Then no request is accepted any more; those that were are finished. After ``grace`` seconds, or at the second
    signal, what is left is cut off, and its clients are told.

    Args:
        app: The application.
        engine: Its engine.
        bound: The socket.
        message: What is said once it listens.
        grace: Seconds.
    """
    server = _server(app, message, grace)

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if server.should_exit:
                engine.cut()
                return
            engine.drain()
            counts = engine.counts
            left = counts.running + counts.waiting
            if left:
                say(f"stopping: {_texts(left)} to finish, for at most {grace:g} s; stop again to cut them off")
            server.should_exit = True
            loop.call_later(grace, engine.cut)

        def heard(signum: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(stop)

        await _until_stopped(server, bound, heard)

    asyncio.run(run())
    counts = engine.counts
    parts = [f"{counts.cancelled} cancelled by clients"] if counts.cancelled else []
    parts += [f"{counts.cut} cut off"] if counts.cut else []
    say(f"stopped: {_texts(counts.completed)} completed{''.join(f', {part}' for part in parts)}")


def serve_pages_until_stopped(app: FastAPI, bound: socket.socket, message: str) -> None:
    """Serve an application without an engine until Ctrl-C, SIGTERM or SIGHUP; then finish the replies begun."""
    server = _server(app, message, 0)

    async def run() -> None:
        def heard(signum: int, frame: FrameType | None) -> None:
            server.should_exit = True

        await _until_stopped(server, bound, heard)

    asyncio.run(run())


def _server(app: FastAPI, message: str, grace: float) -> _Server:
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=int(grace + _SECONDS_TO_WRITE) + 1,
    )
    return _Server(config, message)


async def _until_stopped(server: _Server, bound: socket.socket, heard: Callable[[int, FrameType | None], None]) -> None:
    before = on_stop(heard)
    try:
        await server.serve([bound])
    finally:
        restore(before)


def _texts(number: int) -> str:
    return f"{number:,} text{'' if number == 1 else 's'}"
