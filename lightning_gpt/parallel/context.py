"""Context parallel: processes divide the tokens of each row; attention gathers the keys and values of all of them.

Of 2n equal pieces of a row, process r holds the pieces r and 2n − 1 − r ("zigzag"). Keys and values are gathered over
the axis, and each piece meets those up to its own end: 2n + 1 pieces of keys in every process, half of all pairs. What
a token sees of them is the attention's own rule on positions, so that every mask, bias and rotation works as in one
process, and documents stay apart.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.base import LanguageModel
from lightning_gpt.models.head import IGNORED
from lightning_gpt.models.kv_cache import Cache, LayerState
from lightning_gpt.models.layer import Layer
from lightning_gpt.models.part_losses import PartLosses
from lightning_gpt.models.positions.scheme import positions_within
from lightning_gpt.parallel.collectives import gathered
from lightning_gpt.parallel.drawing import draw_apart, seed_part


@dataclass(frozen=True)
class OwnTokens:
    """The tokens of each row that this process reads.

    Args:
        ids: ``(batch, own)``.
        targets: ``(batch, own)``.
        documents: ``(batch, own)``; None if documents are not kept apart.
        others: The tokens of all processes, which they look back on.
        weight: Factor that makes the mean loss of these tokens a share of the loss: the mean of the processes' shares
            is the mean loss of all tokens.
    """

    ids: Tensor
    targets: Tensor
    documents: Tensor | None
    others: Cache
    weight: Tensor


def require_divisible_rows(model: LanguageModel, size: int) -> None:
    """Refuse a model whose rows cannot be divided over ``size`` processes.

    Raises:
        CallError: A part of the model needs whole rows, or its rows have no such length.
    """
    _pieces(model.config.block_size, size)
    if getattr(model.config, "layer_drop", None) is not None:
        raise CallError(
            "parallel.context and layer_drop cannot be combined: a device that skips a layer would not give its "
            "keys to the others; use layer_drop none or parallel.context 1"
        )
    for name, part in model.named_modules():
        if isinstance(part, Layer) and part.needs_whole_rows:
            raise CallError(
                f"parallel.context divides the tokens of a row over {size} devices, but {name or 'the model'} "
                f"({type(part).__name__}) needs whole rows; set parallel.context to 1, or use softmax attention "
                f"without memory, token_routing, diversity and capacity_factor"
            )


def _pieces(time: int, size: int) -> int:
    """The number of pieces that a row of ``time`` tokens is cut into for ``size`` processes."""
    if time % (2 * size):
        raise CallError(
            f"rows of {time} tokens cannot be divided over {size} devices: parallel.context needs a block_size "
            f"that is a multiple of {2 * size}"
        )
    return 2 * size


class ContextParallel:
    """Runs the loss and ``token_nll`` of a model on rows that the processes of a group divide between them.

    Every process passes the same whole rows. Other passes, such as ``model(ids)`` and recordings, read whole rows in
    every process.

    Args:
        model: The model; it must be whole.
        group: The processes.

    Raises:
        CallError: A part of the model needs whole rows.
    """

    def __init__(self, model: LanguageModel, group: dist.ProcessGroup) -> None:
        self.model, self.group = model, group
        require_divisible_rows(model, group.size())
        self._n_layer = len(model.block_views())

    def places(self, time: int, device: torch.device) -> Tensor:
        """The places in a row of ``time`` tokens that each process holds, ``(processes, own)``.

        Raises:
            CallError: ``time`` is not a multiple of twice the number of processes.
        """
        size = self.group.size()
        pieces = torch.arange(time, device=device).view(_pieces(time, size), -1)
        return torch.cat([pieces[:size], pieces.flip(0)[:size]], dim=1)

    def own(self, ids: Tensor, targets: Tensor, documents: Tensor | None) -> OwnTokens:
        """This process's tokens of whole rows ``(batch, time)``."""
        places = self.places(ids.shape[1], ids.device)
        mine = places[self.group.rank()]
        positions = mine if documents is None else positions_within(documents)
        others = _OthersTokens(self.group, self._n_layer, ids.shape[1], positions, documents, mine)
        counted = (targets[:, mine] != IGNORED).sum() * self.group.size()
        weight = counted.double() / (targets != IGNORED).sum().clamp(min=1)
        documents = None if documents is None else documents[:, mine]
        return OwnTokens(ids[:, mine], targets[:, mine], documents, others, weight)

    def loss(
        self, ids: Tensor, targets: Tensor, documents: Tensor | None, label_smoothing: float, z_loss: float
    ) -> Tensor:
        """This process's share of the loss; the mean over the processes is the loss."""
        model, own, losses = self.model, self.own(ids, targets, documents), None
        if model.training and torch.is_grad_enabled():
            self.seed_own(ids.device)
            losses = PartLosses(total=self.total)
        hidden = model.hidden(own.ids, own.documents, own.others, losses=losses)
        loss = model.head.loss(hidden, own.targets, label_smoothing, z_loss)
        loss = loss * own.weight.to(loss.dtype)
        return loss if losses is None or not losses.of_pass.has_losses else losses.close(loss)

    def token_nll(self, ids: Tensor, targets: Tensor, documents: Tensor | None) -> Tensor:
        """Negative log-likelihood of each target of the whole rows, ``(batch, time)``, in every process."""
        model, own = self.model, self.own(ids, targets, documents)
        nll = model.head.token_nll(model.hidden(own.ids, own.documents, own.others), own.targets)
        return self.whole(nll)

    def whole(self, x: Tensor) -> Tensor:
        """Whole rows ``(batch, time)`` of the processes' parts ``(batch, own)``; without gradient."""
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.group.size())]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        places = self.places(x.shape[1] * self.group.size(), x.device).flatten()
        return torch.cat(parts, dim=1)[:, places.argsort()]

    def seed_own(self, device: torch.device) -> None:
        """Let the processes, whose generators are in one state, draw differently for their different tokens."""
        seed_part(draw_apart(self.group.size())[self.group.rank()], device)

    @torch.no_grad()
    def total(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over the processes."""
        total = x.clone()
        dist.all_reduce(total, group=self.group)
        return total


class _OthersTokens(Cache):
    """The tokens of all processes, as a cache that a pass over this process's tokens looks up.

    Args:
        group: The processes.
        n_layer: Number of layers.
        time: Number of tokens of a row.
        positions: Positions of this process's tokens, ``(own,)``; with documents, of all tokens, ``(batch, time)``.
        documents: The documents of all tokens, ``(batch, time)``, if they are kept apart.
        mine: This process's places in a row, ``(own,)``.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        n_layer: int,
        time: int,
        positions: Tensor,
        documents: Tensor | None,
        mine: Tensor,
    ) -> None:
        of_keys = None if documents is None else positions
        super().__init__([cast(LayerState, _GatheredKeys(group, of_keys))] * n_layer)
        self.documents = documents
        self._own = positions if documents is None else positions[:, mine]
        self.length = time - len(mine)  # the tokens of the others
        piece, rank, size = len(mine) // 2, group.rank(), group.size()
        self.runs = (slice(0, piece), (rank + 1) * piece), (slice(piece, None), (2 * size - rank) * piece)

    def positions(self, time: int, device: torch.device) -> Tensor:
        """Positions of this process's tokens."""
        return self._own

    def advance(self, time: int, lengths: Tensor | None) -> None:
        """Nothing to count: the cache is of one pass."""


@dataclass(frozen=True)
class _GatheredKeys:
    """The state of each layer: it gives the keys and values of all processes in the order of the text.

    Args:
        group: The processes.
        positions: Positions of all tokens, ``(batch, time)``; None for 0, 1, 2, ...
    """

    group: dist.ProcessGroup
    positions: Tensor | None

    def append(
        self, k: Tensor, v: Tensor, positions: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and positions of all tokens, from those of this process, ``(batch, ..., own, width)``."""
        both = gathered(torch.cat([k, v], dim=-1), self.group, -2)  # in one exchange
        pieces = torch.split(both, k.shape[-2] // 2, dim=-2)  # an early and a late one of each process
        in_order = torch.cat([*pieces[::2], *reversed(pieces[1::2])], dim=-2)
        k, v = torch.split(in_order, [k.shape[-1], v.shape[-1]], dim=-1)
        return k, v, self.positions
