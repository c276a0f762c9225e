"""Being asked to stop: by Ctrl-C, by SIGTERM, or by SIGHUP, which a terminal sends when it is closed."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import parent_process
from types import FrameType
from typing import Any

from lightning_gpt.errors import Stopped
from lightning_gpt.launch import by_torchrun

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SECONDS_BETWEEN_LOOKS = 0.5
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def status_of_stop() -> int:
    """The exit status of a process that was asked to stop: 130, or 0 under torchrun, which would start it again."""
    return 0 if by_torchrun() else 130


def on_stop(handler: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    """Call ``handler`` when this process is asked to stop; returns the handlers before, for :func:`restore`.

    A SIGHUP that is ignored, as ``nohup`` arranges, stays ignored. Only the main thread may call this.
    """
    heard = [number for number in _SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def restore(handlers: Mapping[signal.Signals, Any]) -> None:
    """Put back the handlers that :func:`on_stop` replaced."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def stop_at_once(signum: int, frame: FrameType | None) -> None:
    """The handler of a process that has nothing to save.

    Raises:
        Stopped: Always.
    """
    raise Stopped("stopped")


@contextmanager
def unheard_by_children() -> Iterator[None]:
    """Processes started inside the context never see Ctrl-C or SIGHUP, which a terminal sends to every process.

    Those are the workers of a pool and the process with which ``multiprocessing`` tracks what they share. This process
    sees a signal that arrives meanwhile when the context ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_stops_to_parent(worker: int) -> None:
    """What a forked worker of a data loader does first: it serves until its parent, which saves, has ended."""
    restore(dict.fromkeys((signal.SIGINT, signal.SIGHUP), signal.SIG_IGN))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def end_with_parent() -> None:
    """End this process, which ``multiprocessing`` has started, as soon as the one that started it has ended."""
    parent = parent_process()
    assert parent is not None
    assert parent.pid is not None
    end_with(parent.pid)


def end_on_stop() -> None:
    """From now on this process ends without a word when it is asked to stop; what is ignored stays ignored."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def stop_with(parent: int) -> None:
    """Ask Linux for a SIGTERM when ``parent`` ends, on which a run saves and stops; elsewhere this does nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)


def end_with(parent: int) -> None:
    """End this process as soon as process ``parent`` is no longer its parent, because that has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
