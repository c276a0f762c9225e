"""One line of the table: what was measured, and its target."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from benchmarks.rounds import Spread


@dataclass(frozen=True)
class Target:
    """The target of a measured value.

    Args:
        bound: Bound in the unit of the value.
        sense: Whether the value should be at least or at most the bound.
    """

    bound: float
    sense: Literal["at least", "at most"]

    def reached(self, value: float) -> bool:
        """Whether ``value`` meets the target."""
        return value >= self.bound if self.sense == "at least" else value <= self.bound


@dataclass(frozen=True)
class Result:
    """A measured value.

    Args:
        row: Name of the row, as ``--rows`` takes it.
        what: What was measured.
        value: The value over the rounds.
        unit: ``x`` for a ratio, ``%``, ``s``, ``ms`` or empty.
        target: The target, if there is one.
        figures: The values that were compared, by name.
        figure_unit: Unit of ``figures``.
    """

    row: str
    what: str
    value: Spread
    unit: str = "x"
    target: Target | None = None
    figures: dict[str, Spread] = field(default_factory=dict)
    figure_unit: str = ""

    @property
    def measured(self) -> str:
        """``1.84 x (1.79 to 1.90)``."""
        value = self.value
        spread = "" if value.least == value.most else f" ({_short(value.least)} to {_short(value.most)})"
        return f"{_short(value.median)}{self._of_unit}{spread}"

    @property
    def asked(self) -> str:
        """The target as text, ``at least 1.8 x``; empty without one."""
        return "" if self.target is None else f"{self.target.sense} {self.target.bound:g}{self._of_unit}"

    @property
    def verdict(self) -> str:
        """``reached`` or ``not reached``; empty without a target."""
        if self.target is None:
            return ""
        return "reached" if self.target.reached(self.value.median) else "not reached"

    @property
    def contenders(self) -> str:
        """The median of each of ``figures`` as text."""
        return ", ".join(f"{name} {_short(spread.median)} {self.figure_unit}" for name, spread in self.figures.items())

    @property
    def _of_unit(self) -> str:
        return f" {self.unit}" if self.unit else ""

    def values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "asked": self.asked, "verdict": self.verdict}


@dataclass(frozen=True)
class Skipped:
    """Something that was not measured.

    Args:
        row: Name of the row.
        what: The part of the row that was skipped, or ``the row``.
        why: The reason.
    """

    row: str
    what: str
    why: str

    def values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "verdict": "skipped"}


def _short(value: float) -> str:
    """Three significant digits; all digits from 100 up; four decimals just below 1."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4f}".rstrip("0").rstrip(".") if 0.99 < value < 1 else f"{value:.3g}"
