"""Mixture of depths: blocks that process only some tokens of a row; the others skip them on the residual path.

Raposo et al. 2024, "Mixture-of-Depths" (2404.02258). In training the number of tokens per block is fixed, so that a
step's cost is known; which tokens they are is learned.
"""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.attention.mixer import Mixer, attentions
from lightning_gpt.models.block import Block, blocks
from lightning_gpt.models.context import Context
from lightning_gpt.models.kv_cache import KeyValues, LayerState
from lightning_gpt.models.layer import Layer, Matrix, Space, without_autocast
from lightning_gpt.models.part_losses import PartLosses
from lightning_gpt.models.registry import Choice, Registry, at_layer
from lightning_gpt.models.rounding import ceiling
from lightning_gpt.models.view import BlockView
from lightning_gpt.models.wrappers.checkpointing import Runner
from lightning_gpt.models.wrappers.chosen_tokens import Chosen, ChosenKeyValues, shown_whole
from lightning_gpt.options import Depth, Positive, ShareAboveZero, shown

Decision = Literal["predictor", "router"]
"""How to decide without seeing later tokens whether a token is among its row's best."""

token_routings: Registry["MixtureOfDepths"] = Registry(
    "token_routing", "n_layer", "n_unique", "residual", "attention", optional=True
)
"""Rules for which tokens go through which blocks."""


@token_routings.register("mixture_of_depths")
class MixtureOfDepths:
    """Some blocks process only the tokens of a row with the best router scores; see :class:`TokenRouter`.

    Args:
        n_layer: Number of layers.
        n_unique: Number of blocks with their own weights; None for all.
        residual: The residual rule.
        attention: The attention kinds.
        capacity: The share of a row's tokens that a block processes; the paper uses 0.125.
        every: Which blocks have a router: every ``every``-th one; every second in the paper, starting with the second.
        layers: The indices of those layers, from 0, instead of ``every``.
        decision: What decides in evaluation: a separate ``predictor``, or the ``router``'s score.
        loss_weight: The weight of the loss that trains the decision.
    """

    def __init__(
        self,
        n_layer: int,
        n_unique: int | None,
        residual: Choice,
        attention: tuple[Choice, ...],
        capacity: ShareAboveZero = 0.125,
        every: Depth = 2,
        layers: list[int] | None = None,
        decision: Decision = "predictor",
        loss_weight: Positive = 0.01,
    ) -> None:
        self.capacity, self.decision, self.loss_weight = capacity, decision, loss_weight
        self.layers = _layers(n_layer, every, layers)
        _check_shared(self.layers, n_layer, n_unique)
        _check_parts(self.layers, residual, attention)

    def wrap(self, block: Block, layer: int, dim: int) -> "Block | RoutedBlock":
        """``block`` of layer ``layer``, counted from 0, with a router if that layer has one."""
        if layer not in self.layers:
            return block
        return RoutedBlock(block, TokenRouter(dim, self.capacity, self.decision, self.loss_weight))


def _layers(n_layer: int, every: int, layers: list[int] | None) -> list[int]:
    """The indices of the layers that have a router."""
    if layers is None:
        if every > n_layer:
            raise CallError(
                f"token_routing every is {every}; it must be a whole number from 1 to n_layer, which is {n_layer}"
            )
        return list(range(every - 1, n_layer, every))
    known = all(0 <= layer < n_layer for layer in layers)
    if not known or not layers or len(set(layers)) < len(layers):
        raise CallError(
            f"token_routing layers is {shown(layers)}; it must list different layers from 0 to {n_layer - 1}"
        )
    return layers


def _check_shared(layers: list[int], n_layer: int, n_unique: int | None) -> None:
    """A block that serves several layers must have a router in all of them or in none."""
    if n_unique is None:
        return
    routed = {layer % n_unique for layer in layers}
    apart = [layer for layer in range(n_layer) if layer % n_unique in routed and layer not in layers]
    if apart:
        raise CallError(
            f"token_routing puts routers in layers {', '.join(map(str, layers))}, but with n_unique {n_unique} "
            f"layer {apart[0]} shares a block with one of them: make n_unique a multiple of token_routing every, "
            f"or list all layers of a block in token_routing layers"
        )


