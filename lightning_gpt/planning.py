"""What a model costs, computed from its parts without running it."""

import torch
from torch import Tensor, nn

from lightning_gpt.models.attention.linear import LinearAttention
from lightning_gpt.models.attention.multi_head import CausalAttention
from lightning_gpt.models.base import LanguageModel
from lightning_gpt.models.ffn.moe.mixture import MixtureOfExperts
from lightning_gpt.models.wrappers.token_routing import Exact, token_routers

BACKWARD = 2
"""FLOPs of the backward pass per FLOP of the forward pass: one gradient for each of a product's two factors."""

_ROWS_AT_ONCE = 512


def flops_per_token(model: LanguageModel, time: int) -> float:
    """FLOPs per token of the forward pass's matrix products, in sequences of ``time`` tokens.

    Each weight of the unembedding, and of every linear layer that a token goes through, counts 2; of a mixture of
    experts only the chosen experts count. Attention's two products count ``2 · dim · columns`` each. A full causal
    layer counts all ``columns = time`` although half of them are masked, the convention of Chowdhery et al. 2022
    (2204.02311), appendix B. A routed block counts its router, and the rest for the chosen tokens only. Training takes
    ``1 + BACKWARD`` times as much; recomputation by checkpointing is not counted, by the same convention.

    Args:
        model: May be on the meta device, because no weight is read.
        time: Length of the sequences, in tokens.
    """
    routers = token_routers(model)
    flops = 2.0 * model.unembedding.numel()
    for name, module in model.named_modules(remove_duplicate=False):  # a block that serves several layers runs in each
        block = ".".join(name.split(".")[:2])
        router = None if name.startswith(f"{block}.router") else routers.get(f"{block}.router")
        places = torch.arange(time)
        if router is not None:  # assumes that they are spread evenly
            places = torch.linspace(0, time - 1, router.n_chosen(time)).round().long()
        if name != "head":
            flops += _flops(module, places) * len(places) / time
    return flops


def training_flops_per_token(model: LanguageModel, time: int) -> float:
    """FLOPs per token of a training step, forward and backward; see :func:`flops_per_token`."""
    return (1 + BACKWARD) * flops_per_token(model, time)


def _flops(module: nn.Module, places: Tensor) -> float:
    """FLOPs per token of this module itself, without its parts, for tokens at positions ``places``."""
    if isinstance(module, CausalAttention):
        return _attention_flops(module, places)
    if isinstance(module, MixtureOfExperts):
        return -2 * _inactive_experts(module)
    return 2 * _weights(module)


def _weights(module: nn.Module) -> int:
    return module.weight.numel() if isinstance(module, nn.Linear | Exact) else 0


def _inactive_experts(mixture: MixtureOfExperts) -> float:
    """Weights of the experts that a token does not go through."""
    weights = sum(_weights(module) for module in mixture.experts.modules())
    return weights * (1 - mixture.top_k / mixture.n_expert)


def _attention_flops(attention: CausalAttention, places: Tensor) -> float:
    """FLOPs per token from queries, keys and values to the mixed heads."""
    linears = [module for module in attention.children() if isinstance(module, nn.Linear)]
    dim = linears[-1].in_features  # of the output projection: all heads concatenated
    if isinstance(attention, LinearAttention):
        return 4 * dim * attention.head_dim  # into and out of the sums of keys × values
    return 4 * dim * _columns(attention, places)  # scores, and values mixed by them


def _columns(attention: CausalAttention, places: Tensor) -> float:
    """Columns counted per row: twice the visible ones, so that a causal triangle counts as the square; at most all."""
    time = len(places)
    if attention.sees_all(int(places[-1]) + 1):
        return time
    visible = 0
    for rows in torch.split(places, _ROWS_AT_ONCE):  # the whole mask may be large
        mask = torch.broadcast_to(attention.visible(rows[:, None], places), (len(rows), time))
        visible += int(mask.sum())
    return min(time, 2 * visible / time)
