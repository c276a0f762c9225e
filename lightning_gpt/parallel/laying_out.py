"""Spreads a model that is whole in every process over the axes of a mesh, or says why it cannot be."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from lightning_gpt.models import GPT, LanguageModel
from lightning_gpt.models.ffn.moe.experts import Experts
from lightning_gpt.parallel.context import ContextParallel, require_divisible_rows
from lightning_gpt.parallel.experts import divide_experts, mixtures_of, require_experts
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.mesh import Mesh
from lightning_gpt.parallel.packed import Pieces
from lightning_gpt.parallel.pipeline import Pipeline
from lightning_gpt.parallel.scopes import Scope
from lightning_gpt.parallel.shard import shard, shard_units
from lightning_gpt.parallel.stages import require_stages
from lightning_gpt.parallel.tensor import divide, surround


@dataclass(frozen=True)
class Spread:
    """A model that has been laid out.

    Args:
        roots: The modules whose parts are sharded together: the model, or the stages of this process.
        pipeline: The pipeline, if there is one.
        pieces: The pieces that fused parameters were taken apart into, by their names in the model.
    """

    roots: tuple[nn.Module, ...]
    pipeline: Pipeline | None
    pieces: Pieces


def require(model: LanguageModel, layout: Layout) -> None:
    """Refuse a model that a layout cannot hold.

    Args:
        model: The model.
        layout: The layout, with all sizes filled in.

    Raises:
        CallError: A part of the model cannot be divided as the layout asks; the message says what would work.
    """
    if layout.size("pipeline") > 1:
        require_stages(model, layout.size("pipeline"), layout.schedule, layout.pipeline_micro_batches)
    if layout.size("context") > 1:
        require_divisible_rows(model, layout.size("context"))
    if layout.size("expert") > 1:
        require_experts(model, layout.size("expert"))


def lay_out(model: LanguageModel, mesh: Mesh) -> Spread:
    """Spread a model over a mesh, in place.

    Args:
        model: The model, with the same weights in every process.
        mesh: The mesh.
    """
    pieces: Pieces = {}
    scope: Scope | None = None
    if mesh.size("tensor") > 1:
        assert isinstance(model, GPT)
        apart = mixtures_of(model) if mesh.size("expert") > 1 else []
        pieces, scope = divide(model, mesh.axis("tensor"), mesh.layout.sequence, apart)
    context = ContextParallel(model, mesh.group("context")) if mesh.size("context") > 1 else None
    model.divided = context
    experts = _divided_experts(model, mesh) if mesh.size("expert") > 1 else []
    if mesh.size("pipeline") == 1:
        if scope is not None:
            assert isinstance(model, GPT)
            surround(model, scope)
        shard(model, mesh, shard_units(model), experts)
        return Spread((model,), None, pieces)
    layout = mesh.layout
    gpt = require_stages(model, mesh.size("pipeline"), layout.schedule, layout.pipeline_micro_batches)
    pipeline = Pipeline(gpt, mesh.group("pipeline"), layout.schedule, layout.pipeline_micro_batches, context)
    model.divided = pipeline
    for stage in pipeline.stages:
        if scope is not None:
            inside = set(stage.modules())
            Scope([held for held in scope.held if held.module in inside]).around(stage)
        shard(stage, mesh, stage.blocks, _within(experts, stage))
    return Spread(tuple(pipeline.stages), pipeline, pieces)


def _divided_experts(model: LanguageModel, mesh: Mesh) -> list[Experts]:
    both = mesh.devices["expert", "tensor"] if mesh.size("tensor") > 1 else None
    return divide_experts(model, mesh.axis("expert"), both)


def _within(parts: Iterable[nn.Module], whole: nn.Module) -> list[nn.Module]:
    inside = set(whole.modules())
    return [part for part in parts if part in inside]
