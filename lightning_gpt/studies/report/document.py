"""The blocks of a report, independent of its format."""

from collections.abc import Callable
from dataclasses import dataclass, field

from lightning_gpt.studies.report.chart import Chart


@dataclass(frozen=True)
class Heading:
    """The heading of a section."""

    text: str


@dataclass(frozen=True)
class Lead:
    """The paragraph that answers the study's question."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Findings:
    """Sentences that state what was found; the report repeats the most important one at its top.

    Args:
        sentences: What was found.
        answer: The most important of it in short, for the report's first paragraph too; empty where it answers nothing.
    """

    sentences: list[str]
    answer: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under a header.

    Args:
        header: The columns' titles.
        rows: The cells of each row, one per column.
        caption: What it shows.
        theirs: The numbers, from 0, of the columns that hold published figures of others.
        keys: How many columns, from the first, name a row; each part of a table that is too wide for a page has them.
    """

    header: list[str]
    rows: list[list[str]]
    caption: str = ""
    theirs: frozenset[int] = field(default_factory=frozenset)
    keys: int = 1


@dataclass(frozen=True)
class Picture:
    """A plot, written as PNG and SVG with its numbers as CSV.

    Args:
        name: The name of its files.
        chart: The plot.
        caption: What it shows; also the text for readers who cannot see the picture.
    """

    name: str
    chart: Chart
    caption: str


Written = Heading | Lead | Text | Findings | Table | Picture


@dataclass(frozen=True)
class Tested:
    """Blocks that state the outcome of tests: they are written when all tests of the report are known.

    Args:
        p: The tests' p-values.
        write: Makes the blocks from the p-values as corrected over the whole report, and the number of its tests.
    """

    p: list[float]
    write: Callable[[list[float], int], list[Written]]


Block = Written | Tested
