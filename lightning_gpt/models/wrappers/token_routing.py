"""Mixture of depths: blocks that only some tokens of a row go through; the others pass by on the residual path.

Raposo et al. 2024, "Mixture-of-Depths" (2404.02258). The number of tokens that go through a block is fixed in training,
so that a step's cost is known; which ones they are is learned.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, cast, get_args

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
from lightning_gpt.models.view import BlockView
from lightning_gpt.models.wrappers.checkpointing import Runner
from lightning_gpt.models.wrappers.chosen_tokens import Chosen, ChosenKeyValues, shown_whole

Decision = Literal["predictor", "router"]
"""What decides, where later tokens may not be looked at, whether a token is among a row's best."""

token_routings: Registry["MixtureOfDepths"] = Registry(
    "token_routing", "n_layer", "n_unique", "residual", "attention", optional=True
)
"""Which tokens go through which blocks."""


@token_routings.register("mixture_of_depths")
class MixtureOfDepths:
    """Through some blocks go only the tokens of a row that a router scores best; see :class:`TokenRouter`.

    Args:
        n_layer: Number of layers.
        n_unique: How many blocks have weights of their own.
        residual: The residual rule.
        attention: The attention kinds.
        capacity: The share of a row's tokens that go through; the paper takes 0.125.
        every: Which blocks have a router: every second in the paper, the first of them the second block.
        layers: The same by the numbers of the layers, from 0, in place of ``every``.
        decision: What decides in evaluation: a ``predictor`` of its own, or the ``router``'s score.
        loss_weight: The weight of the loss that teaches it.
    """

    def __init__(
        self,
        n_layer: int,
        n_unique: int | None,
        residual: Choice,
        attention: tuple[Choice, ...],
        capacity: float = 0.125,
        every: int = 2,
        layers: list[int] | None = None,
        decision: Decision = "predictor",
        loss_weight: float = 0.01,
    ) -> None:
        if not 0 < capacity <= 1:
            raise CallError(
                f"token_routing capacity is {capacity}; it must be above 0 and at most 1, a share of a row's tokens"
            )
        if decision not in get_args(Decision):
            raise CallError(
                f"token_routing decision is {decision!r}; it must be one of {', '.join(get_args(Decision))}"
            )
        if not 0 < loss_weight < math.inf:
            raise CallError(
                f"token_routing loss_weight is {loss_weight}; it must be above 0, or evaluation routes at random"
            )
        self.capacity, self.decision, self.loss_weight = capacity, decision, loss_weight
        self.layers = _layers(n_layer, every, layers)
        _check_shared(self.layers, n_layer, n_unique)
        _check_parts(self.layers, residual, attention)

    def wrap(self, block: Block, layer: int, dim: int) -> "Block | RoutedBlock":
        """``block``, the ``layer``th from 0, with a router where it is to have one."""
        if layer not in self.layers:
            return block
        return RoutedBlock(block, TokenRouter(dim, self.capacity, self.decision, self.loss_weight))


def _layers(n_layer: int, every: int, layers: list[int] | None) -> list[int]:
    """The numbers of the layers that have a router."""
    if layers is None:
        if not isinstance(every, int) or not 1 <= every <= n_layer:
            raise CallError(
                f"token_routing every is {every!r}; it must be a whole number from 1 to n_layer, which is {n_layer}"
            )
        return list(range(every - 1, n_layer, every))
    known = isinstance(layers, list) and all(isinstance(layer, int) and 0 <= layer < n_layer for layer in layers)
    if not known or not layers or len(set(layers)) < len(layers):
        raise CallError(f"token_routing layers is {layers!r}; it must list different layers from 0 to {n_layer - 1}")
    return layers


def _check_shared(layers: list[int], n_layer: int, n_unique: int | None) -> None:
    """A block that serves several layers has a router in all of them or in none."""
    if n_unique is None:
        return
    routed = {layer % n_unique for layer in layers}
    apart = [layer for layer in range(n_layer) if layer % n_unique in routed and layer not in layers]
    if apart:
        raise CallError(
            f"token_routing routes the tokens of layers {', '.join(map(str, layers))}, and with n_unique {n_unique} "
            f"layer {apart[0]} is the same block as one of them: let n_unique be a multiple of token_routing every, "
            f"or give token_routing layers that name all layers of a block"
        )


