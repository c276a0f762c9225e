"""Residual rules whose stream has several copies, with learned connections between them and the branches."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.models.attention.mixer import Mixer
from lightning_gpt.models.block import Block, blocks
from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Layer, Matrix, without_autocast
from lightning_gpt.options import Range

Copies = Annotated[int, Range(1, 16)]
"""How many copies of the stream there are."""


class Connection(Layer, ABC):
    """What one branch reads of the n copies H of the stream, and what becomes of them: ``R H + w F(r H)``.

    Coefficients are computed in fp32 or better, and the copies are mixed in their own precision, also under autocast.
    Intermediates: ``read`` r ``(..., n)``, ``residual`` R ``(..., n, n)`` and ``write`` w ``(..., n)``; with leading
    dimensions ``(batch, time)`` if they depend on the token.

    Args:
        dim: Width d of a copy.
        n_stream: n.
    """

    def __init__(self, dim: int, n_stream: int) -> None:
        super().__init__()
        self.dim, self.n_stream = dim, n_stream

    @abstractmethod
    def coefficients(self, copies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """r, R and w for the copies ``(..., n, d)``, which are in fp32 or better."""

    def position_axis(self, name: str) -> int | None:
        """That of R is before its two dimensions of copies."""
        return -3 if name == "residual" else super().position_axis(name)

    def mixing_flops(self) -> float:
        """FLOPs of one token for the products with r, R and w."""
        return 2.0 * self.dim * self.n_stream * (self.n_stream + 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The branch's input ``(..., d)``, the mixed copies ``(..., n, d)`` and w ``(..., n)``.

        ``x`` is ``(..., n d)``: the copies side by side.
        """
        copies = torch.unflatten(x, -1, (self.n_stream, self.dim))
        with without_autocast(x):
            found = self.coefficients(copies.to(torch.promote_types(x.dtype, torch.float32)))
            read, residual, write = (
                self.see(name, each).to(x.dtype)
                for name, each in zip(("read", "residual", "write"), found, strict=True)
            )
            both = torch.cat([read[..., None, :], residual], dim=-2)
            # a product for each token: of one matrix for all, torch makes one large product of transposed copies
            mixed = both.expand(*copies.shape[:-2], *both.shape[-2:]) @ copies  # (..., n + 1, d)
        return mixed[..., 0, :], mixed[..., 1:, :], write


class ManyStreams(Block, ABC):
    """Rules whose stream is n copies, side by side: ``(batch, time, n dim)`` between blocks.

    The copies start equal, and the final norm reads their sum (Zhu et al. 2024, 2409.19606, section 2.1).

    Args:
        attention: The first branch.
        ffn: The second branch.
        norm: Creates a norm of the width of a copy.
        dropout: As in the block.
        connect: Creates the connections of a branch, by its number in the model: two in each layer.
        n_stream: n.
        layer: The layer's number, from 0.
    """

    keeps_stream = False
    zero_branches_pass = False

    def __init__(
        self,
        attention: Mixer,
        ffn: Layer | None,
        norm: Callable[[], nn.Module],
        dropout: float,
        connect: Callable[[int], Connection],
        n_stream: int,
        layer: int,
    ) -> None:
        super().__init__(attention, ffn, norm, dropout)
        self.n_stream = n_stream
        self.attention_connection = connect(2 * layer)
        self.ffn_connection = None if ffn is None else connect(2 * layer + 1)

    def widened(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.n_stream, dim=-1)

    def narrowed(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.n_stream, -1)).sum(dim=-2)

    def written(self, output: Tensor) -> Tensor | None:
        """None: each copy has its share of it, which may depend on the token."""
        return None

    def attention_input(self, x: Tensor, context: Context) -> Tensor:
        """The norm of what the attention reads of the copies."""
        return self.attention_norm(self.attention_connection(x)[0])  # type: ignore[no-any-return]

    def mix(self, x: Tensor, context: Context) -> Tensor:
        entering, mixed, write = self.attention_connection(x)
        added = self.attended(self.see("attention_norm", self.attention_norm(entering)), context)
        return _joined(mixed, write, added)

    def feed(self, x: Tensor, context: Context) -> Tensor:
        assert self.ffn_connection is not None
        entering, mixed, write = self.ffn_connection(x)
        return _joined(mixed, write, self.fed(self.ffn_input(entering), context))


