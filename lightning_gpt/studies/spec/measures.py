"""What can be measured of a run, and how the figures are formatted."""

import math
import re
from dataclasses import dataclass
from difflib import get_close_matches

from lightning_gpt.errors import CallError

SCALAR = "scalar:"
"""The prefix that makes a measure of any other scalar in a run's ``metrics.jsonl``."""
_SMALL = 1e-4
"""Figures nearer to 0 are written with an exponent: as decimals they would look like 0."""


@dataclass(frozen=True)
class Measure:
    """A figure of a run.

    Args:
        tag: Its tag in ``metrics.jsonl``, and its column in ``results.csv``.
        label: Its name in tables and plots.
        unit: The unit of the displayed figure; empty where it has none.
        scale: The factor from the stored figure to the displayed one.
    """

    tag: str
    label: str
    unit: str = ""
    scale: float = 1.0

    @property
    def title(self) -> str:
        """The label with the unit in brackets."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def suffix(self) -> str:
        """The unit as it follows a figure, with the space before it."""
        return f" {self.unit}" if self.unit else ""

    @property
    def is_time(self) -> bool:
        """Whether it depends on what else the machine was doing."""
        return self.tag in _TIMES

    def text(self, value: float | None, half_width: float | None = None) -> str:
        """``value`` to four significant digits, with ± ``half_width`` where there is one; a dash for None."""
        if value is None:
            return "–"
        shown = value * self.scale
        if not half_width:
            return number_text(shown)
        if 0 < abs(shown) < _SMALL:
            return f"{number_text(shown)} ± {half_width * self.scale:.2g}"
        decimals = _decimals(shown)
        return f"{shown:,.{decimals}f} ± {half_width * self.scale:,.{decimals}f}"

    def change_text(self, difference: float, half_width: float) -> str:
        """A difference as displayed, with its sign, unit and interval: ``+0.120 nats [0.052, 0.188]``.

        It has the digits that its error warrants: two of the half width, three where the first of them is 1.
        """
        shown, half = difference * self.scale, half_width * self.scale
        if 0 < abs(shown) < _SMALL and 0 < half < _SMALL:
            return f"{shown:+.3g}{self.suffix} [{shown - half:.3g}, {shown + half:.3g}]"
        decimals = _decimals_of_error(half) if half else _decimals(shown)
        ends = "" if half == 0 else f" [{shown - half:,.{decimals}f}, {shown + half:,.{decimals}f}]"
        return f"{shown:+,.{decimals}f}{self.suffix}{ends}"


def number_text(value: float) -> str:
    """A number to four significant digits; whole numbers in full."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) < _SMALL:
        return f"{value:.3g}"
    return f"{value:,.{_decimals(value)}f}"


def _decimals(value: float) -> int:
    if value == 0 or not math.isfinite(value):
        return 3
    return max(0, min(7, 3 - math.floor(math.log10(abs(value)))))


def _decimals_of_error(error: float) -> int:
    """So many that an error has two significant digits, or three where the first is 1."""
    exponent = math.floor(math.log10(error))
    return max(0, min(7, (2 if error < 2 * 10.0**exponent else 1) - exponent))


_MEASURES = {
    measure.tag: measure
    for measure in (
        Measure("val/loss", "validation loss", "nats"),
        Measure("val/perplexity", "validation perplexity"),
        Measure("val/bits_per_byte", "validation bits per byte"),
        Measure("test/loss", "test loss", "nats"),
        Measure("test/perplexity", "test perplexity"),
        Measure("test/bits_per_byte", "test bits per byte"),
        Measure("train/loss", "last training loss", "nats"),
        Measure("train/perplexity", "last training perplexity"),
        Measure("train/grad_norm", "last gradient norm"),
        Measure("train/lr", "last learning rate"),
        Measure("train/tokens_per_second", "last speed", "tokens/s"),
        Measure("initial/loss", "validation loss at step 0", "nats"),
        Measure("initial/uniform_loss", "ln|V|", "nats"),
        Measure("cost/step_seconds", "step time", "ms", 1e3),
        Measure("cost/tokens_per_second", "speed", "tokens/s"),
        Measure("cost/peak_memory_mb", "peak memory", "MB"),
        Measure("cost/parameters", "parameters"),
        Measure("wall_seconds", "wall time", "s"),
    )
}
KNOWN = tuple(_MEASURES)
"""The measures that every run has; those of ``test/`` are measured by a second process, where asked for."""

_TIMES = ("cost/step_seconds", "cost/tokens_per_second", "train/tokens_per_second", "wall_seconds")
_DEPTH = re.compile(r"layers/(\w+)/layer_\d\d")


def measure(name: str) -> Measure:
    """The measure called ``name``.

    Raises:
        CallError: ``name`` is neither a known measure, nor a layer diagnostic, nor ``scalar:TAG``.
    """
    if name in _MEASURES:
        return _MEASURES[name]
    if name.startswith(SCALAR) and len(name) > len(SCALAR):
        return Measure(name, name.removeprefix(SCALAR))
    if _DEPTH.fullmatch(name):
        return Measure(name, name.removeprefix("layers/").replace("_", " ").replace("/", ", "))
    close = get_close_matches(name, KNOWN, n=1, cutoff=0.6)
    meant = f" (did you mean {close[0]}?)" if close else ""
    raise CallError(
        f"unknown measure {name!r}{meant}; known are {', '.join(KNOWN)}, layers/NAME/layer_NN, and {SCALAR}TAG for any "
        f"other scalar of the run"
    )
