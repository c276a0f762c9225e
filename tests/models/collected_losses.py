"""The losses of a model's parts collected, so that a test can add them to a loss by hand."""

from dataclasses import dataclass, field

from torch import Tensor

from lightning_gpt.models.part_losses import PartLosses


@dataclass(frozen=True)
class CollectedLosses(PartLosses):
    """Keeps each term, times what it counts for, where :class:`PartLosses` attaches it to an activation.

    Args:
        terms: The scalars, in the order in which they arose.
    """

    terms: list[Tensor] = field(default_factory=list)

    def attach(self, x: Tensor, term: Tensor) -> Tensor:
        """``x`` as it is; the term is kept."""
        self.terms.append(self.share * term)
        return x

    def scaled(self, share: float) -> "CollectedLosses":
        """The same collection, for losses that count for ``share`` of what they do here."""
        return CollectedLosses(self.share * share, self.of_pass, self.total, self.terms)