def _check_parts(layers: list[int], residual: Choice, attention: tuple[Choice, ...]) -> None:
    """Raise a CallError for parts that need every token to go through every block."""
    if not blocks.get(residual.kind).keeps_stream:
        allowed = ", ".join(name for name in blocks.names if blocks.get(name).keeps_stream)
        raise CallError(
            f"token_routing lets tokens skip a block, but with residual {residual.kind!r} a block's output is not "
            f"the stream plus an update; use residual {allowed}"
        )
    for layer in layers:
        kind = attentions.require(at_layer(attention, layer)).kind
        if attentions.get(kind).mixes_first_layer:
            raise CallError(
                f"attention {kind!r} uses the first layer's values of every token, but with token_routing layer "
                f"{layer} processes only some tokens; use another attention there, or token_routing none"
            )


@dataclass
class Passed:
    """How many tokens went through a block in evaluation since the last call of :meth:`TokenRouter.take_passed`.

    Args:
        through: Number of tokens that went through.
        tokens: Number of all tokens.
    """

    through: Tensor
    tokens: Tensor


class TokenRouter(Layer):
    """``x_i ← x_i + r_i f_i(X̃)`` for the chosen tokens X̃ of a row, ``x_i`` for the others; ``r_i = w·x_i``.

    Raposo et al. 2024 (2404.02258), eq. 1; f is the block's update of the chosen tokens, which attend only to each
    other. In training these are the ``⌈capacity · time⌉`` tokens of a row with the highest score r, a choice that
    depends on later tokens. In evaluation and with a cache each token is decided on its own: it goes through if the
    decision's logit is above 0 (its sigmoid above ½). Binary cross-entropy trains that logit to predict whether a token
    is among its row's best (section 3.5, both methods). The logit is either r itself, so that this loss and the model's
    own loss both train the router, or the output of a small network that reads the stream without sending gradients
    into it.

    Everything is computed in fp32 or better. Intermediates: ``scores`` (r) and ``through`` (booleans: which tokens go
    through), both ``(batch, time)``.

    Args:
        dim: Width of the residual stream.
        capacity: The share of a row's tokens that go through in training.
        decision: ``router`` or ``predictor``.
        loss_weight: Weight of the cross-entropy.
    """

    def __init__(self, dim: int, capacity: float, decision: Decision, loss_weight: float) -> None:
        super().__init__()
        self.capacity, self.loss_weight = capacity, loss_weight
        self.score = Exact(dim, 1, bias=False, std=0.02, maps=("stream", "score"))
        self.predictor = Predictor(dim) if decision == "predictor" else None
        self.passed: Passed | None = None  # not a buffer: DDP would overwrite it with rank 0's

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Chosen | None]:
        """The scores ``(batch, time)`` of the stream ``(batch, time, dim)``, and the tokens that go through, if any."""
        with without_autocast(x):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            scores = self.see("scores", self.score(wide).squeeze(-1))  # (B, T)
            if self.training and context.cache is None:
                return self._best(wide, scores, context.losses)
            return scores, self._decided(wide, scores, context)

    def n_chosen(self, time: int) -> int:
        """How many of ``time`` tokens go through in training."""
        return ceiling(self.capacity * time)

    def _best(self, x: Tensor, scores: Tensor, losses: PartLosses | None) -> tuple[Tensor, Chosen]:
        """The scores, with the decision's loss attached, and the best tokens of each row."""
        best = scores.topk(self.n_chosen(x.shape[1]), dim=1).indices
        through = self.see("through", torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True))
        if losses is not None:
            logits = self._logits(x, scores)
            error = F.binary_cross_entropy_with_logits(logits, through.to(logits.dtype))
            scores = losses.attach(scores, self.loss_weight * error)
        return scores, Chosen(best.sort(dim=1).values)

    def _decided(self, x: Tensor, scores: Tensor, context: Context) -> Chosen | None:
        """The tokens decided to go through, each independently; None if there are none and nothing is recorded."""
        through = self._logits(x, scores) > 0
        if context.lengths is not None:
            through = through & (torch.arange(x.shape[1], device=x.device) < context.lengths[:, None])
        through = self.see("through", through)
        lengths = through.sum(dim=1)
        self._count(lengths.sum(), lengths.new_tensor(through.numel()))
        most = max(int(lengths.max()), 0 if self._watch is None else 1)
        if most == 0:
            return None
        return Chosen((~through).to(torch.uint8).argsort(dim=1, stable=True)[:, :most], lengths)

    def _logits(self, x: Tensor, scores: Tensor) -> Tensor:
        """The decision's logits, ``(batch, time)``."""
        return scores if self.predictor is None else self.predictor(x.detach())

    def _count(self, through: Tensor, tokens: Tensor) -> None:
        if self.passed is not None:
            through, tokens = self.passed.through + through, self.passed.tokens + tokens
        self.passed = Passed(through, tokens)

    def take_passed(self) -> Passed | None:
        """How many tokens went through in evaluation since the last call; None if no token was read."""
        passed, self.passed = self.passed, None
        return passed


