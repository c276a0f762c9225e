"""The base class of a report's sections."""

from abc import ABC, abstractmethod

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report.document import Block
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.spec.cells import is_number
from lightning_gpt.studies.spec.study import Study


class Section(ABC):
    """A part of a report, made from results; its dataclass fields are the options that a study's YAML may set."""

    def check(self, study: Study) -> None:  # noqa: B027 - not every section has options to check
        """Refuse options that do not suit the study, before anything runs."""

    @abstractmethod
    def blocks(self, results: StudyResults) -> list[Block]:
        """The section's content; empty while there are no figures for it."""


def file_name(*parts: str) -> str:
    """A valid file name made of ``parts``."""
    text = "_".join(parts)
    return "".join(letter if letter.isalnum() or letter in "_-" else "-" for letter in text).strip("-")


def capital(text: str) -> str:
    """``text`` with its first letter in upper case and the rest unchanged."""
    return text[:1].upper() + text[1:]


def numeric_axis(study: Study, name: str, section: str) -> str:
    """The key of the grid's axis called ``name``, by its key or its short name; its values are numbers.

    Raises:
        CallError: The grid has no such axis, or its values are not numbers; ``section`` is named.
    """
    key = next((key for key, short in study.axes.items() if name in (key, short)), "")
    values = study.grid.get(key, ["none"])
    if not all(map(is_number, values)):
        known = ", ".join(short for key, short in study.axes.items() if key in study.grid) or "none"
        raise CallError(f"report: {section}: {name!r} is not a numeric axis; the axes of the grid are {known}")
    return key
