"""Runs a lesson (a notebook without outputs) in this process and writes it as a page with its outputs.

No Jupyter is needed: the cells are plain Python, run in order in one namespace, as the tests run them too.
"""

import base64
import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt

from lightning_gpt.lessons import is_short


@dataclass(frozen=True)
class Cell:
    """A cell that was run.

    Args:
        kind: ``markdown`` or ``code``.
        source: Its text.
        printed: What it printed.
        pictures: The figures that it made, as PNG.
    """

    kind: str
    source: str
    printed: str = ""
    pictures: tuple[bytes, ...] = ()


def run(notebook: Path, solved: bool = False) -> list[Cell]:
    """Run the cells of a notebook in the current folder.

    Args:
        notebook: The ``.ipynb`` file.
        solved: Whether exercises are replaced by their solutions, which the metadata of their cells holds.
    """
    plt.switch_backend("agg")
    names: dict[str, object] = {"__name__": notebook.stem}
    return [_run(cell, notebook, names, solved) for cell in json.loads(notebook.read_text())["cells"]]


def _run(cell: dict, notebook: Path, names: dict[str, object], solved: bool) -> Cell:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return Cell("markdown", source)
    code = "".join(cell["metadata"].get("solution", cell["source"])) if solved else source
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, f"{notebook.name}:{cell['id']}", "exec"), names)
    pictures = []
    for number in plt.get_fignums():
        picture = io.BytesIO()
        plt.figure(number).savefig(picture, format="png", dpi=90)
        pictures.append(picture.getvalue())
    plt.close("all")
    return Cell("code", source, printed.getvalue(), tuple(pictures))


def page(notebook: Path) -> str:
    """A lesson with its outputs, as Markdown; pictures are in it."""
    parts = []
    for cell in run(notebook):
        if cell.kind == "markdown":
            parts.append(cell.source.replace(".ipynb)", ".md)"))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        if cell.printed:
            parts.append(f"```text\n{cell.printed.rstrip()}\n```")
        for picture in cell.pictures:
            parts.append(f"![output](data:image/png;base64,{base64.b64encode(picture).decode()})")
    if is_short():
        parts.insert(1, "> The outputs on this page are of few steps: they are not those that the text speaks of.")
    return "\n\n".join(parts) + "\n"
