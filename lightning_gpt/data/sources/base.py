"""What every source of documents is."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lightning_gpt.errors import CallError, WorkError


@dataclass(frozen=True)
class Document:
    """One text and where it came from, such as ``notes.jsonl, line 17``."""

    text: str
    origin: str


class SourceBase(ABC):
    """Documents in a fixed order, numbered from 0, and how much training takes of them.

    A config names a :class:`Source`; those of a prepared folder are no such.
    """

    default_name = "source"
    """What a source of this kind is called when it is given no name."""

    countable = True
    """Whether reading it through once, to count it, is a reasonable thing to do before training."""

    def __init__(
        self,
        name: str | None = None,
        weight: float | None = None,
        max_tokens: int | None = None,
        max_passes: int | None = None,
    ) -> None:
        self.name = name or self.default_name
        if weight is not None and not 0 < weight < float("inf"):
            raise CallError(f"source {self.name!r} has weight {weight}; a weight is a positive number")
        self._require_at_least(1, max_tokens=max_tokens, max_passes=max_passes)
        self.weight = weight
        self.max_tokens = max_tokens
        self.max_passes = max_passes

    def _require_at_least(self, least: int, **arguments: int | None) -> None:
        for argument, value in arguments.items():
            if value is not None and value < least:
                raise CallError(f"source {self.name!r} has {argument} {value}; it must be at least {least}")

    @abstractmethod
    def documents(self, start: int = 0) -> Iterator[Document]:
        """The documents from number ``start`` on, whether they are accepted or not."""

    @property
    @abstractmethod
    def filter_identity(self) -> str:
        """What :meth:`accepts` depends on, as text."""

    @abstractmethod
    def accepts(self, text: str) -> bool:
        """Whether a document with this text is used. One that is not keeps its number."""


class Source(SourceBase):
    """Documents in a fixed order, numbered from 0.

    Args:
        name: What the source is called in the cursor and in reports, unique within a mix; that of its kind when
            omitted.
        weight: Its share of the training rows, beside the weights of the other sources. Give every source a
            weight or none; with none, an epoch reads every document of every source once.
        max_tokens: Train on the first so many tokens of its training split only; on all of it when omitted.
        min_characters: Leave out documents of fewer characters.
        keep: Leave out documents for which this function of their text is false. In a config file it is given by its
            import path, such as ``mypackage.filters.is_english``.
        max_passes: How often training may go through it; as often as it takes when omitted.
    """

    def __init__(
        self,
        name: str | None = None,
        weight: float | None = None,
        max_tokens: int | None = None,
        min_characters: int = 0,
        keep: Callable[[str], bool] | None = None,
        max_passes: int | None = None,
    ) -> None:
        super().__init__(name, weight, max_tokens, max_passes)
        self._require_at_least(0, min_characters=min_characters)
        self.min_characters = min_characters
        self.keep = keep

    @property
    def filter_identity(self) -> str:
        """What :meth:`accepts` depends on, as text."""
        keep = None if self.keep is None else f"{self.keep.__module__}.{self.keep.__qualname__}"
        return filters_said(self.min_characters, keep)

    def accepts(self, text: str) -> bool:
        """Whether a document with this text is long enough and one to keep."""
        return len(text) >= max(1, self.min_characters) and (self.keep is None or self.keep(text))


def require_distinct_names(sources: Iterable[SourceBase]) -> None:
    """Refuse sources of one name: the cursor and the prepared folder tell them apart by it."""
    twice = [name for name, uses in Counter(source.name for source in sources).items() if uses > 1]
    if twice:
        raise CallError(f"two sources are named {twice[0]!r}; give each its own name")


def filters_said(min_characters: int, keep: str | None) -> str:
    """What a source's filters are, as text that is the same for the same filters."""
    return f"min_characters {min_characters}, keep {keep}"


def text_field(record: Any, column: str, origin: str) -> str:
    """The text of a record; refused in one line where the record has no such field or no text in it."""
    if not isinstance(record, dict) or column not in record:
        raise missing_field(column, record if isinstance(record, dict) else (), origin)
    text = record[column]
    if not isinstance(text, str):
        raise WorkError(f"{origin}: {column!r} holds {type(text).__name__}, not text")
    return text


def missing_field(column: str, names: Iterable[str], origin: str) -> CallError:
    """What to raise where the field that is to hold the text is not among those that there are."""
    there = ", ".join(map(repr, names)) or "none"
    return CallError(f"{origin} has no field {column!r}; it has {there} (set the source's column)")


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a line of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
