"""The base classes of document sources, and the checks that sources share."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lightning_gpt.errors import CallError, WorkError


@dataclass(frozen=True)
class Document:
    """A text and its origin, such as ``notes.jsonl, line 17``."""

    text: str
    origin: str


class SourceBase(ABC):
    """Documents in a fixed order, numbered from 0, and how training uses them.

    The sources that a config can name derive from :class:`Source`; a source in a prepared folder derives from this
    class only.
    """

    default_name = "source"
    """The name of a source that is given none."""

    countable = True
    """Whether it is cheap enough to read it to its end before training, in order to count its tokens."""

    def __init__(
        self,
        name: str | None = None,
        weight: float | None = None,
        max_tokens: int | None = None,
        max_passes: int | None = None,
    ) -> None:
        self.name = name or self.default_name
        if weight is not None and not 0 < weight < float("inf"):
            raise CallError(f"source {self.name!r} has weight {weight}; it must be a positive number")
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
        """All documents from number ``start`` on, including those that :meth:`accepts` rejects."""

    @property
    @abstractmethod
    def filter_identity(self) -> str:
        """Everything that :meth:`accepts` depends on, as text."""

    @abstractmethod
    def accepts(self, text: str) -> bool:
        """Whether a document with this text is used. A rejected document still counts in the numbering."""


class Source(SourceBase):
    """A source that a config can name: documents in a fixed order, numbered from 0.

    Args:
        name: Name in the cursor and in reports, unique among the sources; the default depends on the kind of source.
        weight: Share of the training rows, relative to the other sources' weights. Give all sources a weight or none;
            without weights an epoch reads every document of every source once.
        max_tokens: Train only on the first ``max_tokens`` tokens of its training split; on all of it when omitted.
        min_characters: Skip documents with fewer characters.
        keep: Skip documents for whose text this function returns false. A config file gives its import path, such as
            ``my_filters.is_english``, and the command line names its module with ``--trust``.
        max_passes: How many times training may read it before stopping with an error; unlimited when omitted.
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
        """The filters, as text."""
        keep = None if self.keep is None else f"{self.keep.__module__}.{self.keep.__qualname__}"
        return describe_filters(self.min_characters, keep)

    def accepts(self, text: str) -> bool:
        """Whether the text is long enough and ``keep`` returns true for it."""
        return len(text) >= max(1, self.min_characters) and (self.keep is None or self.keep(text))


def require_distinct_names(sources: Iterable[SourceBase]) -> None:
    """Raise a CallError if two sources share a name: cursors and prepared folders identify sources by name."""
    repeated = [name for name, uses in Counter(source.name for source in sources).items() if uses > 1]
    if repeated:
        raise CallError(f"two sources are named {repeated[0]!r}; give each its own name")


def describe_filters(min_characters: int, keep: str | None) -> str:
    """A source's filters as text; equal filters give equal text."""
    return f"min_characters {min_characters}, keep {keep}"


def text_field(record: Any, column: str, origin: str) -> str:
    """The text of a record.

    Args:
        record: A decoded record.
        column: The field that holds the text.
        origin: Where the record is from, for the error.

    Raises:
        CallError: The record has no such field.
        WorkError: The field does not hold text.
    """
    if not isinstance(record, dict) or column not in record:
        raise missing_field(column, record if isinstance(record, dict) else (), origin)
    text = record[column]
    if not isinstance(text, str):
        raise WorkError(f"{origin}: {column!r} holds {type(text).__name__}, not text")
    return text


def missing_field(column: str, names: Iterable[str], origin: str) -> CallError:
    """The error to raise when ``column`` is not among the fields ``names``."""
    found = ", ".join(map(repr, names)) or "none"
    return CallError(f"{origin} has no field {column!r}; its fields: {found} (set the source's column)")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
