"""Assigning text to splits: whole documents by a hash of their text, or the parts of each document by position."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from xxhash import xxh3_64_intdigest

from lightning_gpt.errors import CallError

SplitName = Literal["train", "val", "test"]
SplitBy = Literal["auto", "documents", "position"]

_BOUNDARIES = ("\n\n", "\n", " ")  # where a document may be cut, the best first


@dataclass(frozen=True)
class Split:
    """How the documents of a source become splits. Every character is in exactly one of them.

    Args:
        val: Share for validation.
        test: Share for the final test.
        by_position: Whether each document is cut, rather than assigned to a split as a whole: its beginning is for
            training, then comes validation, and its end is for the test.
        named: Splits whose documents the source names itself; they take no share of its other documents.

    Raises:
        CallError: A share is negative, or the two together are 1 or more.
    """

    val: float = 0.05
    test: float = 0.05
    by_position: bool = False
    named: tuple[SplitName, ...] = ()

    def __post_init__(self) -> None:
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise CallError(
                f"val_share {self.val} and test_share {self.test} must be at least 0 and sum to less than 1"
            )

    @property
    def shares(self) -> dict[SplitName, float]:
        """The shares of the documents that the source assigns to no split itself."""
        held_out: dict[SplitName, float] = {"val": self.val, "test": self.test}
        held_out = {name: 0.0 if name in self.named else share for name, share in held_out.items()}
        return {"train": 1 - held_out["val"] - held_out["test"], **held_out}

    @property
    def rule(self) -> str:
        """The rule in words; equal rules have equal words."""
        named = f", with {' and '.join(f'{name}_paths' for name in self.named)}" if self.named else ""
        return f"by {'position' if self.by_position else 'documents'}{named}"

    def of(self, text: str) -> SplitName:
        """The split of a whole document with this text; the same on every machine and in every run."""
        shares = self.shares
        place = xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) / 2**64
        if place < shares["val"]:
            return "val"
        return "test" if place < shares["val"] + shares["test"] else "train"

    def pieces(self, text: str, given: SplitName | None) -> Iterator[tuple[SplitName, str]]:
        """The parts of a document that are not empty, in order, each with its split; together they are the document.

        Args:
            text: The document.
            given: Its split, if its source names that itself.
        """
        if given is not None:
            yield given, text
        elif self.by_position:
            val_start, test_start = self._cuts(text)
            parts: dict[SplitName, str] = {
                "train": text[:val_start],
                "val": text[val_start:test_start],
                "test": text[test_start:],
            }
            yield from ((name, part) for name, part in parts.items() if part)
        else:
            yield self.of(text), text

    def _cuts(self, text: str) -> tuple[int, int]:
        """Where validation and test begin."""
        shares = self.shares
        test_start = _cut(text, 1 - shares["test"], shares) if shares["test"] else len(text)
        val_start = _cut(text, shares["train"], shares) if shares["val"] else test_start
        return min(val_start, test_start), test_start


def _cut(text: str, share: float, shares: dict[SplitName, float]) -> int:
    """The last good boundary before ``share`` of the text, at most half a split away from it."""
    target = round(len(text) * share)
    reach = int(len(text) * min(each for each in shares.values() if each) / 2)
    for mark in _BOUNDARIES:
        found = text.rfind(mark, target - reach, target)
        if found >= 0:
            return found + len(mark)
    return target
