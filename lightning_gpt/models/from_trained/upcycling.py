"""A trained dense model as the start of a mixture of experts."""

import torch
from torch import nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.ffn.dense import FeedForward
from lightning_gpt.models.ffn.moe.mixture import MixtureOfExperts, mixtures
from lightning_gpt.models.gpt import GPT
from lightning_gpt.models.registry import readable

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
    was, now = vars(dense.config), vars(sparse.config)
    differing = [key for key in was | now if key not in _MAY_DIFFER and was.get(key) != now.get(key)]
    if differing:
        said = ", ".join(
            f"{key} is {readable(was.get(key))} there and {readable(now.get(key))} here" for key in differing
        )
        raise CallError(f"upcycling takes a dense model that differs in its feed-forward networks only: {said}")
    mixed = mixtures(sparse)
    for layer in range(sparse.config.n_layer):
        name = f"blocks.{layer}.ffn"
        _require_same_function(layer, dense.get_submodule(name), sparse.get_submodule(name), name in mixed)
    weights = dense.state_dict()
    for name, tensor in sparse.state_dict().items():
        if name in weights:
            tensor.copy_(weights[name])
    for name, mixture in mixed.items():
        experts, network = mixture.experts, dense.get_submodule(name)
        assert isinstance(network, FeedForward)
        experts.up.copy_(network.up.weight.expand_as(experts.up))
        experts.down.copy_(network.down.weight.expand_as(experts.down))
        if experts.up_bias is not None and experts.down_bias is not None:
            experts.up_bias.copy_(network.up.bias.expand_as(experts.up_bias))
            experts.down_bias.copy_(network.down.bias.expand_as(experts.down_bias))


def _require_same_function(layer: int, dense: nn.Module, sparse: nn.Module, is_mixture: bool) -> None:
    if not isinstance(dense, FeedForward):
        raise CallError(f"upcycling: layer {layer} of the dense model is a {type(dense).__name__}, not a dense network")
    kind, width = type(sparse), getattr(sparse, "hidden", None)
    if is_mixture:
        assert isinstance(sparse, MixtureOfExperts)
        if sparse.top_k == 1:
            raise CallError("upcycling: ffn top_k is 1 and must be at least 2: one expert's weight is its score, not 1")
        if sparse.shared is not None:
            raise CallError("upcycling: ffn n_shared must be 0: the dense network has nothing for shared experts")
        kind, width = sparse.experts.kind, sparse.experts.hidden
    if kind is not type(dense):
        raise CallError(
            f"upcycling: layer {layer} is a {type(dense).__name__} in the dense model and its expert here a "
            f"{kind.__name__}"
        )
    if width != dense.hidden:
        raise CallError(f"upcycling: set ffn hidden to {dense.hidden}, the dense network's; it is {width}")
