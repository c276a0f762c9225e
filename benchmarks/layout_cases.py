"""The cases of :mod:`benchmarks.layouts`: which layouts train which models, and what each is held to."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_gpt.parallel.layout import Layout

ROWS, TIME, VOCABULARY = 8, 16, 61
SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 4, "dim": 32, "block_size": TIME, "vocab_size": VOCABULARY}

MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {
        "norm": "rms",
        "position": "rotary",
        "ffn": "swiglu",
        "bias": False,
        "tie_embeddings": False,
        "attention": {"kind": "grouped", "n_kv_head": 2},
    },
    # the balancing loss depends on which tokens are seen together, so it differs by design; the bias does not
    "mixture": {"ffn": {"kind": "moe", "n_expert": 4, "top_k": 2, "n_shared": 1, "balance": "bias", "z_loss": 0.0}},
    "values": {"attention": "value_residual", "qk_norm": "rms", "position": "rotary", "norm": "rms"},
    "outputs": {"residual": "attention_residuals", "position": "rotary"},
    "copies": {"residual": "constrained_hyper_connections", "position": "rotary"},
}
"""GPT-2's parts; Llama's, with grouped keys; a mixture of experts; a variant that remembers the first layer; one that
remembers every branch's output; one with several copies of the stream."""


@dataclass(frozen=True)
class Proof:
    """How a case is trained, and what it has to keep to.

    Args:
        bound: The largest difference allowed.
        of_weights: Whether weights are held to it, too. In half precision AdamW's first steps have the size of the
            learning rate wherever rounding decides the sign.
        model: Fields of the model that differ.
        optimization: Options that differ.
        trainer: Flags that differ.
        layout: Fields of the layout that differ.
        accumulate: Micro-batches of an optimizer step.
        averaging: The decay of a mean of the weights, which validation then measures; None for no mean.
        marks: Whether rows hold several documents, kept apart, and targets that do not count.
    """

    bound: float = 1e-10
    of_weights: bool = True
    model: Mapping[str, Any] = field(default_factory=dict)
    optimization: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    layout: Mapping[str, Any] = field(default_factory=dict)
    accumulate: int = 1
    averaging: float | None = None
    marks: bool = False


PROOFS: dict[str, Proof] = {
    "adamw": Proof(),
    "muon": Proof(optimization={"optimizer": "muon", "lr": 1e-3}, trainer={"gradient_clip_val": 0.1}),
    "clip, z-loss, documents": Proof(trainer={"gradient_clip_val": 0.1}, optimization={"z_loss": 1e-2}, marks=True),
    "accumulated, by value": Proof(
        accumulate=2, trainer={"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"}
    ),
    "checkpointing block": Proof(model={"checkpointing": "block"}, layout={"reshard": False}),
    "checkpointing attention": Proof(model={"checkpointing": "attention"}),
    "mup": Proof(optimization={"mup": {"base_dim": 16, "base_head_dim": 8}}),
    "four layers": Proof(model={"n_layer": 4}, trainer={"gradient_clip_val": 0.1}, marks=True),
    "bf16": Proof(bound=1e-3, of_weights=False, trainer={"precision": "bf16-mixed"}),
}


@dataclass(frozen=True)
class LayoutCase:
    """One line of the table.

    Args:
        layout: Sizes of the axes and other fields of the layout.
        model: One of :data:`MODELS`.
        proof: One of :data:`PROOFS`.
    """

    layout: Mapping[str, Any]
    model: str
    proof: str

    def made(self) -> Layout:
        """The layout."""
        return Layout(**{"data": 1, **self.layout, **PROOFS[self.proof].layout})

    @property
    def proved(self) -> Proof:
        """What it is held to."""
        return PROOFS[self.proof]

    @property
    def is_meant(self) -> bool:
        """Whether model and proof go with the layout."""
        has_experts = self.model == "mixture" or self.layout.get("expert", 1) == 1
        # a pipeline cannot divide one row
        divides = self.proof != "accumulated, by value" or self.made().data_size * self.made().pipeline < 4
        return has_experts and divides and (self.proof != "mup" or self.model == "values")

    def described(self) -> str:
        """The case in words."""
        layout = self.made()
        more = " + sequence" if layout.sequence else ""
        more += f", {layout.schedule}" if layout.schedule != "1f1b" else ""
        return f"{layout.described()}{more} | {self.model} | {self.proof}"


