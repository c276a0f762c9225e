"""What is saved is finite, is copied, and is written while the training goes on."""

import copy
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_gpt.background import Background


class BackgroundSaves(Background):
    """Runs saves in a thread, one at a time: the next one waits for the one before.

    Args:
        background: Whether there is a thread; without it a save is written at once.
    """

    def __init__(self, background: bool = True) -> None:
        super().__init__("save")
        self.background = background
        self._copies = Copier()

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
        kept = self._copies.copied(content)  # only now: there is memory for one
        self.begin(lambda: save(kept))


def first_non_finite(tensors: Mapping[str, Any]) -> str | None:
    """The name of the first tensor with a value that is not finite; None if there is none.

    All tensors are checked at once, so that a GPU is waited for only once. The smallest and the largest value tell it;
    ``isfinite`` of all takes sixteen times as long.
    """
    floats = {
        name: value
        for name, value in tensors.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel()
    }
    finite = [torch.stack(value.aminmax()).isfinite().all() for value in floats.values()]
    if not finite or bool(torch.stack([each.to(finite[0].device) for each in finite]).all()):
        return None
    return next(name for name, each in zip(floats, finite, strict=True) if not bool(each))


@runtime_checkable
class Copyable(Protocol):
    """What knows how it is copied."""

    def copied(self, copy_of: Callable[[Tensor], Tensor]) -> "Copyable":
        """A copy that later steps do not change; ``copy_of`` copies a tensor."""


PINNED = {"cuda"}
"""Types of devices that write into pinned memory several times as fast as into other memory."""


_ByForm = dict[tuple[Any, ...], list[Tensor]]


class Copier:
    """Copies checkpoints into the memory of the CPU; each copy takes the memory of the one before.

    Memory that is new costs five times as much to write as memory that was written before, because the system gives it
    page by page.
    """

    def __init__(self) -> None:
        self._used: _ByForm = {}

    def copied(self, content: Any) -> Any:
        """A checkpoint with copies of its tensors in the memory of the CPU, and of all containers in it.

        Tensors that share their memory share it in the copy. The copy before must no longer be needed.
        """
        free, self._used = self._used, {}
        made = _copied(content, lambda tensor: self._copy(tensor, free), {})
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.current_stream().synchronize()
        return made

    def _copy(self, tensor: Tensor, free: _ByForm) -> Tensor:
        """A copy; of a device in :data:`PINNED` it is there once the device's stream has come to it."""
        pinned = tensor.device.type in PINNED
        key = (tensor.shape, tensor.stride(), tensor.dtype, pinned)
        there = free[key].pop() if free.get(key) else _new(tensor, pinned)
        self._used.setdefault(key, []).append(there)
        return there.copy_(tensor, non_blocking=pinned)


@torch.inference_mode(False)  # validation saves, too, and what is made in inference mode may not be written outside
def _new(tensor: Tensor, pinned: bool) -> Tensor:
    try:
        return torch.empty_like(tensor, device="cpu", pin_memory=pinned)
    except RuntimeError:  # the system pins no more, which costs time only
        return torch.empty_like(tensor, device="cpu")


def _copied(value: Any, copy_of: Callable[[Tensor], Tensor], copies: dict[tuple[Any, ...], Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if key not in copies:
            copies[key] = copy_of(value) if value.numel() else value.cpu()
        return copies[key]
    if isinstance(value, Copyable):
        return value.copied(copy_of)
    if isinstance(value, MutableMapping):
        same = copy.copy(value)
        for key, each in value.items():
            same[key] = _copied(each, copy_of, copies)
        return same
    if type(value) in (list, tuple):
        return type(value)(_copied(each, copy_of, copies) for each in value)
    return value
