"""Dividing a source into splits: which rule it needs, found out before anything is tokenised."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lightning_gpt.data.prepare.duplicates import SPLITS
from lightning_gpt.data.prepared import PreparedSource
from lightning_gpt.data.sources.base import SourceBase
from lightning_gpt.data.split import Split, SplitBy, SplitName
from lightning_gpt.errors import CallError


def texts_of(source: SourceBase, split: Split, part: SplitName, start: int = 0) -> Iterator[tuple[int, str]]:
    """Number and text of the accepted documents of one split, from document number ``start`` on."""
    if isinstance(source, PreparedSource):  # the folder knows each one's split, which its text does not tell
        yield from source.texts(part, start)
        return
    for number, document in enumerate(source.documents(start), start):
        if source.accepts(document.text):
            for name, text in split.pieces(document.text, document.split):
                if name == part:
                    yield number, text


@dataclass(frozen=True)
class Division:
    """How a source is divided, and which splits are known to get text of it."""

    split: Split
    found: frozenset[SplitName]
    documents: int
    """Documents that were read to find out; all of them if :attr:`found` lacks a split that is wanted."""
    chosen: bool = False
    """Whether to split by position was not asked for but chosen."""


def divide(source: SourceBase, val: float, test: float, by: SplitBy) -> Division:
    """Choose the rule by which a source is split.

    ``auto`` splits by documents if there are enough of them: at least one divided by the smallest share, and at least
    one in each split. That takes reading the first documents of a large source, and all of a small one. A source that
    is not countable is split by documents, unless told otherwise, and not read. A prepared source is split already.

    Raises:
        CallError: The source has no training document, or names files for a split that have no text.
    """
    if isinstance(source, PreparedSource):
        found_there = frozenset(part for part in SPLITS if source.tally(part).documents)
        return Division(source.split, found_there, sum(source.tally(part).documents for part in SPLITS))
    rule = Split(val, test, by == "position", source.named_splits)
    shares = rule.shares
    wanted = frozenset(name for name, share in shares.items() if share or name in rule.named)
    if not source.countable:
        return Division(rule, wanted, 0)
    position = replace(rule, by_position=True)
    enough = 1 / min(share for share in shares.values() if share) if by == "auto" else 1
    found: set[SplitName] = set()
    found_by_position: set[SplitName] = set()
    read = documents = own = 0
    for document in source.documents():
        read += 1
        if not source.accepts(document.text):
            continue
        documents += 1
        own += document.split is None
        found.update(name for name, _ in rule.pieces(document.text, document.split))
        found_by_position.update(name for name, _ in position.pieces(document.text, document.split))
        if own >= enough and found >= wanted:
            return Division(rule, wanted, documents)
    if own == 0:
        raise CallError(
            f"source {source.name!r} has no training document: none of the {read:,} documents read has text and passes "
            f"its filters ({source.filter_identity})"
        )
    for name in rule.named:
        if name not in found:
            raise CallError(f"the files of {name}_paths of source {source.name!r} have no document with text")
    if by == "auto":
        return Division(position, frozenset(found_by_position), documents, chosen=True)
    if "train" not in found:
        raise CallError(
            f"source {source.name!r} has no training document: its {documents} documents are in other splits; set "
            f"split_by to position"
        )
    return Division(rule, frozenset(found), documents)


def require(part: SplitName, share: float, divisions: Sequence[Division]) -> None:
    """Raise a CallError if no source has text for a split, as far as that is known before training."""
    if not any(part in division.found for division in divisions):
        raise CallError(
            f"the {part} split is empty: {part}_share is {share}, which gives it none of "
            f"{sum(division.documents for division in divisions):,} documents; raise the share, name files for it "
            f"({part}_paths of class_path: Files), or set split_by to position"
        )


def describe(source: SourceBase, division: Division) -> str:
    """The line that says that a source is split by position."""
    titles: dict[SplitName, str] = {"train": "training", "val": "validation", "test": "test"}
    shares = [f"{100 * share:.3g}% {titles[name]}" for name, share in division.split.shares.items() if share]
    few = f"{division.documents} document{'s' * (division.documents != 1)}"
    return (
        f"{source.name}: {few}, too few to split by documents, so each is split by position (split_by): "
        f"{', then '.join(shares)}"
    )
