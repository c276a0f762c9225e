"""A report as Markdown, with its pictures in separate files."""

import re
from collections.abc import Mapping, Sequence

from lightning_gpt.studies.report.document import Findings, Heading, Lead, Picture, Table, Text, Written


def to_markdown(title: str, blocks: Sequence[Written], files: Mapping[str, str]) -> str:
    """The text; ``files`` holds the pictures' paths by name, relative to the Markdown file."""
    return "\n\n".join([f"# {_plain(title)}", *(_block(block, files) for block in blocks)]) + "\n"


def _block(block: Written, files: Mapping[str, str]) -> str:
    match block:
        case Heading(text):
            return f"## {_plain(text)}"
        case Lead(text) | Text(text):
            return _plain(text)
        case Findings(sentences):
            return "\n".join(f"- {_plain(sentence)}" for sentence in sentences)
        case Picture(name, _, caption):
            return f"![{_plain(caption)}]({files[name]})\n\n*{_plain(caption)}*"
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    header = [_cell(text) for text in table.header]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' + ' ---: |' * (len(header) - 1)}"]
    lines += [f"| {' | '.join(_cell(text) for text in row)} |" for row in table.rows]
    return (f"{_plain(table.caption)}\n\n" if table.caption else "") + "\n".join(lines)


def _plain(text: str) -> str:
    """``text`` with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_\[\]<>])", r"\\\1", text)


def _cell(text: str) -> str:
    return _plain(text).replace("|", r"\|").replace("\n", " ")
