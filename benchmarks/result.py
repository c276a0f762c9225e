"""One line of the table: what was asked, and what was measured."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from benchmarks.rounds import Spread


@dataclass(frozen=True)
class Target:
    """What a figure is asked to be.

    Args:
        bound: In the figure's unit.
        sense: Whether it is asked to be at least or at most that.
    """

    bound: float
    sense: Literal["at least", "at most"]

    def reached(self, value: float) -> bool:
        """Whether ``value`` is as asked."""
        return value >= self.bound if self.sense == "at least" else value <= self.bound


@dataclass(frozen=True)
class Result:
    """A measured figure.

    Args:
        row: The row's name, as ``--rows`` takes it.
        what: What was measured.
        value: The figure over the rounds.
        unit: ``x`` for a ratio, ``%``, ``s``, ``ms`` or nothing.
        target: What it is asked to be.
        figures: What each contender did, by name.
        figure_unit: Unit of those.
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
        """``at least 1.8 x``, or nothing."""
        return "" if self.target is None else f"{self.target.sense} {self.target.bound:g}{self._of_unit}"

    @property
    def verdict(self) -> str:
        """``reached``, ``not reached``, or nothing where nothing is asked."""
        if self.target is None:
            return ""
        return "reached" if self.target.reached(self.value.median) else "not reached"

    @property
    def contenders(self) -> str:
        """Each contender's median, in words."""
        return ", ".join(f"{name} {_short(spread.median)} {self.figure_unit}" for name, spread in self.figures.items())

    @property
    def _of_unit(self) -> str:
        return f" {self.unit}" if self.unit else ""

    def values(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**asdict(self), "asked": self.asked, "verdict": self.verdict}


@dataclass(frozen=True)
class Skipped:
    """What was not measured.

    Args:
        row: The row's name.
        what: What was left out of it, or the whole of it.
        why: The reason.
    """

    row: str
    what: str
    why: str

    def values(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**asdict(self), "verdict": "skipped"}


def _short(value: float) -> str:
    """Three significant digits, and thousands in full."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4f}".rstrip("0").rstrip(".") if 0.99 < value < 1 else f"{value:.3g}"
