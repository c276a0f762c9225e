"""The matrices of a head, and the circuits that they form: what it looks for, and what it writes when it finds it.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits": tokens i and j score ``n_i W_Q W_Kᵀ n_jᵀ / √d``
(the QK circuit), and attention to j writes ``n_j W_V W_O`` (the OV circuit). Between the embedding and the unembedding,
both are matrices over pairs of tokens, ``vocab_size²`` entries of rank head_dim. They are kept as two factors, and
all that is asked of them is computed from those.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gpt.analysis.spectral import spectrum
from lightning_gpt.analysis.tiny import TINY
from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.attention.head_matrices import HeadMatrices
from lightning_gpt.models.context import Context
from lightning_gpt.models.double import double
from lightning_gpt.models.view import BlockView


@dataclass(frozen=True)
class Circuit:
    """A matrix ``left @ right`` as its two factors.

    Args:
        left: ``(rows, rank)``.
        right: ``(rank, columns)``.
    """

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the product."""
        return self.left.shape[0], self.right.shape[1]

    def matrix(self) -> Tensor:
        """The product, ``(rows, columns)``; for a circuit over a large vocabulary ask for its rows instead."""
        return self.left @ self.right

    def rows(self, ids: Tensor) -> Tensor:
        """Some rows of the product, ``(*ids.shape, columns)``."""
        return self.left[ids] @ self.right

    def top(self, ids: Tensor, k: int = 10) -> tuple[Tensor, Tensor]:
        """The ``k`` largest entries of some rows, largest first, and their columns; each ``(*ids.shape, k)``.

        Raises:
            CallError: If there are fewer columns than ``k``.
        """
        if not 0 <= k <= self.shape[1]:
            raise CallError(f"k is {k}; a row has {self.shape[1]} entries (allowed: 0 to {self.shape[1]})")
        values, columns = self.rows(ids).topk(k, dim=-1)
        return values, columns

    def eigenvalues(self) -> Tensor:
        """The eigenvalues that can differ from 0, ``(rank,)``, complex: those of ``right @ left``.

        Raises:
            CallError: If the product is not square.
        """
        if self.shape[0] != self.shape[1]:
            raise CallError(f"a circuit of shape {self.shape} has no eigenvalues; only square ones have")
        return spectrum(torch.linalg.eigvals, (double(self.right) @ double(self.left)).detach())

    def singular_values(self) -> Tensor:
        """The singular values that can differ from 0, largest first, ``(rank,)``."""
        # with R of both QR decompositions, whose Q change no singular value
        tall, wide = (torch.linalg.qr(double(x.detach()), mode="r").R for x in (self.left, self.right.mT))
        values: Tensor = torch.linalg.svdvals(tall @ wide.mT)
        return values

    def copying_score(self) -> float:
        """``Σ λ / Σ |λ|`` of the eigenvalues, from −1 to 1: of the embedded OV circuit, 1 where the head raises the
        logit of each token that it attends to, about 0 where what it writes is unrelated, −1 where it suppresses them.

        Elhage et al. 2021, section "Summarizing OV/QK matrices". 0 of a matrix without eigenvalues other than 0.
        """
        found = self.eigenvalues()
        return float(found.sum().real / found.abs().sum().clamp(min=TINY))


def head_matrices(model: LanguageModel, layer: int) -> HeadMatrices:
    """W_Q, W_K, W_V and W_O of each head of a layer, and their biases, as the layer itself tells them.

    Raises:
        CallError: If there is no such layer, or it has no such matrices.
    """
    return _matrices(_view(model, layer))


