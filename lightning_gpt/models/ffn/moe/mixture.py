"""Mixture of experts: many feed-forward networks; each token goes through a few of them."""

from collections.abc import Iterable
from typing import Annotated

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.context import Context
from lightning_gpt.models.ffn.dense import FeedForward, ffns
from lightning_gpt.models.ffn.moe.experts import Experts
from lightning_gpt.models.ffn.moe.router import Balance, Router, Score, SharedGate, Use
from lightning_gpt.models.layer import Cut, Layer
from lightning_gpt.models.rounding import ceiling
from lightning_gpt.models.view import BlockView
from lightning_gpt.options import NotNegative, Positive, Range, Width

ExpertCount = Annotated[int, Range(1, 2**16)]


@ffns.register("moe")
class MixtureOfExperts(Layer):
    """``y = Σ_{i chosen} g_i(x) E_i(x)``: Shazeer et al. 2017 (1701.06538), eq. 1; ``g`` comes from the router.

    With shared experts, ``E_shared(x)`` is added for every token: Dai et al. 2024, "DeepSeekMoE" (2401.06066), eq. 9;
    several shared experts are implemented as one network of their total width. With ``shared_gate``, what is added is
    ``σ(x w) E_shared(x)``, as in Qwen2-MoE (Yang et al. 2024, 2407.10671).

    Dropless by default: choices are sorted by expert, so that each expert processes one contiguous slice of any length
    (Gale et al. 2022, "MegaBlocks", 2211.15841). With a ``capacity_factor`` c, an expert accepts at most
    ``⌈c·k·tokens/n⌉`` choices per training pass (Fedus et al. 2021, 2101.03961, eq. 3), in token order, so that no
    token loses its place to a later one; choices over capacity contribute nothing. Evaluation is always dropless, so a
    token's output does not depend on other tokens.

    Intermediates: ``router.scores``, ``router.gates``, ``experts.{i}.hidden`` ``(choices, hidden)``,
    ``experts.{i}.output`` ``(choices, dim)``, those of ``shared`` and ``shared_gate``, and ``output``
    ``(batch, time, dim)``.

    Args:
        dim: Width of the residual stream.
        bias: Whether the experts' products have biases; the router's is ``router_bias``.
        n_expert: Number of routed experts.
        top_k: Number of routed experts per token.
        n_shared: Number of additional experts that process every token.
        shared_gate: Whether each token learns how much of their output it gets.
        expert: Kind of expert: ``gelu``, ``gelu_erf``, ``relu``, ``relu2``, ``swiglu``, ``geglu`` or
            ``clamped_swiglu``.
        hidden: Hidden width of an expert. If None, the width of the dense network of its kind divided by
            ``top_k + n_shared``, rounded to a multiple of 8, so that a token uses as many parameters as in that network
            (plus the router's ``dim·n_expert``).
        router: ``softmax`` or ``sigmoid``: how a token's experts are scored.
        router_bias: Whether the router's product has a bias, as in gpt-oss.
        normed_gates: Whether a token's weights ``g_i`` are divided by their sum; if None, unless ``top_k`` is 1.
        gate_factor: What they are multiplied by in the end: ``routed_scaling_factor`` in the code of DeepSeek-V2
            and V3 (DeepSeek-AI 2024, 2405.04434, 2412.19437).
        capacity_factor: An expert's capacity in training, as a multiple of its equal share; None for dropless.
        balance: How expert use is balanced: by a ``loss``, a ``bias`` on the choice, or ``none``.
        balance_rate: Coefficient of that loss (0.01 if None) or step of the bias (0.001 if None).
        z_loss: Coefficient of the router z-loss, which keeps the router's logits small.
    """

    sees_rows = True

    def __init__(
        self,
        dim: int,
        *,
        bias: bool,
        n_expert: ExpertCount = 8,
        top_k: ExpertCount = 2,
        n_shared: Annotated[int, Range(0, 1024)] = 0,
        shared_gate: bool = False,
        expert: str = "gelu",
        hidden: Width | None = None,
        router: Score = "softmax",
        router_bias: bool = False,
        normed_gates: bool | None = None,
        gate_factor: Positive = 1.0,
        capacity_factor: Annotated[float, Range(above=0, most=2**16)] | None = None,
        balance: Balance = "loss",
        balance_rate: NotNegative | None = None,
        z_loss: NotNegative = 0.001,
    ) -> None:
        super().__init__()
        kind = _expert_kind(expert)
        self.router = Router(
            dim, n_expert, top_k, router, balance, balance_rate, z_loss, router_bias, normed_gates, gate_factor
        )
        self.n_expert, self.top_k, self.capacity_factor = n_expert, top_k, capacity_factor
        hidden = self.hidden_of_one(dim, expert, top_k, n_shared, hidden)
        self.experts = Experts(kind, dim, hidden, n_expert, bias=bias)
        self.shared = kind(dim, bias=bias, hidden=n_shared * hidden) if n_shared else None
        if shared_gate and not n_shared:
            raise CallError("ffn shared_gate needs shared experts, and n_shared is 0: set n_shared, or leave it out")
        self.shared_gate = SharedGate(dim) if shared_gate else None
        self.use: Use | None = None  # not a buffer: DDP would overwrite it with rank 0's

    @staticmethod
    def hidden_of_one(dim: int, expert: str, top_k: int, n_shared: int, hidden: int | None) -> int:
        """The hidden width of an expert for these options."""
        if hidden is not None:
            return hidden
        return max(8, 8 * round(_expert_kind(expert).default_hidden(dim) / (top_k + n_shared) / 8))

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        """Map ``(batch, time, dim)`` to the same shape."""
        routing, tokens = self.router(x, context.losses), x.reshape(-1, x.shape[-1])
        chosen, gates = routing.chosen.flatten(), routing.gates.flatten()  # (tokens · top_k,)
        order = chosen.argsort(stable=True)  # by expert, then in token order
        gates = gates[order]
        capacity = self._capacity(len(order))
        if capacity is not None:
            gates = gates * self._has_place(order, chosen, routing.counts, capacity)
        if routing.use is not None:
            if capacity is not None:
                routing.use.dropped = (routing.counts - capacity).clamp(min=0).sum()
            self.use = routing.use if self.use is None else self.use + routing.use
        token = order // self.top_k
        outputs = self.experts(tokens.index_select(0, token), routing.counts)
        mixed = outputs.new_zeros(tokens.shape).index_add(0, token, outputs * gates[:, None].to(outputs.dtype))
        if self.shared is not None:
            mixed = mixed + self._shared(tokens)
        return self.see("output", mixed.view(x.shape))

    def _shared(self, tokens: Tensor) -> Tensor:
        """The shared experts' output for ``(tokens, dim)``."""
        assert self.shared is not None
        output: Tensor = self.shared(tokens)
        if self.shared_gate is not None:
            output = self.shared_gate(tokens).to(output.dtype) * output
        return output

    @property
    def needs_whole_rows(self) -> bool:
        """True with a capacity, for which tokens compete in the order of the text."""
        return self.capacity_factor is not None

    def cut(self) -> Cut | None:
        """Each network by its hidden units; every device routes all tokens."""
        alike = ("router",) if self.shared_gate is None else ("router", "shared_gate")
        return Cut(alike=alike, parts=("experts",) if self.shared is None else ("experts", "shared"))

    def _capacity(self, n_choice: int) -> int | None:
        """How many choices of this pass an expert accepts; None for all."""
        if self.capacity_factor is None or not self.training:
            return None
        return ceiling(self.capacity_factor * n_choice / self.n_expert)

    def _has_place(self, order: Tensor, chosen: Tensor, counts: Tensor, capacity: int) -> Tensor:
        """Which of the sorted choices are within capacity. The others are computed too, but with weight 0.

        Skipping them would make tensor shapes depend on data, which would stall a GPU.
        """
        first = counts.cumsum(0) - counts
        place = torch.arange(len(order), device=order.device) - first[chosen[order]]
        return place < capacity

    def flops(self, positions: Tensor) -> float:
        """The router, the chosen experts and the shared ones."""
        shared = 0.0 if self.shared is None else self.shared.flops(positions)
        gate = 0.0 if self.shared_gate is None else self.shared_gate.flops(positions)
        return self.router.flops(positions) + self.top_k * self.experts.flops_of_one() + shared + gate

    def take_use(self) -> Use | None:
        """Expert use since the last call; None if there was no training pass."""
        use, self.use = self.use, None
        return use

    def no_use(self) -> Use:
        """The result of :meth:`take_use` for zero tokens and zero passes."""
        device = self.router.weight.device
        none = torch.zeros((), dtype=torch.long, device=device)
        return Use(none.repeat(self.n_expert), none, none.float(), none.float(), none)

    @property
    def idle_parameters(self) -> int:  # type: ignore[override]
        """Number of parameters a token does not use: those of its unchosen experts."""
        return (self.n_expert - self.top_k) * self.experts.parameters_of_one


def _expert_kind(name: str) -> type[FeedForward]:
    kinds = {known: ffns.get(known) for known in ffns.names if known != "none"}
    dense = {known: kind for known, kind in kinds.items() if issubclass(kind, FeedForward) and kind.can_be_expert}
    if name not in dense:
        raise CallError(f"ffn expert is {name!r}; it must be one of {', '.join(dense)}")
    return dense[name]


def mixtures(blocks: Iterable[BlockView]) -> dict[int, MixtureOfExperts]:
    """The mixtures among a model's blocks, by layer; a mixture shared by several layers is listed under the first."""
    found: dict[int, MixtureOfExperts] = {}
    for block in blocks:
        if isinstance(block.ffn, MixtureOfExperts) and block.ffn not in found.values():
            found[block.layer] = block.ffn
    return found
