"""Work in a thread, one piece at a time, whose errors reach the caller."""

import os
import threading
import weakref
from collections.abc import Callable

_all: "weakref.WeakSet[Background]" = weakref.WeakSet()


class Background:
    """Runs work in a thread, one piece at a time: the next one waits for the one before.

    Its thread ends before the interpreter does, so a process that is not killed finishes what it has begun.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        _all.add(self)

    def begin(self, work: Callable[[], object]) -> None:
        """Wait for the work before, then begin this.

        Raises:
            BaseException: What the work before failed with.
        """
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:  # raised by the next call
                self._error = error

        self._thread = threading.Thread(target=run, name=self.name)
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being done."""
        return self._thread is None or not self._thread.is_alive()

    def join(self) -> None:
        """Wait until nothing is being done."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Wait until nothing is being done.

        Raises:
            BaseException: What the work failed with, once.
        """
        self.join()
        error, self._error = self._error, None
        if error is not None:
            raise error


def _join_all() -> None:
    for each in list(_all):
        each.join()


# a forked worker would keep the file of a save open, and with it the space of one that was replaced long ago; and it
# would wait for ever for what the thread had locked
os.register_at_fork(before=_join_all)
