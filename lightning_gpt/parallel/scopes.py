"""Parameters that are stored for all processes and computed with in part.

Where a matrix is divided over the tensor axis, every parameter of the model is stored as a DTensor, so that optimizer,
clipping and checkpoints see one kind of tensor. The layers compute with plain tensors: inside a scope, a module's
parameters are the parts that this process holds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_gpt.parallel.collectives import Group, copied


@dataclass(frozen=True)
class Held:
    """A parameter of a module, and how its part here is computed with.

    Args:
        module: The module that owns it.
        name: Its name there.
        summed_over: Processes that use it on different tokens or units, so that its gradients add up; None if all use
            it equally, or each has a part of its own.
        share: A factor, for what is added once by several processes.
    """

    module: nn.Module
    name: str
    summed_over: Group | None = None
    share: float = 1.0

    def part(self, stored: DTensor) -> Tensor:
        """The part to compute with."""
        part = stored.to_local()
        if self.summed_over is not None:
            part = copied(part, self.summed_over)
        return part if self.share == 1 else part * self.share


@dataclass(frozen=True)
class Joined:
    """A fused parameter, concatenated of its pieces where a layer needs it whole.

    Args:
        module: The module that owns the pieces.
        name: The fused parameter's name.
        pieces: Theirs, in order.
        dim: The dimension along which they are joined.
    """

    module: nn.Module
    name: str
    pieces: Sequence[str]
    dim: int


class Scope:
    """Inside, the parameters of some modules are the parts that this process holds.

    Scopes may be nested: what an outer one has replaced stays as it is.

    Args:
        held: The parameters.
        joined: Fused parameters to put together.
    """

    def __init__(self, held: Sequence[Held], joined: Sequence[Joined] = ()) -> None:
        self.held, self.joined = held, joined
        self._restore: list[list[tuple[nn.Module, str, Tensor | None]]] = []

    def enter(self) -> None:
        """Replace the parameters by their parts."""
        stored: list[tuple[nn.Module, str, Tensor | None]] = []
        self._restore.append(stored)
        parts: dict[int, Tensor] = {}  # a parameter that two modules own has one part
        for each in self.held:
            parameters: dict[str, Any] = each.module._parameters
            whole = parameters[each.name]
            if isinstance(whole, DTensor):
                stored.append((each.module, each.name, whole))
                parameters[each.name] = parts.setdefault(id(whole), each.part(whole))
        for fused in self.joined:
            parameters = cast(dict[str, Any], fused.module._parameters)
            if fused.name not in parameters:
                stored.append((fused.module, fused.name, None))
                parameters[fused.name] = torch.cat([parameters[name] for name in fused.pieces], fused.dim)

    def leave(self) -> None:
        """Put the parameters back."""
        for module, name, whole in reversed(self._restore.pop()):
            parameters: dict[str, Any] = module._parameters
            if whole is None:
                del parameters[name]
            else:
                parameters[name] = whole

    def around(self, module: nn.Module) -> None:
        """Enter before each forward pass of a module and leave after it."""
        module.register_forward_pre_hook(lambda *_: self.enter())
        module.register_forward_hook(lambda *_: self.leave(), always_call=True)

    def around_method(self, module: nn.Module, name: str) -> None:
        """Enter before each call of a method of a module and leave after it."""
        method: Callable[..., Any] = getattr(module, name)

        def inside(*args: Any, **kwargs: Any) -> Any:
            self.enter()
            try:
                return method(*args, **kwargs)
            finally:
                self.leave()

        setattr(module, name, inside)


def held_in(module: nn.Module, known: Mapping[tuple[int, str], Held]) -> list[Held]:
    """Every parameter of a module and of its submodules, each as ``known`` by the module's identity and its name."""
    found = []
    for part in module.modules():
        for name in part._parameters:
            found.append(known.get((id(part), name), Held(part, name)))
    return found
