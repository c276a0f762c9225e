"""Splitting a sequence into chunks, for mixers that carry a state from each chunk to the next."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gpt.models.attention.mask import causal_mask
from lightning_gpt.models.context import Context

CHUNK = 64
"""Tokens processed at once by matrix products; all earlier tokens are summarised by one state."""


@dataclass(frozen=True)
class ChunkCut:
    """Masks for chunked processing of one or more documents: within chunks, and for the carried state.

    Only one document can continue into a chunk: the one its first token belongs to.
    """

    mask: Tensor  # (batch or 1, 1, n_chunk, CHUNK, CHUNK): causal, within a document
    reached: Tensor  # (batch or 1, 1, n_chunk, CHUNK, 1): tokens of the document continued from the previous chunk
    leaving: Tensor  # same shape: tokens of the next chunk's first document (last chunk: the last token's)
    through: Tensor  # (batch or 1, 1, n_chunk, 1, 1): whether these two documents are the same


def chunks_of_pass(context: Context, time: int, device: torch.device) -> ChunkCut:
    """The chunks of a pass over ``time`` tokens, computed once for all its layers."""
    chunks: ChunkCut = context.shared.layouts.made(("chunks", time), lambda: _chunks(time, context.documents, device))
    return chunks


def split(x: Tensor, fill: float = 0.0) -> Tensor:
    """Reshape ``(batch, n_head, time, width)`` to ``(batch, n_head, n_chunk, CHUNK, width)``, padding with ``fill``."""
    filled = F.pad(x, (0, 0, 0, -x.shape[2] % CHUNK), value=fill)
    return filled.reshape(*x.shape[:2], -1, CHUNK, x.shape[3])


def wide(x: Tensor) -> Tensor:
    """Cast to at least single precision, which sums over many tokens need."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _chunks(time: int, documents: Tensor | None, device: torch.device) -> ChunkCut:
    documents = torch.zeros(1, time, dtype=torch.long, device=device) if documents is None else documents
    last = documents[:, None, -1:, None]
    documents = F.pad(documents, (0, -time % CHUNK), value=-1)
    documents = documents.view(len(documents), 1, -1, CHUNK)  # (b, 1, N, C)
    first = documents[..., :1]  # (b, 1, N, 1)
    following = torch.cat([first[:, :, 1:], last], dim=2)
    same = documents[..., :, None] == documents[..., None, :]
    return ChunkCut(
        mask=same & causal_mask(CHUNK, device),
        reached=(documents == first)[..., None],
        leaving=(documents == following)[..., None],
        through=(first == following)[..., None],
    )
