"""The blocks of a report, independent of its format."""

from dataclasses import dataclass, field

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Heading:
    """The heading of a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Findings:
    """Sentences that state what was found; the report repeats them at its top."""

    sentences: list[str]


@dataclass(frozen=True)
class Table:
    """Rows under a header.

    Args:
        header: The columns' titles.
        rows: The cells of each row, one per column.
        caption: What it shows.
        theirs: The numbers, from 0, of the columns that hold published figures of others.
    """

    header: list[str]
    rows: list[list[str]]
    caption: str = ""
    theirs: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Picture:
    """A plot, written as PNG and SVG.

    Args:
        name: The name of its files.
        figure: The plot.
        caption: What it shows; also the text for readers who cannot see the picture.
    """

    name: str
    figure: Figure
    caption: str


Block = Heading | Text | Findings | Table | Picture
