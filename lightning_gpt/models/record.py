"""Recording and editing the named intermediates of a model while it runs.

A :class:`~lightning_gpt.models.layer.Layer` passes each named intermediate through ``self.see(name, value)``. If
nothing is recorded, that call is one comparison with ``None``; :func:`record` attaches an observer to every layer of a
model and removes it again.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import SequenceMatcher
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from lightning_gpt.models.layer import Layer

Edit = Callable[[Tensor], Tensor] | Tensor
"""A replacement for an intermediate: a function of it, or the tensor to substitute."""


class Trace(Mapping[str, Tensor]):
    """The intermediates of the last forward pass inside a :func:`record` context, by full name.

    ``trace["blocks.0.attention.pattern"]`` and ``trace["attention.pattern", 0]`` are the same tensor, and
    ``trace.layers("attention.pattern")`` stacks that intermediate of all blocks: ``(n_layer, ...)``. These are the
    tensors the model computed with: differentiable if gradients are enabled.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def __getitem__(self, name: str | tuple[str, int]) -> Tensor:
        full_name = name if isinstance(name, str) else f"blocks.{name[1]}.{name[0]}"
        if full_name not in self._tensors:
            near = ", ".join(_nearest(full_name, self._tensors))
            raise KeyError(f"nothing recorded under {full_name!r}; similar recorded names: {near}")
        return self._tensors[full_name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def layers(self, name: str) -> Tensor:
        """Stack the intermediate ``name`` of every block that recorded it: ``(n_layer, ...)``."""
        pattern = re.compile(rf"blocks\.\d+\.{re.escape(name)}")
        found = [tensor for full_name, tensor in self._tensors.items() if pattern.fullmatch(full_name)]
        if not found:
            near = ", ".join(_nearest(f"blocks.0.{name}", self))
            raise KeyError(f"no block recorded {name!r}; similar recorded names: {near}")
        return torch.stack(found)

    def __repr__(self) -> str:
        lines = (f"  {name}: {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in self.items())
        return "Trace(\n" + "\n".join(lines) + "\n)"


class Watch:
    """What one :func:`record` context records and edits."""

    def __init__(self, names: Iterable[str] | str | None, edits: Mapping[str, Edit]) -> None:
        self.patterns = ["*"] if names is None else [names] if isinstance(names, str) else list(names)
        self.edits = edits
        self.trace = Trace()
        self.seen: set[str] = set()
        self.offered: set[str] = set()  # intermediates that are only computed on request

    def recorded(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)

    def edited(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.edits)

    def wants(self, names: Iterable[str]) -> bool:
        """Whether one of these intermediates is recorded or edited; also notes that they are available."""
        full_names = list(names)
        self.offered.update(full_names)
        return any(self.recorded(name) or self.edited(name) for name in full_names)

    def __call__(self, name: str, value: Tensor) -> Tensor:
        self.seen.add(name)
        for pattern, edit in self.edits.items():
            if fnmatchcase(name, pattern):
                changed = edit(value) if callable(edit) else edit
                if not isinstance(changed, Tensor) or changed.shape != value.shape:
                    given = f"shape {tuple(changed.shape)}" if isinstance(changed, Tensor) else repr(changed)
                    raise ValueError(f"the edit of {name!r} returned {given}; it must keep {tuple(value.shape)}")
                value = changed
        if self.recorded(name):
            self.trace._tensors[name] = value
        return value

    def check_all_found(self) -> None:
        """Raise a KeyError if a requested name or pattern matched no intermediate."""
        for pattern in [*self.patterns, *self.edits]:
            if not any(fnmatchcase(name, pattern) for name in self.seen):
                near = ", ".join(_nearest(pattern, self.seen | self.offered))
                raise KeyError(f"no intermediate is named {pattern!r}; similar names: {near}")


def _nearest(name: str, names: Iterable[str]) -> list[str]:
    """The four of ``names`` most similar to ``name``, by the last path component first, then by the whole."""

    def likeness(other: str) -> tuple[float, float]:
        parts = SequenceMatcher(None, name.rpartition(".")[2], other.rpartition(".")[2]).ratio()
        return parts, SequenceMatcher(None, name, other).ratio()

    return sorted(sorted(names), key=likeness, reverse=True)[:4]


def called(module: nn.Module, name: str) -> None:
    """Record what ``module`` sees under ``name`` from now on; a module may serve several places of a model."""
    for path, part in named_layers(module):
        part._prefix = f"{name}.{path}." if path else f"{name}."


def named_layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, Layer]]:
    """Every layer of a module with the path its intermediates are named by; each layer once.

    The path is that of ``named_modules``, without the steps from a wrapper to the module it wraps.
    """
    yield from _named(module, name, set())


