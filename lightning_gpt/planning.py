"""What a model costs, counted from its parts without running it."""

import torch
from torch import nn

from lightning_gpt.models.attention import CausalAttention
from lightning_gpt.models.base import LanguageModel
from lightning_gpt.models.linear_attention import LinearAttention
from lightning_gpt.models.moe import MixtureOfExperts

BACKWARD = 2
"""FLOPs of the backward pass for one of the forward: a gradient for each of the two factors of a product."""

_ROWS_AT_ONCE = 512


def flops_per_token(model: LanguageModel, time: int) -> float:
    """Floating-point operations of the matrix products of one token's forward pass, in sequences of ``time`` tokens.

    Two for each weight of each linear layer that a token goes through (of a mixture of experts, the chosen ones) and
    of the unembedding, and the attention's two products of ``2 · dim · columns``. Of a full causal layer all
    ``columns = time`` are counted, though half are hidden: the convention of Chowdhery et al. 2022 (2204.02311),
    appendix B. Training takes ``1 + BACKWARD`` times this; what checkpointing runs again is not counted, as there.

    Args:
        model: Also one on the meta device: no weight is read.
        time: Length of the sequences, in tokens.
    """
    inactive = sum(_inactive_experts(module) for module in model.modules() if isinstance(module, MixtureOfExperts))
    linear = sum(_weights(module) for name, module in model.named_modules() if name != "head")
    attention = sum(_attention_flops(module, time) for module in model.modules() if isinstance(module, CausalAttention))
    return 2 * (linear - inactive + model.unembedding.numel()) + attention


def training_flops_per_token(model: LanguageModel, time: int) -> float:
    """The same for a training step: forward and backward."""
    return (1 + BACKWARD) * flops_per_token(model, time)


def _weights(module: nn.Module) -> int:
    return module.weight.numel() if isinstance(module, nn.Linear) else 0


def _inactive_experts(mixture: MixtureOfExperts) -> float:
    """Weights of a mixture's experts that a token does not go through."""
    weights = sum(_weights(module) for module in mixture.experts.modules())
    return weights * (1 - mixture.top_k / mixture.n_expert)


def _attention_flops(attention: CausalAttention, time: int) -> float:
    """FLOPs a token of what is between queries, keys and values and the mixed heads."""
    linears = [module for module in attention.children() if isinstance(module, nn.Linear)]
    dim = linears[-1].in_features  # of the output projection: all heads side by side
    if isinstance(attention, LinearAttention):
        return 4 * dim * attention.head_dim  # into the sums of keys × values, and out of them
    return 4 * dim * _columns(attention, time)  # scores, and values mixed by them


def _columns(attention: CausalAttention, time: int) -> float:
    """Columns counted for a row: twice the visible ones, as of a causal triangle the whole square; ``time`` at most."""
    if attention.sees_all(time):
        return time
    places = torch.arange(time)
    visible = 0
    for rows in torch.split(places, _ROWS_AT_ONCE):  # a square of booleans may be large
        mask = torch.broadcast_to(attention.visible(rows[:, None], places), (len(rows), time))
        visible += int(mask.sum())
    return min(time, 2 * visible / time)