def _check_parts(layers: list[int], residual: Choice, attention: tuple[Choice, ...]) -> None:
    """Refuse what takes for granted that every token goes through every block."""
    if not blocks.get(residual.kind).keeps_stream:
        allowed = ", ".join(name for name in blocks.names if blocks.get(name).keeps_stream)
        raise CallError(
            f"token_routing lets tokens pass by a block, and under residual {residual.kind!r} a block does not give "
            f"the stream and something more; use residual {allowed}"
        )
    for layer in layers:
        kind = attentions.require(at_layer(attention, layer)).kind
        if attentions.get(kind).mixes_first_layer:
            raise CallError(
                f"attention {kind!r} mixes in what the first layer made of every token, and with token_routing layer "
                f"{layer} meets only some of them; use another attention there, or token_routing none"
            )


@dataclass
class Passed:
    """How many tokens went through a block in evaluation, since this was last asked.

    Args:
        through: Those that did.
        tokens: All.
    """

    through: Tensor
    tokens: Tensor


class TokenRouter(Layer):
    """``x_i ← x_i + r_i f_i(X̃)`` for the chosen tokens X̃ of a row, ``x_i`` for the others; ``r_i = w·x_i``.

    Raposo et al. 2024 (2404.02258), eq. 1, where f is what the block adds to the stream of the tokens that go through
    it, which see each other alone. In training these are the ``⌈capacity · time⌉`` of a row with the highest score r:
    later tokens have a say in that. In evaluation and with a cache each token is decided by itself: it goes through
    where the logit of the decision is above 0, that is, where a sigmoid of it is above ½. That logit is taught by
    binary cross-entropy to say whether a token is among its row's best (section 3.5, both ways): it is r itself, so
    that the model's own loss and this one share the router; or that of a small network which reads the stream and sends
    no gradient into it.

    All is computed in fp32 or better. Intermediates: ``scores`` (r) and ``through`` (what goes through, booleans), both
    ``(batch, time)``.

    Args:
        dim: Width of the residual stream.
        capacity: The share of a row's tokens that go through in training.
        decision: ``router`` or ``predictor``.
        loss_weight: What the cross-entropy is multiplied by.
    """

    def __init__(self, dim: int, capacity: float, decision: Decision, loss_weight: float) -> None:
        super().__init__()
        self.capacity, self.loss_weight = capacity, loss_weight
        self.score = Exact(dim, 1, bias=False, std=0.02, maps=("stream", "score"))
        self.predictor = Predictor(dim) if decision == "predictor" else None
        self.passed: Passed | None = None  # no buffer: DDP would overwrite every process's with the first one's

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Chosen | None]:
        """The scores ``(batch, time)`` of the stream ``(batch, time, dim)`` and the tokens that go through, if any."""
        with without_autocast(x):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            scores = self.see("scores", self.score(wide).squeeze(-1))  # (B, T)
            if self.training and context.cache is None:
                return self._best(wide, scores, context.losses)
            return scores, self._decided(wide, scores, context)

    def n_chosen(self, time: int) -> int:
        """How many of ``time`` tokens go through in training."""
        return math.ceil(self.capacity * time)

    def _best(self, x: Tensor, scores: Tensor, losses: PartLosses | None) -> tuple[Tensor, Chosen]:
        """The scores, with the loss of the decision riding on them, and the best tokens of each row."""
        best = scores.topk(self.n_chosen(x.shape[1]), dim=1).indices
        through = self.see("through", torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True))
        if losses is not None:
            logits = self._logits(x, scores)
            error = F.binary_cross_entropy_with_logits(logits, through.to(logits.dtype))
            scores = losses.attach(scores, self.loss_weight * error)
        return scores, Chosen(best.sort(dim=1).values)

    def _decided(self, x: Tensor, scores: Tensor, context: Context) -> Chosen | None:
        """The tokens that are told to go through, each by itself; None where none is and nobody looks."""
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
        """Of the decision, ``(batch, time)``."""
        return scores if self.predictor is None else self.predictor(x.detach())

    def _count(self, through: Tensor, tokens: Tensor) -> None:
        if self.passed is not None:
            through, tokens = self.passed.through + through, self.passed.tokens + tokens
        self.passed = Passed(through, tokens)

    def take_passed(self) -> Passed | None:
        """How many tokens went through in evaluation since this was last asked; None where none was read."""
        passed, self.passed = self.passed, None
        return passed


