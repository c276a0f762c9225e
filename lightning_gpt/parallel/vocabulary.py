"""The vocabulary divided over the tensor axis: embedding, output head and fused loss.

Each process holds some rows of the token embeddings and of the unembedding (Shoeybi et al. 2019, "Megatron-LM"
(1909.08053), section 3). The softmax needs, for each token, one maximum over the processes and one sum of two or three
numbers, so no process ever sees all logits.
"""

import functools
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lightning_gpt.models.chunked_softmax import _LOG2_E, Terms, VocabularyFirst
from lightning_gpt.models.head import MakeChunks, OutputHead, chunks_for, linear_cross_entropy, token_nll
from lightning_gpt.models.layer import Embedding
from lightning_gpt.models.tokens_first import TokensFirst
from lightning_gpt.parallel.collectives import Group, copied, gathered, summed


@dataclass(frozen=True)
class Vocabulary:
    """The rows of the vocabulary that this process holds.

    Args:
        size: Number of token ids in all processes.
        first: The first id held here.
        rows: The number of ids held by the processes that hold most.
        group: The processes that share the vocabulary.
    """

    size: int
    first: int
    rows: int
    group: Group

    def own(self, ids: Tensor, held: int) -> tuple[Tensor, Tensor]:
        """Which ids are among the ``held`` ones here, and their rows (0 for the others); both of the shape of ids."""
        local = ids - self.first
        mine = (local >= 0) & (local < held)
        return mine, torch.where(mine, local, 0)

    def largest(self, own: Tensor) -> Tensor:
        """The maximum over the processes, in place."""
        dist.all_reduce(own, dist.ReduceOp.MAX, group=self.group)
        return own

    def sums(self, *own: Tensor) -> tuple[Tensor, ...]:
        """The sum of each over the processes, all in one exchange."""
        stacked = torch.stack(own)
        dist.all_reduce(stacked, group=self.group)
        return stacked.unbind()


