"""What a training step allocates, found by running it on tensors without data.

Every operation runs as in training, forward and backward, on fake tensors that have a shape and a dtype and no memory.
What autograd keeps, what checkpointing recomputes and what autocast copies therefore need no formula, for any variant.
Each allocation is filed under what it belongs to, because layouts divide these differently.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_gpt.models.base import LanguageModel
from lightning_gpt.models.context import Context
from lightning_gpt.models.ffn.moe.experts import Experts
from lightning_gpt.models.kv_cache import KeyValues
from lightning_gpt.models.layer import all_matrices
from lightning_gpt.models.part_losses import PartLosses
from lightning_gpt.planning.cuda_kernels import use_cuda_kernels
from lightning_gpt.planning.depth import shallow

Part = Literal["stream", "input", "inner", "choices", "weights", "gradients", "of weights"]
"""What an allocation belongs to.

``stream``: the residual stream and all else outside the branches; ``input``: what a branch reads, after its norm;
``inner``: between the first and the last product of a branch, as wide as its heads or hidden units; ``choices``: the
tokens given to experts; ``weights``: weights in the precision of the products; ``gradients``: of activations; ``of
weights``: gradients of the weights.
"""

Bytes = Mapping[Part, float]
"""Bytes by what they belong to."""


@dataclass(frozen=True)
class LayerTrace:
    """One executed layer.

    Args:
        kept: What the forward pass keeps for the backward pass.
        forward: The most that the forward pass allocates at once.
        backward: The most that the backward pass allocates at once, besides what this and earlier layers kept.
        carried: What this and earlier layers have made for later ones, besides the stream.
    """

    kept: Bytes
    forward: Bytes
    backward: Bytes
    carried: Bytes


@dataclass(frozen=True)
class PassTrace:
    """A forward and a backward pass from token ids to the last hidden states.

    Args:
        embedding: What is kept before the first layer.
        layers: The executed layers, in order.
        ending: What is kept after the last layer.
        stream_dtype: The dtype of the residual stream between layers.
        hidden_dtype: The dtype of the last hidden states.
    """

    embedding: Bytes
    layers: tuple[LayerTrace, ...]
    ending: Bytes
    stream_dtype: torch.dtype
    hidden_dtype: torch.dtype

    def with_rows(self, one: "PassTrace", rows: int) -> "PassTrace":
        """The trace of a pass over ``rows`` rows, if this is one over two rows and ``one`` is one over one row."""

        def grown(of_two: Bytes, of_one: Bytes) -> Bytes:
            return {p: of_two[p] + (rows - 2) * (of_two[p] - of_one.get(p, 0.0)) for p in of_two}

        layers: dict[int, LayerTrace] = {}
        for two, single in zip(self.layers, one.layers, strict=True):
            if id(two) not in layers:  # layers of one kind share their trace
                pairs = zip(vars(two).values(), vars(single).values(), strict=True)
                layers[id(two)] = LayerTrace(*(grown(*pair) for pair in pairs))
        return replace(
            self,
            embedding=grown(self.embedding, one.embedding),
            layers=tuple(layers[id(two)] for two in self.layers),
            ending=grown(self.ending, one.ending),
        )

    @property
    def kept(self) -> float:
        """All bytes kept for the backward pass."""
        every = [self.embedding, self.ending, *(layer.kept for layer in self.layers)]
        return sum(sum(each.values()) for each in every)


def weight_dtype(precision: str) -> torch.dtype:
    """The dtype of the weights under a Trainer's ``precision``."""
    kinds = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
    return kinds.get(precision, torch.float32)


def product_dtype(precision: str) -> torch.dtype:
    """The dtype of matrix products under a Trainer's ``precision``."""
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return kinds.get(precision, weight_dtype(precision))


def iteration_dtype(precision: str) -> torch.dtype:
    """The dtype of Muon's iterations under a Trainer's ``precision``."""
    return torch.bfloat16 if precision in ("bf16-mixed", "bf16-true") else weight_dtype(precision)


def trace(
    model: LanguageModel, rows: int, time: int, precision: str, *, device: str = "cpu", documents: bool = False
) -> PassTrace:
    """Run one training pass of ``model`` on tensors without data.

    Args:
        model: Any language model; only its config is read.
        rows: Sequences of the micro-batch.
        time: Tokens of each.
        precision: The Trainer's precision, such as ``bf16-mixed``.
        device: ``cpu`` or ``cuda``, whose kernels keep other things. Neither has to be there.
        documents: Whether documents are kept apart.
    """
    config, places = shallow(model.config)
    with FakeTensorMode():
        copy, ids = _without_data(type(model), config, rows, time, weight_dtype(precision))
        if device == "cuda":
            use_cuda_kernels(copy)
        watch = _Watch(copy)
        with watch.running():
            with _autocast(precision):
                hidden = copy.hidden(ids, torch.zeros_like(ids) if documents else None, losses=PartLosses())
            watch.end_forward()
            hidden.backward(torch.ones_like(hidden))  # type: ignore[no-untyped-call]
    return watch.result(hidden.dtype, places or range(len(copy.block_views())))