class RoutedBlock(Layer):
    """A block that the tokens which its router chooses go through; the others pass by on the residual path.

    Args:
        block: What they go through.
        router: What chooses.
    """

    inner = "block"

    def __init__(self, block: Block, router: TokenRouter) -> None:
        super().__init__()
        self.block = block
        self.router = router
        self.run: Runner | None = None  # what runs the block, where it is not run as it is

    @property
    def unwrapped(self) -> Block:
        """The block inside."""
        return self.block

    @property
    def attention(self) -> Mixer:
        """The block's."""
        return self.block.attention

    @property
    def ends_normed(self) -> bool:
        """As the block's."""
        return self.block.ends_normed

    def init_branches(self, n_layer: int) -> None:
        """The block's."""
        self.block.init_branches(n_layer)

    def zero_branches(self) -> None:
        """The block's."""
        self.block.zero_branches()

    def new_state(self, capacity: int) -> LayerState:
        """What the block keeps of the tokens that went through it."""
        state = self.block.new_state(capacity)
        return ChosenKeyValues(cast(KeyValues, state)) if self.attention.keeps_keys else state

    def flops(self, positions: Tensor) -> float:
        """The router's of every token, and the block's of those that go through, as if they were spread evenly."""
        time = len(positions)
        through = torch.linspace(0, time - 1, self.router.n_chosen(time)).round().long()
        return self.router.flops(positions) + self.block.flops(positions[through]) * len(through) / time

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        """The residual stream ``(batch, time, dim)`` before and after."""
        scores, chosen = self.router(x, context)
        if chosen is None:
            return self.see("after_ffn", x)
        part, within = chosen.take(x), chosen.context(context, x.shape[1])
        with nullcontext() if self._watch is None else shown_whole(self.block, chosen, x, context.cache is None):
            added = (self.run or self.block)(part, within) - part
        weight = scores.gather(1, chosen.index)[..., None].to(x.dtype)
        return self.see("after_ffn", chosen.add(x, weight * added))


class Exact(Layer):
    """``x Wᵀ + b`` as the weights are: no ``nn.Linear``, because what rounds those must leave a choice alone."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool, std: float, maps: tuple[Space, Space]) -> None:
        super().__init__()
        self.std, self.maps = std, maps
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.bias = nn.Parameter(torch.empty(n_out)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W ~ N(0, std²), b = 0."""
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def matrices(self) -> Iterator[Matrix]:
        yield Matrix(self.weight, *self.maps, bias=self.bias)

    def flops(self, positions: Tensor) -> float:
        return 2.0 * self.weight.numel()

    def forward(self, x: Tensor) -> Tensor:
        """``(..., n_in)`` to ``(..., n_out)``, in the precision of ``x``."""
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Predictor(Layer):
    """``w₂·GELU(W₁ x̂ + b₁) + b₂``: the logit of a token's being among its row's best, from the stream alone.

    Raposo et al. 2024 (2404.02258), section 3.5, the second way, whose network is not specified. x̂ is the stream at a
    root mean square of 1, so that what was learned early holds when the stream has grown.

    Args:
        dim: Width of the residual stream; the hidden width is an eighth of it, 8 at least.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(8, dim // 8)
        self.up = Exact(dim, hidden, bias=True, std=1 / math.sqrt(dim), maps=("stream", "hidden"))
        self.output = Exact(hidden, 1, bias=True, std=1 / math.sqrt(hidden), maps=("hidden", "score"))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, time, dim)`` to ``(batch, time)``."""
        logits: Tensor = self.output(F.gelu(self.up(F.rms_norm(x, x.shape[-1:]))))
        return logits.squeeze(-1)


def token_routers(blocks: Iterable[BlockView]) -> dict[int, TokenRouter]:
    """The routers among a model's blocks, by layer; one that several layers share under the first of them."""
    found: dict[int, TokenRouter] = {}
    for layer, (block, *_) in enumerate(view.parts for view in blocks):
        if isinstance(block, RoutedBlock) and block.router not in found.values():
            found[layer] = block.router
    return found
