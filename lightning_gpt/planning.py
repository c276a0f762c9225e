"""What a model costs, counted from its parts without running it."""

import torch

from lightning_gpt.models.base import LanguageModel

BACKWARD = 2
"""FLOPs of the backward pass for one of the forward: a gradient for each of the two factors of a product."""


def flops_per_token(model: LanguageModel, time: int) -> float:
    """Floating-point operations of the matrix products of one token's forward pass, in sequences of ``time`` tokens.

    Every layer says what it costs (:meth:`~lightning_gpt.models.layer.Layer.flops`): two for each weight that a token
    meets, and the attention's two products of ``2 · n_head · head_dim · columns``. A full causal layer counts all
    ``columns = time``, though half are hidden: the convention of Chowdhery et al. 2022 (2204.02311), appendix B.
    Training takes ``1 + BACKWARD`` times this; what checkpointing computes again is not counted, as there.

    Args:
        model: Also one on the meta device: no weight is read.
        time: Length of the sequences, in tokens.
    """
    with torch.device("cpu"):
        return model.flops(torch.arange(time))


def training_flops_per_token(model: LanguageModel, time: int) -> float:
    """The same for a training step: forward and backward."""
    return (1 + BACKWARD) * flops_per_token(model, time)
