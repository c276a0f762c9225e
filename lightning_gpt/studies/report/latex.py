r"""The tables of a report as LaTeX, with the rules of the package ``booktabs``."""

import re
import textwrap
from collections.abc import Iterator, Sequence

from lightning_gpt.studies.report.document import Heading, Table, Written

_ROWS = 40
"""A page holds so many rows."""
_TITLE, _WORDS = 12, 28
"""Titles and columns of words are broken into lines of so many letters."""
_TEXT, _LETTER, _GAP = 345, 3.75, 8
"""The width of the text of LaTeX's article, and of a letter of \\footnotesize and a gap between columns, in points."""
_OPERATORS = "pm dagger cdot times le ge Vert surd infty"
_GREEK = "Delta Sigma alpha beta gamma eta lambda mu rho sigma tau"
_SIGNS = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "−": "$-$",
    **dict(zip("±†·×≤≥‖√∞", (rf"$\{name}$" for name in _OPERATORS.split()), strict=True)),
    **dict(zip("ΔΣαβγηλμρστ", (rf"$\{name}$" for name in _GREEK.split()), strict=True)),
    "²": "$^2$",
    "³": "$^3$",
    "ᵀ": r"$^{\top}$",
}
_HEAD = r"""% The tables of {title}. In the preamble: \usepackage{{booktabs}}
% In a paper of two columns, table* spans both. Letters beyond ASCII that are left need XeLaTeX or LuaLaTeX.
"""


def to_latex(title: str, blocks: Sequence[Written]) -> str:
    r"""Each table as a ``table`` of its own with caption and label (``tab:1``, ``tab:2``, …)."""
    heading, tables = "", []
    for block in blocks:
        if isinstance(block, Heading):
            heading = block.text
        elif isinstance(block, Table):
            tables += list(_pages(block, heading))
    numbered = (_table(table, caption, number) for number, (table, caption) in enumerate(tables, start=1))
    return _HEAD.format(title=title) + "\n" + "\n".join(numbered)


def _pages(table: Table, heading: str) -> Iterator[tuple[Table, str]]:
    """The table in parts of no more rows than a page holds, with their captions."""
    said = table.caption
    for first in range(0, max(1, len(table.rows)), _ROWS):
        caption = f"{heading}. {said}" if heading and not said.startswith(heading) else said
        yield Table(table.header, table.rows[first : first + _ROWS]), caption
        said = f"{heading}, continued."


def _table(table: Table, caption: str, number: int) -> str:
    columns = "l" + "r" * (len(table.header) - 1)
    size = "footnotesize" if _points(table) <= _TEXT else "scriptsize"
    header = " & ".join(_lines(text, _TITLE, columns[place], "b") for place, text in enumerate(table.header))
    rows = [
        " & ".join(_lines(text, _WORDS, columns[place], "t") for place, text in enumerate(row)) + r" \\"
        for row in table.rows
    ]
    body = "\n".join(rows)
    return rf"""\begin{{table}}
\centering\{size}\setlength{{\tabcolsep}}{{4pt}}
\caption{{{_escaped(caption)}}}
\label{{tab:{number}}}
\begin{{tabular}}{{@{{}}{columns}@{{}}}}
\toprule
{header} \\
\midrule
{body}
\bottomrule
\end{{tabular}}
\end{{table}}
"""


def _points(table: Table) -> float:
    """About the width of the table: that of the longest line of each column, and the gaps between them."""
    titles = ([len(line) for line in _wrapped(text, _TITLE)] for text in table.header)
    cells = ([len(line) for row in table.rows for line in _wrapped(row[n], _WORDS)] for n in range(len(table.header)))
    longest = (max([*title, *cell], default=0) for title, cell in zip(titles, cells, strict=True))
    return _LETTER * sum(longest) + _GAP * (len(table.header) - 1)


def _wrapped(text: str, most: int) -> list[str]:
    return textwrap.wrap(text, most, break_long_words=False, break_on_hyphens=False)


def _lines(text: str, most: int, side: str, place: str) -> str:
    """``text``, in lines of a small table of its own where it is long."""
    if len(text) <= most:
        return _escaped(text)
    lines = _wrapped(text, most)
    if len(lines) == 1:
        return _escaped(text)
    inner = r"\\".join(map(_escaped, lines))
    return rf"\begin{{tabular}}[{place}]{{@{{}}{side}@{{}}}}{inner}\end{{tabular}}"


def _escaped(text: str) -> str:
    """``text`` with LaTeX's special characters escaped and signs that its fonts lack as mathematics."""
    signs = "".join(_SIGNS.get(letter, letter) for letter in text)
    # a minus sign rather than a hyphen before a number; a bracket after \\ would be read as a length
    return re.sub(r"(^|[ [])-(?=[\d.])", r"\1$-$", signs).replace("[", "{[}")
