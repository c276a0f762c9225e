"""What a thread makes while something else is used."""

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")

_all: "weakref.WeakSet[_Maker]" = weakref.WeakSet()


class Ahead(Generic[T]):
    """Begins to make something in a thread; :meth:`take` waits for it.

    Its thread ends early if nobody holds this object any longer, or if the process is about to end, as soon as what it
    does calls :func:`end_if_in_vain`.

    Args:
        make: Makes it. Nothing that it changes may be used until :meth:`take` has returned.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._made: Future[T] = Future()
        _Maker(make, self).start()

    def take(self) -> T:
        """What was made.

        Raises:
            BaseException: What making it failed with.
        """
        return self._made.result()


class _Maker(threading.Thread):
    """The thread of an :class:`Ahead`.

    Not a daemon: the interpreter would stop one inside a library that does not expect it.
    """

    def __init__(self, make: Callable[[], T], of: Ahead[T]) -> None:
        super().__init__(name="ahead")
        self._make = make
        self._made = of._made
        self._of = weakref.ref(of)
        _all.add(self)

    @property
    def is_in_vain(self) -> bool:
        """Whether nobody will take what it makes."""
        return self._of() is None or not threading.main_thread().is_alive()

    def run(self) -> None:
        try:
            self._made.set_result(self._make())
        except BaseException as error:  # raised by take
            self._made.set_exception(error)


def end_if_in_vain() -> None:
    """End the thread of an :class:`Ahead` that nobody waits for; in any other thread this does nothing."""
    thread = threading.current_thread()
    if isinstance(thread, _Maker) and thread.is_in_vain:
        raise SystemExit


def _wait_for_all() -> None:
    for thread in list(_all):
        if thread.is_alive():
            thread.join()


# in a forked process the thread would not be there, and what it was making would stay half made
os.register_at_fork(before=_wait_for_all)
