"""One fork server for all workers of pytest: its imports take as long as dozens of tests."""

import atexit
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ADDRESS = "LIGHTNING_GPT_TESTS_FORK_SERVER"
"""The environment variable that tells a worker where the server is."""

COMMON = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
"""What the environments of the server and of commands have: the Hub is out of reach even where there is a network."""


def start_server(calls: socket.socket) -> subprocess.Popen[bytes]:
    """Start a fork server that takes calls from a socket, as :mod:`tests.fork_server` says."""
    command = [sys.executable, "-m", "tests.fork_server"]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], env={**os.environ, **COMMON}, stdin=calls.fileno())


def offer_server() -> None:
    """Have a server started once a worker asks for one; workers that are started from here on know its address."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = tempfile.mkdtemp(prefix="fork-server-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[ADDRESS] = str(Path(folder, "calls"))
    listener.bind(os.environ[ADDRESS])
    listener.listen()
    threading.Thread(target=_start_servers, args=(listener,), daemon=True).start()


def _start_servers(listener: socket.socket) -> None:
    while True:
        select.select([listener], [], [])
        start_server(listener).wait()  # until nobody is connected to it
