"""What the tests of the models share: random weights, arrays for the reference, and settings for property tests."""

from collections.abc import Callable
from typing import Any, TypeVar

import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

M = TypeVar("M", bound=nn.Module)

property_test = hypothesis.settings(deadline=None, max_examples=30)
"""No deadline: a busy machine is no counter-example."""


def randomise(model: M, seed: int = 0, std: float = 0.3) -> M:
    """Fill *every* parameter (biases and LayerNorms too) with N(0, std²), so that a part left out shows in the result.

    The gains of LayerNorms are drawn about 1.
    """
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                parameter.normal_(0, std, generator=generator)
                if isinstance(module, nn.LayerNorm) and name == "weight":
                    parameter += 1
    return model


def arrays(model: nn.Module) -> dict[str, NDArray[np.float64]]:
    """The state dict as float64 arrays."""
    return {name: tensor.detach().double().numpy(force=True) for name, tensor in model.state_dict().items()}


def random_ids(vocab_size: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed))


@st.composite
def changed_ids(draw: st.DrawFn, vocab_size: int, block_size: int) -> tuple[Tensor, Tensor, int]:
    """A sequence ``(1, time)``, the same one with another token at one position, and that position."""
    token = st.integers(0, vocab_size - 1)
    ids = draw(st.lists(token, min_size=1, max_size=block_size))
    position = draw(st.integers(0, len(ids) - 1))
    changed = list(ids)
    changed[position] = draw(token.filter(lambda other: other != ids[position]))
    return torch.tensor([ids]), torch.tensor([changed]), position


def assert_only_later_logits_change(before: Tensor, after: Tensor, position: int) -> None:
    """Rows before ``position`` are the same, and *every* row from it on is another one."""
    torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=1e-12)
    change = (after - before).abs().amax(dim=-1)[:, position:]
    assert (change > 1e-9).all(), f"logits from position {position} on that did not change: {change}"


class TensorSizes(TorchDispatchMode):
    """Inside, keeps the number of elements of the largest tensor that any operation gave."""

    largest: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.largest = max([self.largest, *sizes])
        return out


def captured_again(
    run: Callable[[], Any], device: torch.device, undo: Callable[[], object] = lambda: None
) -> tuple[Callable[[], object], Any]:
    """What :func:`lightning_gpt.models.graph.capture` returns, by running the work again instead of replaying it."""
    chance = torch.get_rng_state()
    kept = run()
    undo()
    torch.set_rng_state(chance)

    def replay() -> None:
        for old, new in zip(tree_leaves(kept), tree_leaves(run()), strict=True):
            if old is not None:
                old.copy_(new)

    return replay, kept
