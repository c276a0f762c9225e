"""Matrices divided over the tensor axis, and the residual stream with them along the tokens.

Shoeybi et al. 2019, "Megatron-LM" (1909.08053), section 3: the product into the heads or hidden units is divided along
its output and the one out of them along its input, so that a block needs one sum over the processes for each branch.
Korthikanti et al. 2022 (2205.05198), section 4.2.2: with sequence parallel the sum leaves each process with a part of
the tokens, and norms, dropout and residuals act on that part only.

What is divided, and how, the layers say themselves (:class:`~lightning_gpt.models.layer.Cut`).
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lightning_gpt.models import GPT
from lightning_gpt.models.layer import Cut, Layer, Linear, compute_dtype
from lightning_gpt.parallel.collectives import Group, copied, gathered, joined, scattered, split, summed
from lightning_gpt.parallel.drawing import draw_apart, seed_part
from lightning_gpt.parallel.packed import Piece, Pieces, take_apart
from lightning_gpt.parallel.scopes import Held, Joined, Scope, held_in
from lightning_gpt.parallel.vocabulary import Vocabulary, share_embedding, share_head

_TIME = 1
"""The dimension of the stream ``(batch, time, dim)`` that sequence parallel divides."""

Move = Callable[[Tensor], Tensor]


class IntoUnits(Linear):
    """The product into a layer's units, of which each process has its own."""

    names: list[str]
    """The names of the weights, one per piece."""
    bias_names: list[str]
    """The names of the biases, likewise; empty without bias."""
    enter: Move

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., n_in)`` to this process's outputs of each piece, ``(..., n_out / size)``."""
        # in the precision of the products: under autocast its gradient, or the gathered tokens, have half the bytes
        x = self.enter(x.to(compute_dtype(x)))
        biases = [getattr(self, name) for name in self.bias_names] or [None] * len(self.names)
        # not one product with the joined weights: a copy of them would live until the backward pass
        outputs = [F.linear(x, getattr(self, name), bias) for name, bias in zip(self.names, biases, strict=True)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


class OutOfUnits(Linear):
    """The product out of a layer's units: the processes' products add up, and the bias is added once."""

    leave: Move

    def forward(self, x: Tensor) -> Tensor:
        """Map this process's ``(..., n_in / size)`` to ``(..., n_out)``."""
        y = self.leave(F.linear(x, self.weight))
        return y if self.bias is None else y + self.bias


def divide(model: GPT, mesh: DeviceMesh, sequence: bool, apart: Collection[nn.Module] = ()) -> tuple[Pieces, Scope]:
    """Divide a model over the tensor axis, in place.

    Returns the pieces that fused parameters were taken apart into, and the scope of the parameters outside the blocks,
    which has to surround a pass: :func:`surround`, unless the model's ends are in stages of a pipeline.

    Args:
        model: The model, whole in every process and accepted by :func:`~lightning_gpt.parallel.suited.require_suited`.
        mesh: The tensor axis.
        sequence: Whether the stream is divided along the tokens.
        apart: Modules within blocks whose parameters are sharded apart from the block's, such as divided experts.
    """
    return _Divider(model, mesh, sequence).divide(set(apart))


def surround(model: GPT, ends: Scope) -> None:
    """Let every pass of a model compute with its own parts of the parameters outside the blocks."""
    ends.around(model)
    for method in ("loss", "token_nll"):
        ends.around_method(model, method)


class _Divider:
    """Divides one model."""

    def __init__(self, model: GPT, mesh: DeviceMesh, sequence: bool) -> None:
        self.model, self.mesh, self.sequence = model, mesh, sequence
        self.group: Group = mesh.get_group()
        self._held: dict[tuple[int, str], Held] = {}
        self._joined: list[Joined] = []  # by scopes, for layers that need the whole
        self._fused: list[Joined] = []  # all of them
        self._done: set[nn.Module] = set()
        self._blocks = {part for block in model.each_block() for part in (block, block.unwrapped)}

    def divide(self, apart: set[nn.Module]) -> tuple[Pieces, Scope]:
        model, blocks = self.model, list(dict.fromkeys(self.model.each_block()))
        self._visit(model.positions, sequence=False)
        for block in blocks:
            self._visit(block, self.sequence)
        if model.injection is not None:
            self._visit(model.injection, self.sequence)
        self._divide_ends()
        for part in model.modules():
            for name in list(part._parameters):
                self._store(part, name, Replicate())
        positions = held_in(model.positions, self._held)
        for block in blocks:
            # the block inside a wrapper, and attention, may be run once more on their own for their gradients
            for part in dict.fromkeys([block, block.unwrapped, block.unwrapped.attention]):
                self._scope_of(set(part.modules()) - apart, positions).around(part)
        for part in apart:  # what is sharded apart is gathered only when the part runs
            self._scope_of({part}).around(part)
        inside = {part for block in blocks for part in block.modules()}
        ends = Scope([each for each in held_in(model, self._held) if each.module not in inside])
        return self._pieces(), ends

    def _scope_of(self, parts: set[nn.Module], also: Sequence[Held] = ()) -> Scope:
        """The scope of modules, without their children."""
        held = [each for each in held_in(self.model, self._held) if each.module in parts]
        return Scope([*held, *also], [each for each in self._joined if each.module in parts])

    def _pieces(self) -> Pieces:
        found = {}
        by_module: dict[nn.Module, list[Joined]] = defaultdict(list)
        for fused in self._fused:
            by_module[fused.module].append(fused)
        # a block that layers share has a name for each of them
        for path, part in self.model.named_modules(remove_duplicate=False):
            for fused in by_module.get(part, ()):
                start = 0
                for name in fused.pieces:
                    length = part.get_parameter(name).shape[fused.dim]
                    found[f"{path}.{name}"] = Piece(f"{path}.{fused.name}", fused.dim, start, length)
                    start += length
        return found

    def _visit(self, module: nn.Module, sequence: bool) -> None:
        """Divide what is inside a module; ``sequence`` is whether it is given a part of the tokens."""
        if module in self._done:
            return
        self._done.add(module)
        cut = None
        if isinstance(module, Layer):
            cut = module.cut()
            if sequence and module.sees_rows:
                self._give_whole_rows(module)
                sequence = False
            if (cut is not None and cut.out is not None) or (sequence and module in self._blocks):
                self._draw_apart(module)
        if cut is not None:
            self._cut(module, cut, sequence)
            return
        for name in module._parameters:
            self._hold(module, name, summed=sequence)
        for child in module.children():
            self._visit(child, sequence)

    def _draw_apart(self, module: nn.Module) -> None:
        """Let a module that computes with other units or tokens in each process draw other random numbers there.

        Before and after it, all draw the same ones.
        """
        if self.model.config.dropout == 0:
            return
        rank, later = self.mesh.get_local_rank(), 0

        def enter(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            nonlocal later  # one for all: a pass that recomputes activations may end inside the module
            if module.training:
                inside, later = draw_apart(2)
                seed_part(inside + rank, given[0].device)

        def leave(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            if module.training:
                seed_part(later, given[0].device)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def _give_whole_rows(self, module: nn.Module) -> None:
        """Join the processes' tokens before a module, which then computes the same in all, and divide them after it."""
        group = self.group
        module.register_forward_pre_hook(lambda _, given: (joined(given[0], group, _TIME), *given[1:]))
        module.register_forward_hook(lambda _, given, output: split(output, group, _TIME))

    def _cut(self, layer: nn.Module, cut: Cut, sequence: bool) -> None:
        """Give a layer the units of this process."""
        size, rank, group = self.mesh.size(), self.mesh.get_local_rank(), self.group
        for names, summed_up in ((cut.alike, False), (cut.whole, True)):
            for module, name in (each for path in names for each in parameters_at(layer, path)):
                self._hold(module, name, summed=summed_up)
        for name in cut.once:
            self._hold(layer, name, summed=True, share=1 / size)
        for path, dim in cut.along.items():
            ((owner, name),) = parameters_at(layer, path)
            pieces = self._spread(owner, name, dim, cut.pieces.get(path, {}))
            if len(pieces) > 1:
                self._joined.append(Joined(owner, name, pieces, dim))
        if cut.into is not None:
            self._cut_into(getattr(layer, cut.into), sequence)
        if cut.out is not None:
            self._cut_out(getattr(layer, cut.out), sequence)
        if cut.adds_up:
            layer.register_forward_pre_hook(
                lambda _, given: (copied(given[0].to(compute_dtype(given[0])), group), *given[1:])
            )
            layer.register_forward_hook(lambda _, given, output: summed(output, group))
        for name in cut.units:
            setattr(layer, name, getattr(layer, name) // size)
        for name in cut.lists:
            items = getattr(layer, name)
            setattr(layer, name, items[rank * len(items) // size : (rank + 1) * len(items) // size])
        for name in cut.parts:
            self._visit(getattr(layer, name), sequence)

    def _cut_into(self, linear: Linear, sequence: bool) -> None:
        group = self.group
        weights = self._spread(linear, "weight", 0, linear.pieces)
        biases = [] if linear.bias is None else self._spread(linear, "bias", 0, linear.pieces)
        linear.__class__ = IntoUnits
        assert isinstance(linear, IntoUnits)
        linear.names, linear.bias_names = weights, biases
        linear.enter = (lambda x: gathered(x, group, _TIME)) if sequence else (lambda x: copied(x, group))

    def _cut_out(self, linear: Linear, sequence: bool) -> None:
        group = self.group
        self._spread(linear, "weight", 1, {})
        self._hold(linear, "bias", summed=sequence)
        linear.__class__ = OutOfUnits
        assert isinstance(linear, OutOfUnits)
        linear.leave = (lambda y: scattered(y, group, _TIME)) if sequence else (lambda y: summed(y, group))

    def _divide_ends(self) -> None:
        """Divide the embedding and the head by the vocabulary, and the stream between them by the tokens."""
        model, group = self.model, self.group
        embedding, head, size = model.token_embedding, model.head, model.config.vocab_size
        for table in [embedding] if head.linear is None else [embedding, head.linear]:
            self._store(table, "weight", Shard(0))
        weight = embedding.weight
        assert isinstance(weight, DTensor)
        _, (first, _) = compute_local_shape_and_global_offset(weight.shape, self.mesh, weight.placements)
        vocabulary = Vocabulary(size, first, -(-size // self.mesh.size()), group)
        share_embedding(embedding, vocabulary)
        share_head(head, vocabulary, sums_gradient=not self.sequence)
        for name, _ in model.embedding_norm.named_parameters():
            self._hold(model.embedding_norm, name, summed=False)
        for name, parameter in model.final_norm.named_parameters():
            assert parameter is model.final_norm._parameters[name]
            self._hold(model.final_norm, name, summed=self.sequence)
        if self.sequence:
            model.dropout.register_forward_hook(lambda _, given, output: split(output, group, _TIME))
            # the head's gradient of the hidden states is that of a part of the vocabulary: its sum is taken here
            model.final_norm.register_forward_hook(lambda _, given, output: gathered(output, group, _TIME))
            if model.diversity is not None:
                self._give_whole_rows(model.diversity)

    # ---- parameters ----

    def _spread(self, module: nn.Module, name: str, dim: int, pieces: Mapping[str, int]) -> list[str]:
        """Divide a parameter along a dimension, piece by piece; returns the names of the pieces."""
        names = take_apart(module, name, pieces, dim)
        for piece in names:
            self._store(module, piece, Shard(dim))
        if len(names) > 1:
            self._fused.append(Joined(module, name, names, dim))
        return names

    def _store(self, module: nn.Module, name: str, placement: Placement) -> None:
        """Store a parameter as a DTensor, if it is not one already."""
        whole = module._parameters[name]
        if whole is not None and not isinstance(whole, DTensor):
            # every process has the same values: none has to be sent
            spread = distribute_tensor(whole.detach(), self.mesh, [placement], src_data_rank=None)
            module._parameters[name] = nn.Parameter(spread, requires_grad=whole.requires_grad)

    def _hold(self, module: nn.Module, name: str, summed: bool, share: float = 1.0) -> None:
        self._held[id(module), name] = Held(module, name, self.group if summed else None, share)


def parameters_at(layer: nn.Module, path: str) -> list[tuple[nn.Module, str]]:
    """The parameters that a name in a :class:`~lightning_gpt.models.layer.Cut` means, each by its owner and name there.

    It is one parameter, or all of a child; none if that child has none.
    """
    *owners, last = path.split(".")
    owner = layer.get_submodule(".".join(owners))
    if last in owner._parameters:
        return [(owner, last)]
    return [(part, name) for part in owner.get_submodule(last).modules() for name in part._parameters]
