"""The base classes of document sources, and the checks that sources share."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from lightning_gpt.data.split import SplitName
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.options import Count, Positive, Range, check_options, shown

NamedFile = tuple[str, Path]
"""A file's name, relative to the path that was given for it, and its path on this machine."""


@dataclass(frozen=True)
class Document:
    """A text and its origin, such as ``notes.jsonl, line 17``."""

    text: str
    origin: str
    split: SplitName | None = None
    """The split that its source assigns it to; None to let the shares decide."""


class SourceBase(ABC):
    """Documents in a fixed order, numbered from 0, and how training uses them.

    The sources that a config can name derive from :class:`Source`; a source in a prepared folder derives from this
    class only.
    """

    default_name = "source"
    """The name of a source that is given none."""

    countable = True
    """Whether it is cheap enough to read it to its end before training, in order to count its tokens."""

    named_splits: tuple[SplitName, ...] = ()
    """The splits that its documents name themselves; those documents come first."""

    def __init__(
        self,
        name: str | None = None,
        weight: float | None = None,
        max_tokens: int | None = None,
        max_passes: int | None = None,
    ) -> None:
        self.name = name or self.default_name
        self.weight = weight
        self.max_tokens = max_tokens
        self.max_passes = max_passes

    @abstractmethod
    def documents(self, start: int = 0) -> Iterator[Document]:
        """All documents from number ``start`` on, including those that :meth:`accepts` rejects.

        Several of these iterators may be open at once, and one may be continued in another thread.
        """

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

    places: tuple[str, ...] = ()
    """The :meth:`arguments` that say where its files are, rather than what is read of them."""

    def __init__(
        self,
        name: str | None = None,
        weight: Positive | None = None,
        max_tokens: Count | None = None,
        min_characters: Annotated[int, Range(0, 10**15)] = 0,
        keep: Callable[[str], bool] | None = None,
        max_passes: Count | None = None,
    ) -> None:
        check_options(Source.__init__, locals(), f"source {shown(name or self.default_name)}: ")
        super().__init__(name, weight, max_tokens, max_passes)
        self.min_characters = min_characters
        self.keep = keep

    def check(self) -> None:
        """Raise a CallError if its documents do not exist, as far as that is known without reading them."""

    def arguments(self) -> dict[str, Any]:
        """The arguments that decide its documents, as JSON values. A subclass adds its own to them."""
        keep = None if self.keep is None else f"{self.keep.__module__}.{self.keep.__qualname__}"
        return {"min_characters": self.min_characters, "keep": keep}

    def input_files(self) -> list[NamedFile] | None:
        """The files that it reads, in this order; empty if it reads none, None if they are not on this machine."""
        return []

    @property
    def filter_identity(self) -> str:
        """The filters, as text."""
        return describe_filters(**Source.arguments(self))

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
