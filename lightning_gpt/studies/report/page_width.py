"""Tables that fit a page: one that is too wide is written in parts, each with the columns that name its rows."""

from collections.abc import Iterable
from dataclasses import replace

from lightning_gpt.studies.report.document import Heading, Table, Written

_LETTERS = 100
"""The width of a page of A4 in letters of a table's size."""
_GAP = 2
_WRAPPED = 26
"""Columns of words are broken into lines of about so many letters."""


def fitted(blocks: Iterable[Written]) -> list[Written]:
    """The blocks with each table that is too wide for a page in parts; each part has the key columns again."""
    found: list[Written] = []
    heading = ""
    for block in blocks:
        heading = block.text if isinstance(block, Heading) else heading
        found += _parts(block, heading) if isinstance(block, Table) else [block]
    return found


def _parts(table: Table, heading: str) -> list[Written]:
    widths = [_width(table, column) for column in range(len(table.header))]
    groups = _grouped(table, widths, _LETTERS)
    narrowest = max(_LETTERS // 2, sum(widths[: table.keys]) + max(widths))
    # the narrowest page that takes no more parts makes them equally wide
    for letters in range(_LETTERS, narrowest, -2):
        narrower = _grouped(table, widths, letters)
        if len(narrower) > len(groups):
            break
        groups = narrower
    return [
        _part(table, columns, f"{heading}, continued." if number else table.caption)
        for number, columns in enumerate(groups)
    ]


def _grouped(table: Table, widths: list[int], letters: int) -> list[list[int]]:
    """The other columns in groups that fit ``letters`` beside the key columns."""
    room = letters - sum(widths[: table.keys])
    groups: list[list[int]] = [[]]
    for column in range(table.keys, len(widths)):
        if groups[-1] and sum(widths[each] for each in groups[-1]) + widths[column] > room:
            groups.append([])
        groups[-1].append(column)
    return groups


def _part(table: Table, columns: list[int], caption: str) -> Table:
    every = [*range(table.keys), *columns]
    return replace(
        table,
        header=[table.header[each] for each in every],
        rows=[[row[each] for each in every] for row in table.rows],
        caption=caption,
        theirs=frozenset(place for place, each in enumerate(every) if each in table.theirs),
    )


def _width(table: Table, column: int) -> int:
    """The letters that a column needs: its longest word where it is a title or words, its longest figure otherwise."""
    words = max(map(len, table.header[column].split()), default=0)
    cells = max((len(row[column]) for row in table.rows), default=0)
    return max(words, min(cells, _WRAPPED)) + _GAP