def cache_bytes(model: LanguageModel, rows: int, time: int, precision: str) -> float:
    """Bytes that the cache keeps after ``rows`` texts of ``time`` tokens, in the precision of the products."""
    with FakeTensorMode(), torch.no_grad():
        copy, ids = _without_data(type(model), model.config, rows, time, product_dtype(precision))
        cache, allocations = copy.new_cache(time), _Allocations(lambda tensor: "inner")
        for tensor in [*copy.parameters(), *copy.buffers()]:
            allocations.ignore(tensor)
        with allocations:
            copy.eval().hidden(ids, cache=cache)
        return float(sum(allocations.alive.values()))


def key_bytes(model: LanguageModel, precision: str) -> list[float]:
    """Bytes of the keys and values of one token, by layer; 0 for a layer that keeps none."""
    with FakeTensorMode(), torch.no_grad():
        copy, ids = _without_data(type(model), model.config, 1, 1, product_dtype(precision))
        cache = copy.new_cache(2)
        with _Allocations(lambda tensor: "inner"):
            copy.eval().hidden(ids, cache=cache)
        return [
            float(sum(part.shape[-1] * part.shape[1:-2].numel() * part.element_size() for part in (state.k, state.v)))
            if isinstance(state, KeyValues) and state.k is not None
            else 0.0
            for state in cache.layers
        ]