LAYOUTS: list[dict[str, Any]] = [
    {"data": 2},
    {"shard": 2},
    {"tensor": 2},
    {"tensor": 2, "sequence": True},
    {"data": 2, "shard": 2},
    {"shard": 4},
    {"shard": 2, "tensor": 2},
    {"shard": 2, "tensor": 2, "sequence": True},
    {"data": 2, "tensor": 2, "sequence": True},
    {"pipeline": 2, "micro_batches": 2},
    {"context": 2},
    {"expert": 2},
    {"pipeline": 2, "data": 2, "micro_batches": 2},
    {"pipeline": 2, "shard": 2, "micro_batches": 2},
    {"pipeline": 2, "context": 2, "micro_batches": 2},
    {"pipeline": 2, "tensor": 2, "micro_batches": 2},
    {"pipeline": 2, "tensor": 2, "sequence": True, "micro_batches": 2},
    {"pipeline": 2, "expert": 2, "micro_batches": 2},
    {"context": 4},
    {"data": 2, "context": 2},
    {"shard": 2, "context": 2},
    {"context": 2, "tensor": 2},
    {"context": 2, "tensor": 2, "sequence": True},
    {"expert": 4},
    {"data": 2, "expert": 2},
    {"shard": 2, "expert": 2},
    {"expert": 2, "context": 2},
    {"expert": 2, "tensor": 2},
    {"expert": 2, "tensor": 2, "sequence": True},
]
DEEP: list[dict[str, Any]] = [
    {"pipeline": 2, "schedule": "interleaved"},
    {"pipeline": 2, "schedule": "zero_bubble"},
    {"pipeline": 4},
    {"pipeline": 4, "schedule": "zero_bubble"},
    {"pipeline": 2, "shard": 2, "schedule": "interleaved", "micro_batches": 2},
    {"pipeline": 2, "shard": 2, "schedule": "zero_bubble", "reshard": False, "micro_batches": 2},
    {"pipeline": 2, "tensor": 2, "sequence": True, "schedule": "zero_bubble"},
]
"""Layouts with more stages than the models have layers otherwise."""
SHORT: list[LayoutCase] = [
    LayoutCase({"data": 2, "shard": 2}, "gpt2", "clip, z-loss, documents"),
    LayoutCase({"shard": 2, "tensor": 2}, "llama", "accumulated, by value"),
    LayoutCase({"shard": 2, "tensor": 2, "sequence": True}, "mixture", "clip, z-loss, documents"),
    LayoutCase({"shard": 2, "tensor": 2, "sequence": True}, "values", "muon"),
    LayoutCase({"pipeline": 2, "data": 2, "micro_batches": 2}, "gpt2", "clip, z-loss, documents"),
    LayoutCase({"pipeline": 2, "tensor": 2, "sequence": True, "micro_batches": 2}, "values", "checkpointing block"),
    LayoutCase({"pipeline": 2, "tensor": 2, "sequence": True, "micro_batches": 2}, "copies", "checkpointing block"),
    LayoutCase({"pipeline": 2, "shard": 2, "micro_batches": 2}, "outputs", "checkpointing block"),
    LayoutCase({"pipeline": 2, "expert": 2, "micro_batches": 2}, "mixture", "clip, z-loss, documents"),
    LayoutCase({"pipeline": 2, "shard": 2, "schedule": "interleaved", "micro_batches": 2}, "outputs", "four layers"),
    LayoutCase({"pipeline": 2, "context": 2, "micro_batches": 2}, "llama", "bf16"),
    LayoutCase({"shard": 2, "context": 2}, "llama", "clip, z-loss, documents"),
    LayoutCase({"context": 2, "tensor": 2, "sequence": True}, "values", "clip, z-loss, documents"),
    LayoutCase({"expert": 2, "tensor": 2}, "mixture", "clip, z-loss, documents"),
]
"""The cases that the test suite runs; together they enter every part of the layouts."""


def all_cases() -> list[LayoutCase]:
    """Every layout with every model and proof that goes with it."""
    shallow = [name for name in PROOFS if name != "four layers"]
    cases = [LayoutCase(*each) for each in itertools.product(LAYOUTS, MODELS, shallow)]
    cases += [LayoutCase(layout, model, "four layers") for layout, model in itertools.product(DEEP, MODELS)]
    return [case for case in cases if case.is_meant]