def _named(module: nn.Module, name: str, met: set[int]) -> Iterator[tuple[str, Layer]]:
    if id(module) in met:
        return
    met.add(id(module))
    inner = None
    if isinstance(module, Layer):
        yield name, module
        inner = module.inner
    for child_name, child in module.named_children():
        yield from _named(child, name if child_name == inner else f"{name}.{child_name}".lstrip("."), met)


def layer_of(model: nn.Module, name: str) -> tuple[Layer, str]:
    """The layer whose intermediate is recorded under a full name, and the intermediate's name in that layer.

    A block that serves several layers is found under the name of each.
    """
    found, module, steps = (model, name), model, name.split(".")
    while steps:
        child = getattr(module, steps[0], None)
        if isinstance(child, nn.Module):
            module, steps = child, steps[1:]
        elif isinstance(module, Layer) and module.inner is not None:
            module = module.get_submodule(module.inner)
        else:
            break
        if isinstance(module, Layer):
            found = module, ".".join(steps)
    layer, own = found
    assert isinstance(layer, Layer)
    return layer, own


@contextmanager
def record(
    model: nn.Module, names: Iterable[str] | str | None = None, edits: Mapping[str, Edit] | None = None
) -> Iterator[Trace]:
    """Record the named intermediates of every forward pass of ``model`` inside the context.

    Args:
        model: Any module that contains layers.
        names: What to keep: a name, names or shell patterns (``"blocks.*.attention.pattern"``); everything if omitted.
            Nothing else is kept, and attention matrices that are not requested are not computed.
        edits: Interventions by name or pattern: a function of the tensor, or the tensor to substitute (see
            :func:`zero_heads`).

    Yields:
        The :class:`Trace`, filled by each forward pass; a later pass overwrites an earlier one.

    Raises:
        KeyError: On leaving the context, if a name or pattern matched no intermediate of the passes run.
    """
    watch = Watch(names, edits or {})
    with watching(model, watch):
        yield watch.trace
    if watch.seen:
        watch.check_all_found()


@contextmanager
def watching(model: nn.Module, watch: Watch) -> Iterator[None]:
    """Call ``watch`` with each named intermediate of every forward pass of ``model`` inside the context.

    Raises:
        RuntimeError: If the model is being recorded already.
    """
    watched = list(named_layers(model))
    if any(module._watch is not None for _, module in watched):
        raise RuntimeError("this model is already being recorded; only one record() context can be active")
    for path, module in watched:
        module._watch, module._prefix = watch, f"{path}." if path else ""
    try:
        yield
    finally:
        for _, module in watched:
            module._watch, module._prefix = None, ""


def zero_heads(*heads: int) -> Callable[[Tensor], Tensor]:
    """An edit for ``attention.head_output`` ``(batch, n_head, time, head_dim)`` that sets some heads to 0."""

    def edit(head_output: Tensor) -> Tensor:
        if head_output.ndim != 4:
            raise ValueError(f"zero_heads edits (batch, n_head, time, head_dim), not {tuple(head_output.shape)}")
        keep = torch.ones(head_output.shape[1], dtype=head_output.dtype, device=head_output.device)
        keep[list(heads)] = 0
        return head_output * keep[:, None, None]

    return edit
