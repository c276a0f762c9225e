"""Assigning documents to splits by a hash of their text, so that no text is in two splits."""

from dataclasses import dataclass
from typing import Literal

from xxhash import xxh3_64_intdigest

from lightning_gpt.errors import CallError

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Split:
    """The shares of the documents that are held out.

    Args:
        val: Share for validation.
        test: Share for the final test.

    Raises:
        CallError: A share is negative, or the two together are 1 or more.
    """

    val: float = 0.05
    test: float = 0.05

    def __post_init__(self) -> None:
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise CallError(
                f"val_share {self.val} and test_share {self.test} must be at least 0 and sum to less than 1"
            )

    def of(self, text: str) -> SplitName:
        """The split of a document with this text; the same on every machine and in every run."""
        place = xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) / 2**64
        if place < self.val:
            return "val"
        return "test" if place < self.val + self.test else "train"
