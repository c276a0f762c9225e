"""Initialises a mixture of experts from a trained dense model."""

import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models.ffn.dense import FeedForward
from lightning_gpt.models.ffn.moe.experts import Experts
from lightning_gpt.models.ffn.moe.mixture import MixtureOfExperts
from lightning_gpt.models.gpt import GPT
from lightning_gpt.models.registry import Choice, at_layer, differences

_MIXTURE = "moe"
_MAY_DIFFER = {"ffn", "dropout", "attention_backend", "checkpointing"}
"""Config fields on which no weight outside the feed-forward networks depends."""


@torch.no_grad()
def upcycle(dense: GPT, sparse: GPT) -> None:
    """Copy the weights of ``dense`` into ``sparse``; every expert copies the dense network of its layer.

    Komatsuzaki et al. 2022, "Sparse Upcycling" (2212.05055), section 3. The gates of a token's experts sum to 1 and the
    experts are equal, so ``sparse`` starts as the same function as ``dense``, whatever its routers, which keep their
    weights. In training with a ``capacity_factor``, the choices over an expert's capacity add nothing. Layers that stay
    dense are copied.

    Raises:
        CallError: If the two differ in more than their mixtures, or a mixture cannot compute its dense network's
            function.
    """
    was, now = vars(dense.config), vars(sparse.config)
    if said := differences(was, now, _MAY_DIFFER):
        raise CallError(f"upcycling needs a dense model that differs only in its feed-forward networks: {said}")
    pairs: list[tuple[FeedForward, Experts]] = []
    for layer in range(sparse.config.n_layer):
        choices = at_layer(dense.config.ffn, layer), at_layer(sparse.config.ffn, layer)
        if choices[0] == choices[1]:
            continue
        _require_same_function(layer, *choices)
        network, mixture = (model.each_block()[layer].unwrapped.ffn for model in (dense, sparse))
        assert isinstance(network, FeedForward)
        assert isinstance(mixture, MixtureOfExperts)
        if mixture.experts.hidden != network.hidden:
            raise CallError(
                f"upcycling: set ffn hidden to {network.hidden}, the dense network's; it is {mixture.experts.hidden}"
            )
        pairs.append((network, mixture.experts))
    weights = dense.state_dict()
    for name, tensor in sparse.state_dict().items():
        if name in weights:
            tensor.copy_(weights[name])
    for network, experts in pairs:
        _copy(network, experts)


def _copy(network: FeedForward, experts: Experts) -> None:
    """Copy the weights of ``network`` into each expert."""
    pairs = (network.up, experts.up, experts.up_bias), (network.down, experts.down, experts.down_bias)
    for layer, weights, biases in pairs:
        weights.copy_(layer.weight.expand_as(weights))
        if biases is not None:
            biases.copy_(layer.bias.expand_as(biases))


def _require_same_function(layer: int, dense: Choice | None, sparse: Choice | None) -> None:
    """Raise a CallError unless the mixture can compute the dense network's function."""
    if dense is None or dense.kind == _MIXTURE:
        raise CallError(f"upcycling: ffn of layer {layer} is {dense} in the dense model, which is not a dense network")
    if sparse is None or sparse.kind != _MIXTURE or sparse["expert"] != dense.kind:
        expert = sparse["expert"] if sparse is not None and sparse.kind == _MIXTURE else sparse
        raise CallError(
            f"upcycling: ffn of layer {layer} is {dense} in the dense model, but its expert here is {expert}"
        )
    if sparse["normed_gates"] is False or sparse["gate_factor"] != 1:
        raise CallError(
            "upcycling: the weights of a token's experts must add up to 1: leave out ffn normed_gates and gate_factor"
        )
    if sparse["top_k"] == 1 and not sparse["normed_gates"]:
        raise CallError("upcycling: ffn top_k is 1 and must be at least 2: one expert is weighted by its score, not 1")
    if sparse["n_shared"]:
        raise CallError("upcycling: ffn n_shared must be 0: the dense network has no weights for shared experts")
