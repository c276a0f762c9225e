"""Which split a document belongs to: a stable property of its text, so that no text is in two of them."""

from dataclasses import dataclass
from typing import Literal

from xxhash import xxh3_64_intdigest

from lightning_gpt.errors import CallError

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Split:
    """Shares of the documents that are kept from training.

    Args:
        val: Share of the documents for validation.
        test: Share of the documents for the final test.
    """

    val: float = 0.05
    test: float = 0.05

    def __post_init__(self) -> None:
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise CallError(f"the shares val {self.val} and test {self.test} must be at least 0 and together below 1")

    def of(self, text: str) -> SplitName:
        """The split of a document with this text: the same on every machine, in every run, for every copy of it."""
        place = xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) / 2**64
        if place < self.val:
            return "val"
        return "test" if place < self.val + self.test else "train"