def _without_data(
    kind: type[LanguageModel], config: Any, rows: int, time: int, dtype: torch.dtype
) -> tuple[LanguageModel, Tensor]:
    """A model of fake tensors, in training, and ids for it."""
    with torch.device("cpu"), _default_dtype(dtype):
        model, ids = kind(config).train(), torch.zeros(rows, time, dtype=torch.long)
    for part in model.modules():
        if isinstance(part, Experts):
            part.is_even = True
    return model, ids


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _autocast(precision: str) -> AbstractContextManager[None]:
    if not precision.endswith("-mixed"):
        return nullcontext()
    return torch.autocast("cpu", dtype=product_dtype(precision))


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes alive, by what they belong to."""

    def __init__(self, owner: Callable[[Tensor], Part]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: Counter[Part] = Counter()
        self.most: Counter[Part] = Counter()
        self._most = 0
        self._owner = owner
        self._known: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
        self._weights: weakref.WeakSet[Any] = weakref.WeakSet()

    def ignore(self, tensor: Tensor) -> None:
        """Do not count a weight."""
        self._known[tensor.untyped_storage()] = []
        self._weights.add(tensor.untyped_storage())

    def file(self, tensor: Tensor, part: Part) -> None:
        """Move an allocation that was counted to another part."""
        entry = self._known.get(tensor.untyped_storage())
        if entry:
            self.alive[entry[0]] -= entry[1]
            self.alive[part] += entry[1]
            entry[0] = part

    def filed(self, tensors: Iterable[Tensor]) -> Counter[Part]:
        """The bytes of tensors, by what they belong to; a view has the bytes that it shows."""
        found: Counter[Part] = Counter()
        for tensor in tensors:
            found[(self._known.get(tensor.untyped_storage()) or ["stream"])[0]] += tensor.nbytes
        return found

    def restart_most(self) -> None:
        """Begin a new maximum."""
        self._most, self.most = sum(self.alive.values()), self.alive.copy()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            # there is no data to read: a number that changes nothing
            return args[0].dtype == torch.bool or (1.0 if args[0].is_floating_point() else 0)
        result = func(*args, **(kwargs or {}))
        part = self._of_copy(args[0]) if func is torch.ops.aten._to_copy.default else None
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor, part)
        return result

    def _of_copy(self, source: Tensor) -> Part | None:
        """Where a copy in another precision belongs, if that does not depend on where it is made."""
        entry = self._known.get(source.untyped_storage())
        if source.untyped_storage() in self._weights:
            return "weights"
        return "input" if entry and entry[0] == "input" else None

    def _count(self, tensor: Tensor, part: Part | None) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        part, size = part or self._owner(tensor), storage.nbytes()
        entry = self._known[storage] = [part, size]
        weakref.finalize(storage, self._free, entry)
        self.alive[part] += size
        if sum(self.alive.values()) > self._most:
            self.restart_most()

    def _free(self, entry: list[Any]) -> None:
        self.alive[entry[0]] -= entry[1]


class _Watch:
    """Follows a pass through the layers of a model."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.views = model, model.block_views()
        self.allocations = _Allocations(self._owner)
        self.in_forward, self.entered = True, 0
        self.inside: list[tuple[Part, int]] = []  # the branches being run: what is made in them, and the stream's width
        layers = range(len(self.views))
        self.before: Counter[Part] | None = None
        self.kept: list[Counter[Part]] = [Counter() for _ in layers]
        self.forward: list[Counter[Part]] = [Counter() for _ in layers]
        self.backward: list[Counter[Part]] = [Counter() for _ in layers]
        self.carried: list[Counter[Part]] = [Counter() for _ in layers]
        self.embedding: Counter[Part] = Counter()
        self.layer = len(self.views) - 1
        self.stream_dtype = torch.float32

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what is allocated meanwhile."""
        handles = []
        for parameter in self.model.parameters():
            self.allocations.ignore(parameter)
            handles.append(parameter.register_post_accumulate_grad_hook(self._file_gradient))  # type: ignore[no-untyped-call]
        for buffer in self.model.buffers():
            self.allocations.ignore(buffer)
        for module in {view.parts[0] for view in self.views}:
            handles.append(module.register_forward_pre_hook(self._enter_layer))
        for module in {view.parts[-1] for view in self.views}:
            handles.append(module.register_forward_hook(self._leave_layer))
        for branch in {branch for view in self.views for branch in (view.mixer, view.ffn) if branch is not None}:
            handles.append(branch.register_forward_pre_hook(self._enter_branch))
            handles.append(branch.register_forward_hook(self._leave_branch, always_call=True))
        try:
            with self.allocations:
                yield
        finally:
            for handle in handles:
                handle.remove()
        self._end_backward()

    def result(self, hidden_dtype: torch.dtype, places: Iterable[int]) -> PassTrace:
        """What was found, with the traced layer at each place."""
        of_layers = self.kept, self.forward, self.backward, self.carried
        traced = [LayerTrace(*map(dict, found)) for found in zip(*of_layers, strict=True)]
        layers = tuple(traced[place] for place in places)
        return PassTrace(dict(self.embedding), layers, dict(self.ending), self.stream_dtype, hidden_dtype)

    def end_forward(self) -> None:
        """The forward pass is over: its last hidden states exist."""
        self.in_forward = False
        self.ending = self._since_last()
        self._left = self.allocations.alive.copy()
        self.allocations.restart_most()

    def _owner(self, tensor: Tensor) -> Part:
        if not self.inside:
            return "stream" if self.in_forward else "gradients"
        part, width = self.inside[-1]
        if part == "choices" and tensor.shape[-1:] != (width,):
            return "inner"
        return part

    def _since_last(self) -> Counter[Part]:
        now = self.allocations.alive.copy()
        grown = Counter({part: now[part] - (self.before or Counter())[part] for part in now})
        self.before = now
        return grown

    def _enter_layer(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.in_forward:
            if self.before is None:
                self.embedding = self._since_last()
                self.stream_dtype = inputs[0].dtype
            self.start = self.allocations.alive.copy()
            self.allocations.restart_most()

    def _leave_layer(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if not self.in_forward:
            return
        layer = self.entered % len(self.views)
        self.entered += 1
        self.kept[layer] += self._since_last()
        most = {part: self.allocations.most[part] - self.start[part] for part in self.allocations.most}
        self.forward[layer] |= Counter(most)
        context = next((each for each in inputs if isinstance(each, Context)), Context())
        self.carried[layer] = self.allocations.filed(self.model.passed_on(layer, context).values())
        if output.requires_grad:
            output.register_hook(lambda gradient: self._begin_backward(layer))  # type: ignore[no-untyped-call]

    def _begin_backward(self, layer: int) -> None:
        self._end_backward()
        self.layer = layer

    def _end_backward(self) -> None:
        """The backward pass of a layer is over: file the most that it allocated."""
        most, left = self.allocations.most, self._left
        self.backward[self.layer] |= Counter({part: most[part] - left[part] for part in most})
        self._left = self.allocations.alive.copy()
        self.allocations.restart_most()

    def _enter_branch(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        mixes = any(matrix.target == "experts" for matrix in all_matrices(module))
        self.allocations.file(inputs[0], "input")
        self.inside.append(("choices" if mixes else "inner", inputs[0].shape[-1]))

    def _leave_branch(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.inside.pop()

    def _file_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.allocations.file(parameter.grad, "of weights")
