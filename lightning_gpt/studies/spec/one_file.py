"""A study as one file that needs no other: its base configurations and its preset are merged in."""

import re
from pathlib import Path
from typing import Any

import yaml

from lightning_gpt.studies.spec.study import Study
from lightning_gpt.whole_file import write_file

_FILE = "study.yaml"
_FIRST_LINE = (
    "# Written by lightning-gpt study, with base and preset merged in; to run the study again, give it as --config."
)


def write_study(study: Study, folder: Path) -> None:
    """Write the study to ``study.yaml`` in its folder, unless somebody's own file of that name is there."""
    place = folder / _FILE
    if not place.exists() or _is_ours(place):
        write_file(place, study_text(study))


def study_text(study: Study) -> str:
    """The text of a study file without presets: the same cells, measures and report."""
    content: dict[str, Any] = {
        "name": re.sub(r"[^\w-]", "_", study.title)[:100],
        "question": study.question,
        "config": study.config,
        "grid": study.grid,
        "variants": study.variants,
        "seeds": study.seeds,
        "tune": None if study.tune is None else {key: value for key, value in vars(study.tune).items() if value},
        "equal": study.equal,
        "alone": {"steps": study.alone} if study.alone is not None else None,
        "measure": study.measure,
        "reference": None if study.reference is None else vars(study.reference),
        "report": [{name: options} if options else name for name, options in study.report],
    }
    given = {key: value for key, value in content.items() if value or isinstance(value, list)}
    return f"{_FIRST_LINE}\n{yaml.dump(given, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)}"


def _is_ours(file: Path) -> bool:
    return file.is_file() and file.read_text(encoding="utf-8", errors="replace").startswith(_FIRST_LINE)


class _Dumper(yaml.SafeDumper):
    """Writes a value in full wherever it stands: nobody reads aliases easily."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
