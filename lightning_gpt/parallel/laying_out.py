"""Spreads a model that is whole in every process over the axes of a mesh."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from lightning_gpt.models import GPT, LanguageModel
from lightning_gpt.models.ffn.moe.experts import Experts
from lightning_gpt.parallel.context import ContextParallel
from lightning_gpt.parallel.experts import divide_experts, mixtures_of
from lightning_gpt.parallel.mesh import Mesh
from lightning_gpt.parallel.packed import Piece, Pieces, keep_scalars_as_vectors
from lightning_gpt.parallel.pipeline import Pipeline
from lightning_gpt.parallel.scopes import Scope
from lightning_gpt.parallel.shard import shard, shard_units
from lightning_gpt.parallel.tensor import divide, surround


@dataclass(frozen=True)
class LaidOut:
    """A model that has been laid out.

    Args:
        roots: The modules whose parts are sharded together: the model, or the stages of this process.
        pipeline: The pipeline, if there is one.
        pieces: The pieces that fused parameters were taken apart into, by their names in the model.
    """

    roots: tuple[nn.Module, ...]
    pipeline: Pipeline | None
    pieces: Pieces


def lay_out(model: LanguageModel, mesh: Mesh) -> LaidOut:
    """Spread a model over a mesh, in place.

    Args:
        model: The model, with the same weights in every process, which
            :func:`~lightning_gpt.parallel.suited.require_suited` accepts.
        mesh: The mesh.
    """
    pieces: dict[str, Piece] = dict(keep_scalars_as_vectors(model))
    scope: Scope | None = None
    if mesh.size("tensor") > 1:
        assert isinstance(model, GPT)
        apart = mixtures_of(model) if mesh.size("expert") > 1 else []
        divided, scope = divide(model, mesh.axis("tensor"), mesh.layout.sequence, apart)
        pieces |= divided
    context = ContextParallel(model, mesh.group("context")) if mesh.size("context") > 1 else None
    model.divided = context
    experts = _divided_experts(model, mesh) if mesh.size("expert") > 1 else []
    if mesh.size("pipeline") == 1:
        if scope is not None:
            assert isinstance(model, GPT)
            surround(model, scope)
        shard(model, mesh, shard_units(model), experts)
        return LaidOut((model,), None, pieces)
    layout = mesh.layout
    assert isinstance(model, GPT)
    pipeline = Pipeline(model, mesh.group("pipeline"), layout.schedule, layout.pipeline_micro_batches, context)
    model.divided = pipeline
    for stage in pipeline.stages:
        if scope is not None:
            inside = set(stage.modules())
            Scope([held for held in scope.held if held.module in inside]).around(stage)
        shard(stage, mesh, stage.blocks, _within(experts, stage))
    return LaidOut(tuple(pipeline.stages), pipeline, pieces)


def _divided_experts(model: LanguageModel, mesh: Mesh) -> list[Experts]:
    both = mesh.devices["expert", "tensor"] if mesh.size("tensor") > 1 else None
    return divide_experts(model, mesh.axis("expert"), both)


def _within(parts: Iterable[nn.Module], whole: nn.Module) -> list[nn.Module]:
    inside = set(whole.modules())
    return [part for part in parts if part in inside]
