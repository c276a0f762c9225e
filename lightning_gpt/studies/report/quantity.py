"""What a plot can show on an axis: a measure, a grid axis, a configuration key, or a product of these."""

from dataclasses import dataclass
from typing import Any

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.run.result import CellResult
from lightning_gpt.studies.spec.cells import Cell, short_names, value_at
from lightning_gpt.studies.spec.measures import SCALAR, measure
from lightning_gpt.studies.spec.study import Study


@dataclass(frozen=True)
class Quantity:
    """A number that each finished cell has.

    Args:
        text: Its expression in the study: ``cost/step_seconds``, ``n_layer`` or ``n_layer * block_size * dim``.
    """

    text: str

    @property
    def factors(self) -> list[str]:
        """The factors of the product."""
        return [factor.strip() for factor in self.text.split("*")]

    @property
    def title(self) -> str:
        """Its name on a plot's axis."""
        return measure(self.text).title if _is_measure(self.text) else " · ".join(self.factors)

    @property
    def label(self) -> str:
        """Its name in a sentence."""
        return measure(self.text).label if _is_measure(self.text) else " · ".join(self.factors)

    def check(self, study: Study) -> None:
        """Refuse a name that is neither a measure, nor an axis, nor a configuration key."""
        for factor in self.factors:
            if _is_measure(factor):
                measure(factor)
            elif any(_setting(cell, factor) is None for cell in study.cells):
                raise CallError(
                    f"report: {factor!r} is neither a measure, nor an axis of the grid "
                    f"({', '.join(study.axes.values())}), nor a model or data option that the study's config sets"
                )

    def of(self, result: CellResult) -> float | None:
        """The cell's number as displayed; None where it has none."""
        product = 1.0
        for factor in self.factors:
            value = result.value(factor) if _is_measure(factor) else _setting(result.cell, factor)
            if not isinstance(value, int | float):
                return None
            product *= value
        return product * measure(self.text).scale if _is_measure(self.text) else product

    def _measures(self) -> list[str]:
        return [factor for factor in self.factors if _is_measure(factor)]

    def mark(self, results: StudyResults) -> str:
        """``†`` where a factor is a time that cells measured beside others; empty elsewhere."""
        return next((mark for each in self._measures() if (mark := results.mark(each))), "")

    def warning(self, results: StudyResults) -> str:
        """What :meth:`mark` means, as a sentence with a space before it; empty where there is no mark."""
        return next((warning for each in self._measures() if (warning := results.warning(each))), "")

    def untested(self, results: StudyResults) -> str:
        """Why nothing is concluded from it; empty where it may be."""
        return next((why for each in self._measures() if (why := results.untested(each))), "")


def _is_measure(name: str) -> bool:
    return "*" not in name and ("/" in name or name.startswith(SCALAR) or name == "wall_seconds")


def _setting(cell: Cell, name: str) -> Any:
    """The cell's value on an axis, by its key or short name, or at a key of its config.

    Such a key is a full dotted one, or the name of a model, optimization, data or trainer option.
    """
    for key, short in short_names([*cell.settings]).items():
        if name in (key, short):
            return cell.settings[key]
    for prefix in ("", "model.init_args.", "model.init_args.optimization.", "data.", "trainer."):
        value = value_at(cell.config, prefix + name)
        if value is not None:
            return value
    return None
