"""FLOPs and active parameters of a model, computed from what its layers say, without running it."""

import torch

from lightning_gpt.models.base import LanguageModel
from lightning_gpt.models.layer import Layer, Linear

BACKWARD = 2
"""FLOPs of the backward pass per FLOP of the forward pass: one gradient for each of a product's two factors."""


def flops_per_token(model: LanguageModel, time: int) -> float:
    """FLOPs per token of the forward pass's matrix products, in sequences of ``time`` tokens.

    Every layer states its own (:meth:`~lightning_gpt.models.layer.Layer.flops`): 2 for each weight that a token meets,
    and ``2 · n_head · head_dim · columns`` for each of attention's two products. A full causal layer counts all
    ``columns = time`` although half of them are masked, the convention of Chowdhery et al. 2022 (2204.02311),
    appendix B. Training takes ``1 + BACKWARD`` times as much; by the same convention, recomputation by checkpointing is
    not counted.

    Args:
        model: May be on the meta device, because no weight is read.
        time: Length of the sequences, in tokens.
    """
    with torch.device("cpu"):
        return model.flops(torch.arange(time))


def active_parameters(model: LanguageModel) -> int:
    """How many parameters one token meets: all but those of the experts that it does not go through."""
    return sum(p.numel() for p in model.parameters()) - sum(
        part.idle_parameters for part in model.modules() if isinstance(part, Layer)
    )


def training_flops_per_token(model: LanguageModel, time: int) -> float:
    """FLOPs per token of a training step, forward and backward; see :func:`flops_per_token`.

    Weights that are left as they are, beside adapters, take no gradient.
    """
    return (1 + BACKWARD) * flops_per_token(model, time) - _gradients_left_out(model)


def _gradients_left_out(model: LanguageModel) -> float:
    linear = (part for view in model.block_views() for whole in view.parts for part in whole.modules())
    frozen = sum(2.0 * part.weight.numel() for part in linear if isinstance(part, Linear) and _is_frozen(part))
    return frozen + (2.0 * model.unembedding.numel() if not model.unembedding.requires_grad else 0.0)


def _is_frozen(linear: Linear) -> bool:
    return not linear.weight.requires_grad