def _joined(mixed: Tensor, write: Tensor, added: Tensor) -> Tensor:
    """The copies with a branch's output ``(..., d)`` added to each, times its w; side by side ``(..., n d)``."""
    return (mixed + write[..., None] * added[..., None, :]).flatten(-2)


class HyperConnection(Connection):
    """``r = s_α tanh(H̄ W_m)ᵀ + A_mᵀ``, ``R = s_α tanh(H̄ W_r)ᵀ + A_rᵀ``, ``w = s_β tanh(H̄ W_β)ᵀ + B``.

    H̄ are the normed copies. Without ``dynamic`` they are ``A_mᵀ``, ``A_rᵀ`` and ``B``.

    Args:
        dim: Width of a copy.
        n_stream: Number of copies, n.
        site: The branch's number k in the model: it starts by reading copy k mod n.
        norm: Creates the norm of a copy.
        dynamic: Whether they depend on the token.
    """

    def __init__(self, dim: int, n_stream: int, site: int, norm: Callable[[], nn.Module], dynamic: bool) -> None:
        super().__init__(dim, n_stream)
        self.site = site
        self.static_read = nn.Parameter(torch.empty(n_stream))
        # a vector, because weight decay is for matrices, and not for the static connections
        self.static_residual = nn.Parameter(torch.empty(n_stream**2))
        self.static_write = nn.Parameter(torch.empty(n_stream))
        self.norm = norm() if dynamic else None
        self.weight = nn.Parameter(torch.empty(n_stream + 2, dim)) if dynamic else None
        self.scales = nn.Parameter(torch.empty(2)) if dynamic else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """``A_m = e_{k mod n}``, ``A_r = I``, ``B = 1``, ``W = 0``, ``s = 0.01`` (eq. 14): pre-LN, n times over."""
        self.static_read.zero_()[self.site % self.n_stream] = 1.0
        self.static_residual.copy_(torch.eye(self.n_stream).flatten())
        nn.init.ones_(self.static_write)
        if self.weight is not None and self.scales is not None:
            self.weight.zero_()
            self.scales.fill_(0.01)

    def matrices(self) -> Iterator[Matrix]:
        if self.weight is not None:
            yield Matrix(self.weight, "stream", "score", {"read": 1, "residual": self.n_stream, "write": 1})

    def flops(self, positions: Tensor) -> float:
        return self.mixing_flops() + (0.0 if self.weight is None else 2.0 * self.n_stream * self.weight.numel())

    def coefficients(self, copies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a_r = self.static_residual.view(self.n_stream, self.n_stream)
        read, residual, write = (each.to(copies.dtype) for each in (self.static_read, a_r.mT, self.static_write))
        if self.norm is None or self.weight is None or self.scales is None:
            return read, residual, write
        normed = self.norm(copies.to(self.weight.dtype)).to(copies.dtype)  # a norm wants the type of its gains
        found = F.linear(normed, self.weight.to(copies.dtype)).tanh()  # (..., n, n + 2)
        alpha, beta = self.scales.to(copies.dtype)
        return (
            read + alpha * found[..., 0],
            residual + alpha * found[..., 1:-1].mT,
            write + beta * found[..., -1],
        )


@blocks.register("hyper_connections")
class HyperConnections(ManyStreams):
    """``H ← A_rᵀ H + Bᵀ F(LN(A_mᵀ H))``, H n copies of the stream, with learned ``A_m``, ``A_r`` and ``B`` per branch.

    Zhu et al. 2024, "Hyper-Connections" (2409.19606), eq. 2; they depend on the token as in eq. 10 to 13. Starts as
    pre-LN; H̄ in these is the copies' norm of the model's kind. The branches start as in pre-LN: the paper's factor of
    √n on the initial weights of their outputs (section 4) is left out.

    Args:
        attention: The first branch.
        ffn: The second branch.
        norm: Creates a norm.
        dim: Width of a copy.
        dropout: As in the block.
        layer: The layer's number, from 0.
        n_stream: n, the paper's expansion rate.
        dynamic: Whether the connections depend on the token.
    """

    def __init__(
        self,
        attention: Mixer,
        ffn: Layer | None,
        norm: Callable[[], nn.Module],
        dim: int,
        dropout: float,
        layer: int,
        n_stream: Copies = 4,
        dynamic: bool = True,
    ) -> None:
        def connect(site: int) -> Connection:
            return HyperConnection(dim, n_stream, site, norm, dynamic)

        super().__init__(attention, ffn, norm, dropout, connect, n_stream, layer)
