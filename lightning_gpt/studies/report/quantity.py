"""What a plot's axis may be: a measure, an axis of the grid, a key of the configuration, or a product of such."""

from dataclasses import dataclass
from typing import Any

from lightning_gpt.errors import CallError
from lightning_gpt.studies.run.result import Result
from lightning_gpt.studies.spec.cells import Cell, value_at
from lightning_gpt.studies.spec.measures import SCALAR, measure
from lightning_gpt.studies.spec.study import Study


@dataclass(frozen=True)
class Quantity:
    """A number of every finished cell.

    Args:
        text: As it is written in the study: ``cost/step_seconds``, ``n_layer``, ``n_layer * block_size * dim``.
    """

    text: str

    @property
    def factors(self) -> list[str]:
        """What is multiplied."""
        return [factor.strip() for factor in self.text.split("*")]

    @property
    def title(self) -> str:
        """For an axis of a plot."""
        return measure(self.text).title if _is_measure(self.text) else " · ".join(self.factors)

    @property
    def label(self) -> str:
        """For a sentence."""
        return measure(self.text).label if _is_measure(self.text) else " · ".join(self.factors)

    def check(self, study: Study) -> None:
        """Refuse a name that is no measure, no axis and no key of the configuration."""
        for factor in self.factors:
            if not _is_measure(factor) and any(_setting(cell, factor) is None for cell in study.cells):
                raise CallError(
                    f"report: {factor!r} is no measure, no axis of the grid ({', '.join(study.axes.values())}) and no "
                    f"model or data option that the study's config sets"
                )

    def of(self, result: Result) -> float | None:
        """The number of a cell, as it is shown; None where it has none."""
        product = 1.0
        for factor in self.factors:
            value = result.value(factor) if _is_measure(factor) else _setting(result.cell, factor)
            if not isinstance(value, int | float):
                return None
            product *= value
        return product * measure(self.text).scale if _is_measure(self.text) else product


def _is_measure(name: str) -> bool:
    return "/" in name or name.startswith(SCALAR) or name == "wall_seconds"


def _setting(cell: Cell, name: str) -> Any:
    """The cell's value of a key: dotted in full, or its last part under the model's or the data's options."""
    for prefix in ("", "model.init_args.", "model.init_args.optimization.", "data.", "trainer."):
        value = value_at(cell.config, prefix + name)
        if value is not None:
            return value
    return None
