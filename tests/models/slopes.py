"""A module beside its plain formula: the same values, and the gradient that the formula's slope demands."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]
State = Mapping[str, Array]
Reference = Callable[[Array, State], Array]
"""One sequence ``(time, dim)`` and the module's parameters to what the module makes of it."""

STEP = 1e-5


def assert_equals_reference(
    module: nn.Module, reference: Reference, x: Tensor, run: Callable[[Tensor], Tensor] | None = None
) -> None:
    """``module`` (or ``run``) of ``x`` ``(batch, time, dim)`` is the reference of each row, and so is its gradient.

    The gradient of a random weighting of the output is compared with the reference's central differences along random
    directions of all parameters and the input at once: an entry that is wrong anywhere shows in each.
    """
    rng = np.random.default_rng(0)
    x = x.clone().requires_grad_()
    parameters = dict(module.named_parameters())
    output = (run or module)(x)
    at = {name: parameter.numpy(force=True) for name, parameter in parameters.items()}
    start = x.numpy(force=True)

    def of_reference(inputs: Array, state: Mapping[str, Array]) -> Array:
        return np.stack([reference(row, state) for row in inputs])

    expected = of_reference(start, at)
    np.testing.assert_allclose(output.numpy(force=True), expected, rtol=1e-9, atol=1e-10)
    weights = rng.standard_normal(expected.shape)
    leaves = [x, *parameters.values()]
    gradients = torch.autograd.grad((output * torch.as_tensor(weights)).sum(), leaves, materialize_grads=True)
    for _ in range(3):
        directions = [rng.standard_normal(leaf.shape) for leaf in leaves]
        slope = sum(float((g.numpy(force=True) * d).sum()) for g, d in zip(gradients, directions, strict=True))
        ends = []
        for step in (STEP, -STEP):
            moved = {name: at[name] + step * d for name, d in zip(at, directions[1:], strict=True)}
            ends.append(float((of_reference(start + step * directions[0], moved) * weights).sum()))
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * STEP), rtol=1e-6, atol=1e-7)
