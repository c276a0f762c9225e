"""The vocabularies that a study's cells share, trained once instead of in every cell."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_gpt.studies.spec.cells import Cell, value_at, with_keys

_SIZE = "data.tokenizer"
_DECIDES = ("data.sources", "data.val_share", "data.test_share", "data.split_by", _SIZE)
"""The options that decide the trained vocabulary: those of the training documents, and its size."""


@dataclass(frozen=True)
class SharedVocabularies:
    """Finds the vocabulary of each cell of a study.

    Args:
        folder: The study's folder.
    """

    folder: Path

    def place(self, cell: Cell) -> Path | None:
        """The folder of the cell's vocabulary; None where the cell trains no vocabulary."""
        size = value_at(cell.config, _SIZE)
        if not isinstance(size, int) or isinstance(size, bool) or value_at(cell.config, "data.prepared"):
            return None
        decides = json.dumps([value_at(cell.config, key) for key in _DECIDES], sort_keys=True)
        return self.folder / "vocabularies" / hashlib.sha256(decides.encode()).hexdigest()[:8]

    def to_train(self, cells: Sequence[Cell]) -> dict[Path, dict[str, Any]]:
        """The folders that are still empty, each with the configuration of a cell that needs its vocabulary."""
        wanted: dict[Path, dict[str, Any]] = {}
        for cell in cells:
            place = self.place(cell)
            if place is not None and _file(place) is None:
                wanted.setdefault(place, cell.config)
        return wanted

    def run_config(self, cell: Cell) -> dict[str, Any]:
        """The cell's configuration, with the vocabulary's size replaced by the file of the shared vocabulary."""
        place = self.place(cell)
        file = None if place is None else _file(place)
        return cell.config if file is None else with_keys(cell.config, {_SIZE: str(file.resolve())})


def _file(place: Path) -> Path | None:
    return next(iter(sorted(place.glob("*.tiktoken"))), None)
