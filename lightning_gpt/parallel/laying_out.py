"""Spreads a model that is whole in every process over the axes of a mesh, or says why it cannot be."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from lightning_gpt.models import LanguageModel
from lightning_gpt.parallel.context import ContextParallel, require_divisible_rows
from lightning_gpt.parallel.experts import divide_experts, require_experts
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.mesh import Mesh
from lightning_gpt.parallel.pipeline import Pipeline
from lightning_gpt.parallel.shard import shard, shard_units
from lightning_gpt.parallel.stages import require_stages


@dataclass(frozen=True)
class Spread:
    """A model that has been laid out.

    Args:
        roots: The modules whose parts are sharded together: the model, or the stages of this process.
        pipeline: The pipeline, if there is one.
    """

    roots: tuple[nn.Module, ...]
    pipeline: Pipeline | None


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
    context = ContextParallel(model, mesh.group("context")) if mesh.size("context") > 1 else None
    model.divided = context
    experts = divide_experts(model, mesh.axis("expert")) if mesh.size("expert") > 1 else []
    if mesh.size("pipeline") == 1:
        shard(model, mesh, shard_units(model), experts)
        return Spread((model,), None)
    layout = mesh.layout
    gpt = require_stages(model, mesh.size("pipeline"), layout.schedule, layout.pipeline_micro_batches)
    pipeline = Pipeline(gpt, mesh.group("pipeline"), layout.schedule, layout.pipeline_micro_batches, context)
    model.divided = pipeline
    for stage in pipeline.stages:
        shard(stage, mesh, stage.blocks, _within(experts, stage))
    return Spread(tuple(pipeline.stages), pipeline)


def _within(parts: Iterable[nn.Module], whole: nn.Module) -> list[nn.Module]:
    inside = set(whole.modules())
    return [part for part in parts if part in inside]
