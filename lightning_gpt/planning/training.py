"""What is to be trained, as a plan needs to know it."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch

from lightning_gpt.data.share import micro_batches
from lightning_gpt.errors import CallError
from lightning_gpt.models.base import LanguageModel
from lightning_gpt.models.ffn.moe.mixture import MixtureOfExperts
from lightning_gpt.models.layer import Layer
from lightning_gpt.models.view import BlockView
from lightning_gpt.models.wrappers.checkpointing import Checkpointing
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.planning.depth import layer_kinds
from lightning_gpt.planning.flops import active_parameters, training_flops_per_token
from lightning_gpt.planning.tracing import PassTrace, cache_bytes, key_bytes, trace
from lightning_gpt.planning.weights import Weight, weights_of


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run.

    Args:
        model: The model; may be on the meta device.
        precision: The Trainer's precision.
        device: ``cpu`` or ``cuda``.
        rows: Rows of a batch in one process (``data.batch_size``); a pipeline divides it into micro-batches.
        time: Tokens of a row.
        accumulate: Batches of an optimizer step in one process, where ``global_rows`` does not say it.
        global_rows: Rows of an optimizer step over all processes, whatever the layout; None if they follow from the
            others.
        steps: Optimizer steps; None if unknown.
        optimizer: ``adamw`` or ``muon``.
        newton_schulz_steps: Muon's iterations.
        compiles: Whether blocks are compiled.
        copies_only: Whether ``fit`` takes no layout, for the model's memory, the precision or a rule that changes the
            weights after each step; several devices then have copies of the model under DDP.
        is_averaged: Whether a mean of the weights is kept.
        has_documents: Whether documents are kept apart.
    """

    model: LanguageModel
    precision: str
    device: str
    rows: int
    time: int
    accumulate: int = 1
    global_rows: int | None = None
    steps: int | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    newton_schulz_steps: int = 5
    compiles: bool = False
    copies_only: bool = False
    is_averaged: bool = False
    has_documents: bool = False
    _traces: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    _others: dict[tuple[int, int], "Training"] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def weights(self) -> list[Weight]:
        """The parameters."""
        return weights_of(self.model)

    @cached_property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(weight.numel for weight in self.weights)

    @cached_property
    def active(self) -> int:
        """The number of parameters that one token meets."""
        return active_parameters(self.model)

    @cached_property
    def views(self) -> list[BlockView]:
        """The blocks in the order they run."""
        return self.model.block_views()

    @property
    def layers(self) -> int:
        """The number of executed layers."""
        return len(self.views)

    @cached_property
    def dim(self) -> int:
        """Width of the model: of its embeddings, and of what a branch reads and adds."""
        return self.model.token_embedding.weight.shape[1]

    @cached_property
    def stream_width(self) -> int:
        """Width of the residual stream between layers, all its copies together."""
        return self.model.widened(self.model.token_embedding.weight[:1]).shape[-1]

    @cached_property
    def choices(self) -> dict[int, int]:
        """How many experts a token goes through, by layer; layers without a mixture are left out."""
        return {layer: mixture.top_k for layer, mixture in self._mixtures.items()}

    @cached_property
    def experts(self) -> set[int]:
        """The numbers of experts that mixtures of the model have."""
        return {mixture.n_expert for mixture in self._mixtures.values()}

    @cached_property
    def _mixtures(self) -> dict[int, MixtureOfExperts]:
        return {layer: view.ffn for layer, view in enumerate(self.views) if isinstance(view.ffn, MixtureOfExperts)}

    @cached_property
    def layer_flops(self) -> list[tuple[float, float]]:
        """FLOPs of one token's forward pass through each layer, and those of its mixer."""
        positions, found = torch.arange(self.time), []
        of_kind: dict[Any, tuple[float, float]] = {}
        kinds = layer_kinds(self.model.config) or range(self.layers)
        for kind, view in zip(map(repr, kinds), self.views, strict=True):
            if kind not in of_kind:
                layer = sum(part.flops(positions) for part in view.parts if isinstance(part, Layer))
                of_kind[kind] = layer, view.mixer.flops(positions)
            found.append(of_kind[kind])
        return found

    @cached_property
    def head_flops(self) -> float:
        """FLOPs of one token's logits."""
        return self.model.head.flops(torch.arange(self.time))

    @cached_property
    def flops(self) -> float:
        """FLOPs of one token's training, without what is recomputed."""
        return training_flops_per_token(self.model, self.time)

    @property
    def is_tied(self) -> bool:
        """Whether the head shares the token embedding's matrix."""
        return self.model.head.weight is self.model.token_embedding.weight

    @property
    def checkpointing(self) -> str:
        """What is recomputed in the backward pass."""
        return str(getattr(self.model.config, "checkpointing", "none"))

    def with_checkpointing(self, checkpointing: Checkpointing) -> "Training":
        """The same with other checkpointing.

        Raises:
            CallError: The model has none.
        """
        if not hasattr(self.model.config, "checkpointing"):
            raise CallError(f"{self.model.name} has no checkpointing")
        with torch.device("meta"):
            model = type(self.model)(replace(self.model.config, checkpointing=checkpointing))
        return replace(self, model=model, _traces={}, _others={})

    def with_batches(self, rows: int, accumulate: int) -> "Training":
        """The same with batches of other sizes, with all that was traced; of equal sizes it is the same object."""
        if (rows, accumulate) not in self._others:
            self._others[rows, accumulate] = replace(self, rows=rows, accumulate=accumulate, global_rows=None)
        return self._others[rows, accumulate]

    def step_rows(self, layout: Layout) -> int:
        """Rows of an optimizer step over all processes."""
        return self.global_rows or self.rows * self.accumulate * layout.data_size

    def batches(self, layout: Layout) -> int:
        """Batches of an optimizer step in one process.

        Raises:
            CallError: The rows of an optimizer step are not a whole number of batches.
        """
        if self.global_rows is None:
            return self.accumulate
        return micro_batches(self.global_rows, self.rows, layout.data_size)

    def micro_batches(self, layout: Layout) -> int:
        """Micro-batches of an optimizer step in one process: its batches, or what a pipeline divides them into.

        Raises:
            CallError: As :meth:`batches`.
        """
        return self.batches(layout) * layout.pipeline_micro_batches

    def micro_rows(self, layout: Layout) -> int:
        """Rows of a micro-batch in one process."""
        return self.rows // layout.pipeline_micro_batches

    def trace(self, rows: int, time: int) -> PassTrace:
        """What one pass over ``rows`` of ``time`` tokens allocates."""
        if rows > 2:  # all that depends on the rows grows with each by as much
            return self.trace(2, time).with_rows(self.trace(1, time), rows)
        if (rows, time) not in self._traces:
            self._traces[rows, time] = trace(
                self.model, rows, time, self.precision, device=self.device, documents=self.has_documents
            )
        found: PassTrace = self._traces[rows, time]
        return found

    @property
    def keys_of_token(self) -> list[float]:
        """Bytes of the keys and values of one token, by layer; 0 for a layer that keeps none."""
        if "keys" not in self._traces:
            self._traces["keys"] = key_bytes(self.model, self.precision)
        found: list[float] = self._traces["keys"]
        return found

    def cache(self, rows: int, time: int) -> float:
        """Bytes of the cache that generates ``rows`` texts of ``time`` tokens, in the precision of the products."""
        return cache_bytes(self.model, rows, time, self.precision)
