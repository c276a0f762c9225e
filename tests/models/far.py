"""A device without float64, simulated: real numbers on the CPU that say they are elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

AWAY = torch.device("meta")
"""A device that every build of torch knows and that needs no library."""


class Far(Tensor):
    """A tensor on :data:`AWAY` with its numbers in ``near``; operations beside CPU tensors fail, as on a device."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "Far":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, near.shape, strides=near.stride(), dtype=near.dtype, device=AWAY
        )
        made.near = near
        return made  # type: ignore[no-any-return]

    def __init__(self, near: Tensor) -> None:
        pass

    def tolist(self) -> Any:
        """Its numbers."""
        return self.near.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        name = func.overloadpacket.__name__
        if name not in ("_to_copy", "copy_") and any(not isinstance(each, Far) and each.dim() for each in tensors):
            raise RuntimeError(f"{name}: tensors on two devices")
        target = kwargs.get("device")
        leaves = name == "_to_copy" and target is not None and torch.device(target) != AWAY
        if target is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        found = func(*_near(args), **_near(kwargs))
        if leaves:
            return found
        if name.endswith("_") and not name.startswith("_"):  # in place
            return args[0]
        return tree_map(_far, found)


def _near(values: Any) -> Any:
    return tree_map(lambda value: value.near if isinstance(value, Far) else value, values)


def _far(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dtype in (torch.float64, torch.complex128):
        raise TypeError("this device has no float64")
    return Far(value)


class _Made(TorchDispatchMode):
    """Tensors that are made on :data:`AWAY` have numbers too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = kwargs.get("device")
        is_away = target is not None and torch.device(target) == AWAY
        if is_away and not any(isinstance(each, Far) for each in tree_leaves((args, kwargs))):
            return _far(func(*args, **{**kwargs, "device": torch.device("cpu")}))
        return func(*args, **kwargs)


@contextmanager
def far_device() -> Iterator[None]:
    """Tensors may be made on :data:`AWAY` meanwhile."""
    given = torch.tensor

    def tensor(values: Any, **options: Any) -> Tensor:  # no mode sees its numbers
        is_away = options.get("device") == AWAY
        made = given(values, **{**options, "device": "cpu"} if is_away else options)
        return _far(made) if is_away else made  # type: ignore[no-any-return]

    with _Made(), torch.no_grad(), mock.patch.object(torch, "tensor", tensor):
        yield


def sent(model: nn.Module) -> None:
    """Move a model to :data:`AWAY`, in place."""
    for part in model.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(Far(parameter.detach()), requires_grad=False)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else Far(buffer)
