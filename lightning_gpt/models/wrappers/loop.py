"""Depth by repetition: a few blocks that run several times on a state into which the input is fed each time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Layer, Linear, Matrix
from lightning_gpt.models.registry import Registry
from lightning_gpt.models.wrappers.checkpointing import Runner
from lightning_gpt.options import Depth, Range

loops: Registry["RecurrentDepth"] = Registry("loop", "n_layer", optional=True)

Ends = Annotated[int, Range(0, 1000)]
"""How many blocks run once, before or after the loop."""


@loops.register("recurrent_depth")
class RecurrentDepth:
    """``e = P(x)``, ``s_0 = 0``, ``s_i = R(A[s_{i−1}; e] + t_i)`` for i = 1, …, r, then ``C(s_r)``.

    Geiping et al. 2025, "Scaling up Test-Time Compute with Latent Reasoning: A Recurrent Depth Approach" (2502.05171),
    section 3, with the embedding t_i of the step of Dehghani et al. 2018, "Universal Transformers" (1807.03819),
    section 2, learned here. P, R and C are blocks of the model. Two things of the first paper are not here: its state
    starts at random numbers, while here a text has one result; and it draws r anew in each training step.

    Args:
        n_layer: Number of executed layers, ``prelude + core · r + coda``.
        prelude: Blocks of P.
        core: Blocks of R.
        coda: Blocks of C.
        injection: How a loop reads the state and the input: ``adapter``, the learned matrix A of both, or ``add``,
            their sum.
        n_step: Number of learned t; later loops have the last one. r if None.

    Raises:
        CallError: If no whole number of loops gives ``n_layer``.
    """

    def __init__(
        self,
        n_layer: int,
        prelude: Ends = 1,
        core: Depth = 2,
        coda: Ends = 1,
        injection: Literal["adapter", "add"] = "adapter",
        n_step: Depth | None = None,
    ) -> None:
        inside = n_layer - prelude - coda
        if inside < core or inside % core:
            fitting = [str(prelude + core * r + coda) for r in (1, 2, 3)]
            raise CallError(
                f"n_layer is {n_layer}; a loop of {core} blocks with {prelude} before and {coda} after it makes "
                f"n_layer {', '.join(fitting)} and so on"
            )
        self.prelude, self.core, self.coda = prelude, core, coda
        self.n_layer, self.n_loop = n_layer, inside // core
        self.injection, self.n_step = injection, n_step or self.n_loop

    @property
    def n_own(self) -> int:
        """Number of blocks with weights of their own."""
        return self.prelude + self.core + self.coda

    def block_of(self, layer: int) -> int:
        """The number of the block that an executed layer runs."""
        if layer < self.prelude:
            return layer
        if layer >= self.n_layer - self.coda:
            return self.n_own - (self.n_layer - layer)
        return self.prelude + (layer - self.prelude) % self.core

    def begins(self, layer: int) -> int | None:
        """The loop, from 0, that begins with an executed layer; None if none does."""
        step, within = divmod(layer - self.prelude, self.core)
        return step if within == 0 and 0 <= step < self.n_loop else None

    def make_injection(self, dim: int) -> "Injection":
        """What each loop begins with."""
        return Injection(dim, self.n_step, self.n_loop, self.injection == "adapter")


class Injection(Layer):
    """``A[s; e] + t``, or ``s + e + t``. Intermediates: ``state_0``, ``state_1``, …: what each loop begins with.

    Args:
        dim: Width of the stream.
        n_step: Number of learned t.
        n_loop: How often a pass runs it.
        adapts: Whether there is an A.
    """

    def __init__(self, dim: int, n_step: int, n_loop: int, adapts: bool) -> None:
        super().__init__()
        self.n_loop = n_loop
        self.adapter = Linear(2 * dim, dim, bias=False, maps=("stream", "stream")) if adapts else None
        self.steps = nn.Parameter(torch.empty(n_step, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """``t ~ N(0, 0.02²)``, as embeddings."""
        nn.init.normal_(self.steps, std=0.02)

    def matrices(self) -> Iterator[Matrix]:
        yield Matrix(self.steps, "position", "stream")

    def flops(self, positions: Tensor) -> float:
        return self.n_loop * super().flops(positions)

    def begin(self, x: Tensor, context: Context, step: int) -> Tensor:
        """What loop ``step`` begins with, made of the state; of the prelude's output, where it is the first one."""
        prelude = context.shared.carried.made("prelude", lambda: x)
        context.shared.initial_stream(prelude)  # without a prelude, before anything is injected
        return self(torch.zeros_like(x) if step == 0 else x, prelude, step)  # type: ignore[no-any-return]

    def forward(self, state: Tensor, prelude: Tensor, step: int) -> Tensor:
        """What loop ``step`` begins with, made of the state and the prelude's output, both ``(batch, time, dim)``."""
        entering = state + prelude if self.adapter is None else self.adapter(torch.cat([state, prelude], dim=-1))
        return self.see(f"state_{step}", entering + self.steps[min(step, len(self.steps) - 1)])


@dataclass(frozen=True)
class BeginsLoop:
    """Runs the first layer of a loop on the state with the prelude's output fed into it.

    Args:
        run: Runs the layer.
        injection: Feeds it in.
        step: The loop, from 0.
    """

    run: Runner
    injection: Injection
    step: int

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        """Run the layer: the state to the same shape; the first loop is given the prelude's output instead."""
        return self.run(self.injection.begin(x, context, self.step), context)
