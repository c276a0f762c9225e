"""A Triton kernel for the softmax of the loss: logits to losses and gradients, in place and in one launch.

A logit is read twice and written once, 6 bytes in half precision, where separate operations on a converted copy move
about 42. This module needs Triton, which CUDA builds of torch include; it is imported on a device only.
"""

import triton
import triton.language as tl
from torch import Tensor

_COLUMNS, _WARPS = 2048, 16


@triton.jit  # type: ignore[untyped-decorator]
def _softmax(logits, labels, losses, stride, smoothing, z_loss, n_column: tl.constexpr, columns: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row of logits per program; each lane keeps a maximum and a sum of its own until the row is read."""
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    label = tl.load(labels + row)
    lanes = tl.arange(0, columns)
    # finite, so that a lane that has seen nothing is not −∞ − (−∞)
    largest = tl.full([columns], -1e30, tl.float32)
    total = tl.zeros([columns], tl.float32)
    at_label = tl.zeros([columns], tl.float32)
    summed = tl.zeros([columns], tl.float32)
    for first in range(0, n_column, columns):
        place = first + lanes
        inside = place < n_column
        z = tl.load(start + place, mask=inside, other=float("-inf")).to(tl.float32)
        bound = tl.maximum(largest, z)
        total = total * tl.exp(largest - bound) + tl.exp(z - bound)
        largest = bound
        at_label += tl.where(place == label, z, 0.0)
        summed += tl.where(inside, z, 0.0)
    bound = tl.max(largest, axis=0)
    whole = tl.sum(total * tl.exp(largest - bound), axis=0)
    log_z = bound + tl.log(whole)
    mean = tl.sum(summed, axis=0) / n_column
    loss = log_z - (1 - smoothing) * tl.sum(at_label, axis=0) - smoothing * mean + z_loss * log_z * log_z
    is_known = (label >= 0) & (label < n_column)
    tl.store(losses + row, tl.where(is_known, loss, float("nan")))
    factor = (1 + 2 * z_loss * log_z) / whole
    for first in range(0, n_column, columns):
        place = first + lanes
        inside = place < n_column
        z = tl.load(start + place, mask=inside, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(z - bound) * factor - smoothing / n_column
        gradient -= tl.where(place == label, 1 - smoothing, 0.0)
        tl.store(start + place, gradient.to(logits.dtype.element_ty), mask=inside)


def launch(logits: Tensor, labels: Tensor, losses: Tensor, label_smoothing: float, z_loss: float) -> None:
    """Fill ``losses`` and turn logits into gradients, as :func:`~lightning_gpt.models.one_pass.softmax_gradient`."""
    _softmax[(len(logits),)](
        logits,
        labels,
        losses,
        logits.stride(0),
        label_smoothing,
        z_loss,
        n_column=logits.shape[1],
        columns=_COLUMNS,
        num_warps=_WARPS,
    )