def qk_circuit(model: LanguageModel, layer: int, head: int, distance: int = 0, embedded: bool = False) -> Circuit:
    """``W_Q W_Kᵀ``: its product with the layer's input of two tokens is their score, times √d, without biases.

    The norm of queries and keys, if the layer has one, and what positions add to scores are left out; so are factors
    that differ by token: ``scalable``'s of the query's position, those of ``spherical``'s unit vectors, and that of the
    norm of ``latent``'s latents, which the rotated part of a key, the last columns of the factors, does not have.

    Args:
        model: The model.
        layer: The layer.
        head: The head.
        distance: How many tokens the key is before the query; matters where positions turn queries and keys.
        embedded: Whether rows and columns are tokens of the vocabulary instead of the layer's inputs: the score of two
            tokens whose stream is their token embedding, ``(vocab_size, vocab_size)`` in factors.

    Raises:
        CallError: If there is no such head, the distance is negative, or scores are not such products.
    """
    view = _view(model, layer)
    matrices, head = _matrices(view), _head(view, head)
    if matrices.no_qk:
        raise CallError(f"{_named(view)} has no QK circuit: {matrices.no_qk}")
    if distance < 0:
        raise CallError(f"distance is {distance}; it must be 0 or more, since a head looks back only")
    queries = _turned(model, view, matrices.w_q, distance)[head]
    keys = _turned(model, view, matrices.w_k, 0)[head]
    if embedded:
        tokens = _tokens(model, view)
        queries, keys = tokens @ queries, tokens @ keys
    return Circuit(queries, keys.mT)


def ov_circuit(model: LanguageModel, layer: int, head: int, embedded: bool = False) -> Circuit:
    """``W_V W_O``: what full attention to a token with a layer input n writes into the stream is n times it.

    A factor of the residual rule, such as LayerScale's, is part of it.

    Args:
        model: The model.
        layer: The layer.
        head: The head.
        embedded: Whether rows are tokens whose stream is their token embedding, and columns what is added to the logit
            of each token: ``(vocab_size, vocab_size)`` in factors, up to a positive factor of each row, by which the
            final norm divides what it reads.

    Raises:
        CallError: If there is no such head, or what it writes is not linear in what it mixes.
    """
    view = _view(model, layer)
    matrices, head = _matrices(view), _head(view, head)
    if matrices.no_ov:
        raise CallError(f"{_named(view)} has no OV circuit: {matrices.no_ov}")
    left, right = matrices.w_v[head], view.written(matrices.w_o[head])
    if right is None:
        raise CallError(
            f"{_named(view)} has no OV circuit: what its output adds to the stream depends on the token (it is normed, "
            f"or weighted)"
        )
    if not embedded:
        return Circuit(left, right)
    # a stream of mean 0 and size 1: what a norm that divides by one number does to each part, up to a factor
    signs = torch.ones_like(right[0])
    signs[1::2] = -1
    return Circuit(_tokens(model, view) @ left, model.read_out_share(right, signs) @ model.unembedding.mT)


def _view(model: LanguageModel, layer: int) -> BlockView:
    views = model.block_views()
    if not 0 <= layer < len(views):
        raise CallError(f"layer is {layer}; the model has {len(views)} (allowed: 0 to {len(views) - 1})")
    return views[layer]


def _head(view: BlockView, head: int) -> int:
    if not 0 <= head < view.mixer.n_head:
        most = view.mixer.n_head - 1
        raise CallError(f"head is {head}; {_named(view)} has {most + 1} (allowed: 0 to {most})")
    return head


def _named(view: BlockView) -> str:
    return f"{view.mixer_name} ({type(view.mixer).__name__})"


def _matrices(view: BlockView) -> HeadMatrices:
    found = view.mixer.head_matrices()
    if found is None:
        raise CallError(
            f"{_named(view)} has no W_Q, W_K, W_V and W_O by head: it does not mix tokens with such matrices"
        )
    return found


def _turned(model: LanguageModel, view: BlockView, weights: Tensor, position: int) -> Tensor:
    """The columns of ``(n_head, dim, width)`` turned as queries or keys at ``position`` are."""
    positions = torch.full(weights.shape[1:2], position, device=weights.device)
    return view.mixer.turned(weights[None], Context(positions, scheme=model.positions))[0]


def _tokens(model: LanguageModel, view: BlockView) -> Tensor:
    """What the layer would read of each token if the stream were its embedding, ``(vocab_size, dim)``."""
    embedding = model.normed_embedding(model.token_embedding.weight * model.embedding_scale)
    return view.mixer_input(model.widened(embedding))
