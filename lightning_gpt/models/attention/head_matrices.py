"""The matrices of each head of an attention layer, as its formula names them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadMatrices:
    """W_Q, W_K, W_V and W_O by head, so that tokens are rows: ``q_h = n W_Q[h] + b_Q[h]`` of the layer's input n.

    Queries and keys are those before their norm, rotation and factor, if the layer has them. What the layer writes is
    ``Σ_h (A_h v_h) W_O[h] + b_O``. The formulas of ``value_residual``, ``value_embedding`` and ``neutreno`` add values
    that the layer did not compute of the tokens attended to; these matrices leave them out. Query heads that share a
    key and value head each have a copy of its matrices. All are views or copies of the model's weights, with a gradient
    where those have one.

    Args:
        w_q: ``(n_head, dim, width)``.
        w_k: The same shape.
        w_v: ``(n_head, dim, value_width)``.
        w_o: ``(n_head, value_width, dim)``.
        b_q: ``(n_head, width)``; None without a bias.
        b_k: The same shape.
        b_v: ``(n_head, value_width)``.
        b_o: ``(dim,)``, shared by the heads.
        no_qk: Why scores are not products of q and k, as the end of a sentence about the layer; empty if they are.
        no_ov: Why what a head writes is not linear in what it mixes, likewise.
    """

    w_q: Tensor
    w_k: Tensor
    w_v: Tensor
    w_o: Tensor
    b_q: Tensor | None = None
    b_k: Tensor | None = None
    b_v: Tensor | None = None
    b_o: Tensor | None = None
    no_qk: str = ""
    no_ov: str = ""


def split_heads(
    weight: Tensor, bias: Tensor | None, pieces: Mapping[str, int], heads: Mapping[str, int], n_head: int
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """The pieces of a fused matrix and of its bias, by head: ``(n_head, dim, width)`` and ``(n_head, width)``.

    Args:
        weight: The fused matrix, ``(rows, dim)``.
        bias: Its bias.
        pieces: Names and row counts of its pieces, in order.
        heads: How many heads each piece has; they are repeated in groups up to ``n_head``.
        n_head: Number of query heads.
    """
    rows = torch.split(weight, list(pieces.values()))
    biases = [None] * len(rows) if bias is None else torch.split(bias, list(pieces.values()))
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name, of_rows, of_bias in zip(pieces, rows, biases, strict=True):
        own, group = heads[name], n_head // heads[name]
        by_head = of_rows.view(own, -1, of_rows.shape[-1]).mT.repeat_interleave(group, dim=0)
        found[name] = by_head, None if of_bias is None else of_bias.view(own, -1).repeat_interleave(group, dim=0)
    return found
