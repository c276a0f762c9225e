"""The base class of a report's sections."""

from abc import ABC, abstractmethod

from lightning_gpt.studies.report.document import Block
from lightning_gpt.studies.report.results import StudyResults
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
