"""What a model costs, counted from its parts without running it."""

import torch
from torch import Tensor, nn

from lightning_gpt.models.attention.linear import LinearAttention
from lightning_gpt.models.attention.multi_head import CausalAttention
from lightning_gpt.models.base import LanguageModel
from lightning_gpt.models.ffn.moe.mixture import MixtureOfExperts
from lightning_gpt.models.wrappers.token_routing import Exact, token_routers

BACKWARD = 2
"""FLOPs of the backward pass for one of the forward: a gradient for each of the two factors of a product."""

_ROWS_AT_ONCE = 512


def flops_per_token(model: LanguageModel, time: int) -> float:
    """Floating-point operations of the matrix products of one token's forward pass, in sequences of ``time`` tokens.

    Two for each weight of each linear layer that a token goes through (of a mixture of experts, the chosen ones) and
    of the unembedding, and the attention's two products of ``2 · dim · columns``. Of a full causal layer all
    ``columns = time`` are counted, though half are hidden: the convention of Chowdhery et al. 2022 (2204.02311),
    appendix B. A block that chosen tokens go through costs what those cost, by themselves, and its router. Training
    takes ``1 + BACKWARD`` times this; what checkpointing runs again is not counted, as there.

    Args:
        model: Also one on the meta device: no weight is read.
        time: Length of the sequences, in tokens.
    """
    routers = token_routers(model)
    flops = 2.0 * model.unembedding.numel()
    for name, module in model.named_modules(remove_duplicate=False):  # a block that serves several layers runs in each
        block = ".".join(name.split(".")[:2])
        router = None if name.startswith(f"{block}.router") else routers.get(f"{block}.router")
        places = torch.arange(time)
        if router is not None:  # as if they were spread evenly
            places = torch.linspace(0, time - 1, router.n_chosen(time)).round().long()
        if name != "head":
            flops += _flops(module, places) * len(places) / time
    return flops


def training_flops_per_token(model: LanguageModel, time: int) -> float:
    """The same for a training step: forward and backward."""
    return (1 + BACKWARD) * flops_per_token(model, time)


def _flops(module: nn.Module, places: Tensor) -> float:
    """FLOPs a token of what is done in this module and in none of its parts, for tokens that stand at ``places``."""
    if isinstance(module, CausalAttention):
        return _attention_flops(module, places)
    if isinstance(module, MixtureOfExperts):
        return -2 * _inactive_experts(module)
    return 2 * _weights(module)


def _weights(module: nn.Module) -> int:
    return module.weight.numel() if isinstance(module, nn.Linear | Exact) else 0


def _inactive_experts(mixture: MixtureOfExperts) -> float:
    """Weights of a mixture's experts that a token does not go through."""
    weights = sum(_weights(module) for module in mixture.experts.modules())
    return weights * (1 - mixture.top_k / mixture.n_expert)


def _attention_flops(attention: CausalAttention, places: Tensor) -> float:
    """FLOPs a token of what is between queries, keys and values and the mixed heads."""
    linears = [module for module in attention.children() if isinstance(module, nn.Linear)]
    dim = linears[-1].in_features  # of the output projection: all heads side by side
    if isinstance(attention, LinearAttention):
        return 4 * dim * attention.head_dim  # into the sums of keys × values, and out of them
    return 4 * dim * _columns(attention, places)  # scores, and values mixed by them


def _columns(attention: CausalAttention, places: Tensor) -> float:
    """Columns counted for a row: twice the visible ones, as of a causal triangle the whole square; all at most."""
    time = len(places)
    if attention.sees_all(int(places[-1]) + 1):
        return time
    visible = 0
    for rows in torch.split(places, _ROWS_AT_ONCE):  # a square of booleans may be large
        mask = torch.broadcast_to(attention.visible(rows[:, None], places), (len(rows), time))
        visible += int(mask.sum())
    return min(time, 2 * visible / time)
