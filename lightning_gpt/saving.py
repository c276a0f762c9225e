"""What is saved is finite, is copied, and is written while the training goes on."""

import copy
import os
import threading
import weakref
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

_all: "weakref.WeakSet[BackgroundSaves]" = weakref.WeakSet()


class BackgroundSaves:
    """Runs saves in a thread, one at a time: the next one waits for the one before.

    Its thread ends before the interpreter does, so a process that is not killed finishes what it has begun to save.

    Args:
        background: Whether there is a thread; without it a save is written at once.
    """

    def __init__(self, background: bool = True) -> None:
        self.background = background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        _all.add(self)

    def write(self, save: Callable[[Any], None], content: Any) -> None:
        """Wait for the save before, then begin this one.

        Args:
            save: Writes a content.
            content: What is to be written, as it is now.

        Raises:
            BaseException: What the save before, or one without a thread, failed with.
        """
        self.wait()
        if not self.background:
            save(content)
            return
        kept = copied(content)  # only now: there is memory for one

        def run() -> None:
            try:
                save(kept)
            except BaseException as error:  # raised by the next call
                self._error = error

        self._thread = threading.Thread(target=run, name="save")
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being saved."""
        return self._thread is None or not self._thread.is_alive()

    def join(self) -> None:
        """Wait until nothing is being saved."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Wait until nothing is being saved.

        Raises:
            BaseException: What the save failed with, once.
        """
        self.join()
        error, self._error = self._error, None
        if error is not None:
            raise error


def _join_all() -> None:
    for saves in list(_all):
        saves.join()


# a forked worker would keep the file of a save open, and with it the space of one that was replaced long ago
os.register_at_fork(before=_join_all)


def first_non_finite(tensors: Mapping[str, Any]) -> str | None:
    """The name of the first tensor with a value that is not finite; None if there is none.

    All tensors are checked at once, so that a GPU is waited for only once.
    """
    floats = {name: value for name, value in tensors.items() if isinstance(value, Tensor) and value.is_floating_point()}
    finite = [value.isfinite().all() for value in floats.values()]
    if not finite or bool(torch.stack([each.to(finite[0].device) for each in finite]).all()):
        return None
    return next(name for name, each in zip(floats, finite, strict=True) if not bool(each))


@runtime_checkable
class Copyable(Protocol):
    """What knows how it is copied."""

    def copied(self) -> "Copyable":
        """A copy by :func:`in_memory`, which later steps do not change."""


PINNED = {"cuda"}
"""Types of devices that write into pinned memory several times as fast as into other memory."""


def in_memory(tensor: Tensor) -> Tensor:
    """A copy in the memory of the CPU; of a device in :data:`PINNED` it is there after :func:`await_copies`."""
    pinned = tensor.device.type in PINNED
    try:
        there = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
    except RuntimeError:  # the system pins no more, which costs time only
        there = torch.empty_like(tensor, device="cpu")
    return there.copy_(tensor, non_blocking=pinned)


def await_copies() -> None:
    """Wait until the copies that :func:`in_memory` has made are complete."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.current_stream().synchronize()


def copied(content: Any) -> Any:
    """A checkpoint with copies of its tensors in the memory of the CPU, and of all containers in it.

    Tensors that share their memory share it in the copy.
    """
    copy = _copied(content, {})
    await_copies()
    return copy


def _copied(value: Any, copies: dict[tuple[Any, ...], Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if key not in copies:
            copies[key] = in_memory(value) if value.numel() else value.cpu()
        return copies[key]
    if isinstance(value, Copyable):
        return value.copied()
    if isinstance(value, MutableMapping):
        same = copy.copy(value)
        for key, each in value.items():
            same[key] = _copied(each, copies)
        return same
    if type(value) in (list, tuple):
        return type(value)(_copied(each, copies) for each in value)
    return value