class RoutedBlock(Layer):
    """A block that processes only the tokens its router chooses; the others skip it on the residual path.

    Args:
        block: The block.
        router: The router.
    """

    inner = "block"
    sees_rows = True
    same_each_step = False

    def __init__(self, block: Block, router: TokenRouter) -> None:
        super().__init__()
        self.block = block
        self.router = router
        self.run: Runner | None = None  # runs the block; None to call it directly

    @property
    def unwrapped(self) -> Block:
        """The block inside."""
        return self.block

    @property
    def attention(self) -> Mixer:
        """The block's attention."""
        return self.block.attention

    @property
    def ends_normed(self) -> bool:
        """Same as the block's."""
        return self.block.ends_normed

    def init_branches(self, n_layer: int) -> None:
        """Delegates to the block."""
        self.block.init_branches(n_layer)

    def zero_branches(self) -> None:
        """Delegates to the block."""
        self.block.zero_branches()

    def written(self, output: Tensor) -> Tensor | None:
        """None: the router weighs it by token."""
        return None

    def new_state(self, capacity: int) -> LayerState:
        """State for the tokens that go through the block."""
        state = self.block.new_state(capacity)
        return ChosenKeyValues(cast(KeyValues, state)) if self.attention.keeps_keys else state

    def flops(self, positions: Tensor) -> float:
        """The router for every token, plus the block for those that go through, assumed evenly spread."""
        time = len(positions)
        through = torch.linspace(0, time - 1, self.router.n_chosen(time)).round().long()
        return self.router.flops(positions) + self.block.flops(positions[through]) * len(through) / time

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        """Map the residual stream ``(batch, time, dim)`` before the block to the stream after it."""
        scores, chosen = self.router(x, context)
        if chosen is None:
            return self.see("after_ffn", x)
        part, within = chosen.take(x), chosen.context(context, x.shape[1])
        with nullcontext() if self._watch is None else shown_whole(self.block, chosen, x, context.cache is None):
            added = (self.run or self.block)(part, within) - part
        weight = scores.gather(1, chosen.index)[..., None].to(x.dtype)
        return self.see("after_ffn", chosen.add(x, weight * added))


class Exact(Layer):
    """``x Wᵀ + b`` with unrounded weights: not an ``nn.Linear``, so that quantisation does not change decisions.

    Args:
        n_in: Number of inputs.
        n_out: Number of outputs.
        bias: Whether it has a bias.
        maps: What it maps from and to.
        std: Standard deviation of the first weights; 1/√``n_in`` if None.
    """

    def __init__(
        self, n_in: int, n_out: int, *, bias: bool, maps: tuple[Space, Space], std: float | None = None
    ) -> None:
        super().__init__()
        self.std, self.maps, self.starts_by_width = std or n_in**-0.5, maps, std is None
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.bias = nn.Parameter(torch.empty(n_out)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W ~ N(0, std²), b = 0."""
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def matrices(self) -> Iterator[Matrix]:
        yield Matrix(self.weight, *self.maps, bias=self.bias, starts_by_width=self.starts_by_width)

    def flops(self, positions: Tensor) -> float:
        return 2.0 * self.weight.numel()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., n_in)`` to ``(..., n_out)``, in the precision of ``x``."""
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Predictor(Layer):
    """``w₂·GELU(W₁ x̂ + b₁) + b₂``: the logit that a token is among its row's best, from the stream alone.

    Raposo et al. 2024 (2404.02258), section 3.5, second method; the paper does not specify the network. x̂ is the
    stream scaled to a root mean square of 1, so that what is learned early stays valid as the stream grows.

    Args:
        dim: Width of the residual stream; the hidden width is an eighth of it, but at least 8.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(8, dim // 8)
        self.up = Exact(dim, hidden, bias=True, maps=("stream", "hidden"))
        self.output = Exact(hidden, 1, bias=True, maps=("hidden", "score"))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, time, dim)`` to ``(batch, time)``."""
        logits: Tensor = self.output(F.gelu(self.up(F.rms_norm(x, x.shape[-1:]))))
        return logits.squeeze(-1)


def token_routers(blocks: Iterable[BlockView]) -> dict[int, TokenRouter]:
    """The routers among a model's blocks, by layer; a router shared by several layers is listed under the first."""
    found: dict[int, TokenRouter] = {}
    for view in blocks:
        block = view.parts[0]
        if isinstance(block, RoutedBlock) and block.router not in found.values():
            found[view.layer] = block.router
    return found
