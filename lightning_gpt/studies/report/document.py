"""What a report is made of, apart from how it is written down."""

from dataclasses import dataclass, field

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Heading:
    """The title of a part."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Findings:
    """Sentences that say what was found; the report gathers them at its top as well."""

    sentences: list[str]


@dataclass(frozen=True)
class Table:
    """Rows under a header.

    Args:
        header: The columns' titles.
        rows: As many texts each as there are columns.
        caption: What it shows.
        theirs: The numbers of the columns that are somebody else's figures.
    """

    header: list[str]
    rows: list[list[str]]
    caption: str = ""
    theirs: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Picture:
    """A plot, written as PNG and SVG.

    Args:
        name: Of its files.
        figure: The plot.
        caption: What it shows; also said where a picture cannot be seen.
    """

    name: str
    figure: Figure
    caption: str


Block = Heading | Text | Findings | Table | Picture
