"""A trained dense model as the start of a mixture of experts."""

import dataclasses
import re

import torch
from torch import nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.ffn.dense import FeedForward
from lightning_gpt.models.ffn.moe.mixture import MixtureOfExperts
from lightning_gpt.models.gpt import GPT

_MAY_DIFFER = {"ffn", "dropout", "attention_backend", "checkpointing"}
"""What no weight but those of the feed-forward networks depends on."""


@torch.no_grad()
def upcycle(dense: GPT, sparse: GPT) -> None:
    """Give ``sparse`` the weights of ``dense``, and each expert those of the dense network in its place.

    Komatsuzaki et al. 2022, "Sparse Upcycling" (2212.05055), section 3. The gates of a token's experts sum to 1 and the
    experts are equal, so ``sparse`` starts as the function that ``dense`` is, whatever its routers, which keep the
    weights that they have. Layers that stay dense are copied.

    Raises:
        CallError: Where the two differ in more than mixtures, or a mixture could not be the function of its network.
    """
    was, now = dataclasses.asdict(dense.config), dataclasses.asdict(sparse.config)
    differing = [key for key in now if key not in _MAY_DIFFER and was[key] != now[key]]
    if differing:
        said = ", ".join(f"{key} is {was[key]} there and {now[key]} here" for key in differing)
        raise CallError(f"upcycling takes a dense model that differs in its feed-forward networks only: {said}")
    for layer in range(sparse.config.n_layer):
        _require_same_function(layer, *(model.get_submodule(f"blocks.{layer}.ffn") for model in (dense, sparse)))
    weights = dense.state_dict()
    for name, tensor in sparse.state_dict().items():
        source = re.sub(r"^(blocks\.\d+\.ffn)\.experts\.\d+\.", r"\1.", name)
        if source in weights:
            tensor.copy_(weights[source])


def _require_same_function(layer: int, dense: nn.Module, sparse: nn.Module) -> None:
    if not isinstance(dense, FeedForward):
        raise CallError(f"upcycling: layer {layer} of the dense model is a {type(dense).__name__} and no dense network")
    if isinstance(sparse, MixtureOfExperts):
        if sparse.top_k == 1:
            raise CallError("upcycling: ffn top_k is 1 and must be at least 2: one expert's weight is its score, not 1")
        if sparse.shared is not None:
            raise CallError("upcycling: ffn n_shared must be 0: the dense network has nothing for shared experts")
        sparse = sparse.experts[0]
    if not isinstance(sparse, FeedForward) or type(sparse) is not type(dense):
        was, now = type(dense).__name__, type(sparse).__name__
        raise CallError(f"upcycling: layer {layer} is a {was} in the dense model and its expert here a {now}")
    width, dense_width = sparse.projection.in_features, dense.projection.in_features
    if width != dense_width:
        raise CallError(f"upcycling: set ffn hidden to {dense_width}, the dense network's; it is {width}")
