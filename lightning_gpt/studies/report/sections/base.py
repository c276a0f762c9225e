"""What a section of a report is."""

from abc import ABC, abstractmethod

from lightning_gpt.studies.report.document import Block
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.spec.study import Study


class Section(ABC):
    """A part of a report, made from results; its fields are the options that a study's YAML may give it."""

    def check(self, study: Study) -> None:  # noqa: B027 - a section without options has nothing to check
        """Refuse options that do not fit the study, before anything runs."""

    @abstractmethod
    def blocks(self, results: StudyResults) -> list[Block]:
        """The section's content; empty where there are no figures for it yet."""


def file_name(*parts: str) -> str:
    """A file's name from words."""
    text = "_".join(parts)
    return "".join(letter if letter.isalnum() or letter in "_-" else "-" for letter in text).strip("-")


def capital(text: str) -> str:
    """``text`` as a sentence begins; names inside it keep their capitals."""
    return text[:1].upper() + text[1:]
