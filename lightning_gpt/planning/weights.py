"""The parameters of a model by component, and how a layout divides each."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lightning_gpt.models.base import LanguageModel
from lightning_gpt.models.layer import Matrix, all_matrices
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.stages import layers_of_process

_DIVIDED = ("heads", "hidden", "vocabulary")
"""Spaces along which the tensor axis cuts a matrix."""


@dataclass(frozen=True)
class Weight:
    """One parameter.

    Args:
        component: What it belongs to, as tables show it.
        layer: The first executed layer that uses it; None outside the layers.
        numel: Its number of values.
        is_cut: Whether the tensor axis divides it.
        is_of_experts: Whether the expert axis divides it.
        is_hidden: Whether it maps hidden states to hidden states, so that Muon trains it.
        iteration_flops: FLOPs of one of Muon's Newton–Schulz iterations over its matrices; 0 if Muon does not train it.
        is_end: Whether it is the head's, which the last stage of a pipeline holds.
    """

    component: str
    layer: int | None
    numel: int
    is_cut: bool
    is_of_experts: bool
    is_hidden: bool
    iteration_flops: float
    is_end: bool

    def on_rank(self, layout: Layout) -> float:
        """The number of its values on a device, before the shard axis divides them."""
        cut = layout.tensor if self.is_cut else 1
        return self.numel / cut / (layout.expert if self.is_of_experts else 1)


def weights_of(model: LanguageModel) -> list[Weight]:
    """Every parameter of a model once, in the model's order. No value is read."""
    components: dict[object, tuple[str, int | None]] = {}
    for number, view in enumerate(model.block_views()):
        branches = [("attention", view.mixer), ("feed-forward", view.ffn)]
        for name, part in [*branches, *(("norms and residuals", part) for part in view.parts)]:
            for parameter in () if part is None else part.parameters():
                components.setdefault(parameter, (name, number))
    for parameter in model.token_embedding.parameters():
        components.setdefault(parameter, ("token embedding", None))
    for parameter in model.positions.parameters():
        components.setdefault(parameter, ("positions", None))
    for parameter in model.head.parameters():
        components.setdefault(parameter, ("head", None))
    matrices: dict[object, Matrix] = {}
    biases: dict[object, Matrix] = {}
    for each in all_matrices(model):
        matrices[each.weight] = each
        if each.bias is not None:
            biases[each.bias] = each
    found = []
    for parameter in model.parameters():
        component, layer = components.get(parameter, ("final norm and others", None))
        matrix = matrices.get(parameter, biases.get(parameter))
        is_bias = parameter in biases
        spaces = () if matrix is None else (matrix.target,) if is_bias else (matrix.source, matrix.target)
        is_of_experts = matrix is not None and matrix.weight.ndim > 2
        hidden = matrix if matrix is not None and not is_bias and matrix.is_hidden else None
        found.append(
            Weight(
                "experts" if is_of_experts else component,
                layer,
                parameter.numel(),
                any(space in _DIVIDED for space in spaces),
                is_of_experts,
                hidden is not None,
                0.0 if hidden is None else _iteration_flops(hidden),
                component in ("head", "final norm and others"),
            )
        )
    return found


def _iteration_flops(matrix: Matrix) -> float:
    """The Gram matrix of the shorter side, its square, and its product with the matrix."""
    *stack, rows, columns = matrix.weight.shape
    flops = 0.0
    for count in matrix.pieces.values() or (rows,):
        short, long = sorted((count, columns))
        flops += 4 * short**2 * long + 2 * short**3
    return math.prod(stack) * flops


def by_component(weights: Iterable[Weight]) -> Mapping[str, int]:
    """The number of parameters of each component."""
    found: dict[str, int] = {}
    for weight in weights:
        found[weight.component] = found.get(weight.component, 0) + weight.numel
    return found


def weights_of_stage(
    weights: Iterable[Weight], n_layer: int, layout: Layout, stage: int, is_tied: bool
) -> list[Weight]:
    """The parameters that a process of a pipeline holds: its layers', and the ends' in the first and the last."""
    layers, last = set(layers_of_process(n_layer, layout, stage)), stage == layout.pipeline - 1
    held = []
    for weight in weights:
        if weight.layer is not None:
            here = weight.layer in layers
        elif weight.is_end:
            here = last
        else:
            here = stage == 0 or (last and is_tied and weight.component == "token embedding")
        if here:
            held.append(weight)
    return held