class SharedEmbedding(Embedding):
    """Token embeddings of which each process holds some rows."""

    vocabulary: Vocabulary

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids ``(...)`` to vectors ``(..., width)``, equal in all processes."""
        mine, rows = self.vocabulary.own(ids, len(self.weight))
        found = F.embedding(rows, self.weight)
        return summed(torch.where(mine[..., None], found, 0), self.vocabulary.group)


class SharedHead(OutputHead):
    """An output head of which each process holds some rows."""

    vocabulary: Vocabulary
    sums_gradient: bool

    @property
    def _make(self) -> MakeChunks:
        return functools.partial(_chunks_for, self.vocabulary)

    def _entering(self, hidden: Tensor) -> Tensor:
        return copied(hidden, self.vocabulary.group) if self.sums_gradient else hidden

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states ``(..., dim)`` to all logits ``(..., vocab_size)``, equal in all processes."""
        own = F.linear(self._entering(hidden), self.weight)
        filled = F.pad(own, (0, self.vocabulary.rows - own.shape[-1]))
        return gathered(filled, self.vocabulary.group, -1)[..., : self.vocabulary.size]

    def loss(self, hidden: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Tensor:
        """Mean cross-entropy in nats of ``targets`` ``(...)``, equal in all processes."""
        return linear_cross_entropy(
            self._entering(hidden),
            self.weight,
            targets,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            make=self._make,
            rows=self.vocabulary.rows,
        )

    def token_nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of each target in nats, equal in all processes."""
        return token_nll(hidden, self.weight, targets, self._make, self.vocabulary.rows)


def share_embedding(embedding: Embedding, vocabulary: Vocabulary) -> None:
    """Make an embedding, whose weight is the part held here, look up the rows of all processes."""
    embedding.__class__ = SharedEmbedding
    assert isinstance(embedding, SharedEmbedding)
    embedding.vocabulary = vocabulary


def share_head(head: OutputHead, vocabulary: Vocabulary, sums_gradient: bool) -> None:
    """Make a head, whose weight is the part held here, score the rows of all processes.

    Args:
        head: The head.
        vocabulary: The rows held here.
        sums_gradient: Whether the gradient of the hidden states is summed over the processes; if not, whatever gathered
            the hidden states sums it.
    """
    head.__class__ = SharedHead
    assert isinstance(head, SharedHead)
    head.vocabulary, head.sums_gradient = vocabulary, sums_gradient


class SharedVocabularyFirst(VocabularyFirst):
    """:class:`~lightning_gpt.models.chunked_softmax.VocabularyFirst` of the rows held here."""

    def __init__(self, weight: Tensor, size: int, terms: Terms, vocabulary: Vocabulary) -> None:
        super().__init__(weight, size, terms)
        self.vocabulary = vocabulary

    def losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        n, smooths = len(hidden), bool(self.terms.label_smoothing)
        z = self._array[: len(self.weight) * n].view(-1, n)  # (V_own, n)
        torch.mm(self.weight, (hidden * _LOG2_E).T, out=z)
        self._mine, self._rows = self.vocabulary.own(labels, len(z))
        largest = self.vocabulary.largest(z.amax(dim=0))
        own_target = torch.where(self._mine, z.gather(0, self._rows[None]).squeeze(0), 0)
        own_logits = [z.sum(dim=0)] if smooths else []
        self._powers = z.sub_(largest).exp2_()
        self._sum, target, *logits = self.vocabulary.sums(self._powers.sum(dim=0), own_target, *own_logits)
        self._log_z = (self._sum.log2() + largest) / _LOG2_E
        mean = logits[0] / self.vocabulary.size / _LOG2_E if smooths else None
        return self.terms.loss(self._log_z, target / _LOG2_E, mean)

    def gradients(
        self, hidden: Tensor, labels: Tensor, counts: Tensor, grad_hidden: Tensor | None, grad_weight: Tensor | None
    ) -> None:
        gradient, total, terms = self._powers, self._sum, self.terms
        if terms.z_loss:
            gradient *= 1 + 2 * terms.z_loss * self._log_z
        if terms.label_smoothing:
            gradient -= total * (terms.label_smoothing / self.vocabulary.size)
        at_target = torch.where(self._mine, total * (1 - terms.label_smoothing), 0)
        gradient[self._rows, torch.arange(len(labels))] -= at_target
        scale = (counts / total)[:, None]
        if grad_hidden is not None:
            torch.mm(gradient.T, self.weight, out=grad_hidden)
            grad_hidden *= scale
        if grad_weight is not None:
            grad_weight.addmm_(gradient, hidden * scale)


class SharedTokensFirst(TokensFirst):
    """:class:`~lightning_gpt.models.tokens_first.TokensFirst` of the rows held here."""

    def __init__(self, weight: Tensor, size: int, terms: Terms, vocabulary: Vocabulary) -> None:
        super().__init__(weight, size, terms)
        self.vocabulary = vocabulary

    def _losses(self, piece: slice, labels: Tensor) -> Tensor:
        labels, terms = labels[piece], self.terms
        logits = self._logits[piece.start : piece.start + len(labels)]
        z = self._exact[: len(labels)].copy_(logits) if self._rounds else logits
        mine, rows = self.vocabulary.own(labels, z.shape[1])
        largest = self.vocabulary.largest(z.amax(dim=-1))
        own_target = torch.where(mine, z.gather(1, rows[:, None]).squeeze(1), 0)
        own_logits = [z.sum(dim=-1)] if terms.label_smoothing else []
        softmax = z.sub_(largest[:, None]).exp_()
        total, target, *sum_of_logits = self.vocabulary.sums(softmax.sum(dim=-1), own_target, *own_logits)
        softmax /= total[:, None]
        log_z = largest + total.log()
        if terms.z_loss:
            softmax *= (1 + 2 * terms.z_loss * log_z)[:, None]
        if terms.label_smoothing:
            softmax -= terms.label_smoothing / self.vocabulary.size
        softmax[torch.arange(len(labels), device=z.device), rows] -= mine * (1 - terms.label_smoothing)
        if self._rounds:
            logits.copy_(softmax)
        mean = sum_of_logits[0] / self.vocabulary.size if terms.label_smoothing else None
        return terms.loss(log_z, target, mean)


def _chunks_for(vocabulary: Vocabulary, weight: Tensor, size: int, terms: Terms) -> VocabularyFirst | TokensFirst:
    """The layout that is faster for this weight, as for a whole one."""
    if isinstance(chunks_for(weight[:1], 1, terms), VocabularyFirst):
        return SharedVocabularyFirst(weight, size, terms, vocabulary)
    return SharedTokensFirst(weight, size, terms, vocabulary)
