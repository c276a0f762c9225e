"""Lines, power laws and saturating laws of a few points, and which of them the points allow."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize

from lightning_gpt.studies.report.estimates import LEVEL, t_quantile

Kind = Literal["linear", "power", "saturating"]

_TWENTIETH = 2 * math.log(20)
"""A form whose AICc is this much above the best form's is a twentieth as likely."""

POINTS_TO_TELL = 6
"""With fewer points no form is ruled out: fitted to three or four points, a true form loses too often."""

_EXACT = 1e-9
"""Relative residuals below this are rounding."""
_Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class PowerLaw:
    """``y = factor · x^exponent``, by least squares on the logarithms.

    Args:
        exponent: The exponent.
        factor: The factor.
        half_width: Half the width of the exponent's confidence interval.
        df: The degrees of freedom of its residuals.
    """

    exponent: float
    factor: float
    half_width: float
    df: int

    def half_width_at(self, level: float) -> float:
        """Half the width of the exponent's interval that leaves out the true one at a rate of ``level``."""
        return self.half_width * t_quantile(self.df, level) / t_quantile(self.df, LEVEL)


def fit_power(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """The power law through the points; None for fewer than three different ``x``, or any value of 0 or less."""
    if len(set(x)) < 3 or min([*x, *y]) <= 0:
        return None
    xs, ys = np.log(np.asarray(x, dtype=np.float64)), np.log(np.asarray(y, dtype=np.float64))
    from_mean, df = xs - xs.mean(), len(xs) - 2
    squares = float(from_mean @ from_mean)
    exponent = float(from_mean @ (ys - ys.mean())) / squares
    intercept = float(ys.mean() - exponent * xs.mean())
    residual = float(((ys - intercept - exponent * xs) ** 2).sum())
    half_width = t_quantile(df, LEVEL) * math.sqrt(residual / df / squares)
    return PowerLaw(exponent, math.exp(intercept), half_width, df)


@dataclass(frozen=True)
class Form:
    """A form fitted to points, by least squares on the logarithms of y: errors are taken as relative.

    Args:
        kind: ``linear``: a + b·x; ``power``: b·x^p; ``saturating``: a + b·x^p, with p of either sign.
        a: The offset; 0 for a power law.
        b: The factor.
        p: The exponent; 1 for a line.
        half_width: Half the width of the exponent's confidence interval; 0 for a line.
        error: The root mean square of the relative residuals.
        aicc: Akaike's criterion, corrected for few points (Hurvich & Tsai 1989).
        furthest: The largest relative distance between the form and the mean of y at one x.
    """

    kind: Kind
    a: float
    b: float
    p: float
    half_width: float
    error: float
    aicc: float
    furthest: float

    def at(self, x: float) -> float:
        """The form's value at ``x``."""
        return float(self.a + self.b * x**self.p)


def ruled_out(form: Form, forms: Sequence[Form], n: int) -> bool:
    """Whether a form is less than a twentieth as likely as the best of ``forms``, which were fitted to ``n`` points.

    A saturating law contains the other two; it may be more than is needed, but is not ruled out by them.
    """
    best = min(each.aicc for each in forms)
    return n >= POINTS_TO_TELL and form.kind != "saturating" and form.aicc - best > _TWENTIETH


_SATURATING_FROM = 4
"""A form of three parameters needs this many different x; others need one less."""
_POWERS = (-2.0, -1.0, -0.5, -0.2, 0.3, 0.7, 1.5, 2.0, 3.0)


def fit_forms(x: Sequence[float], y: Sequence[float]) -> list[Form]:
    """The forms that can be fitted, the likeliest first; none for fewer than three x, or for values of 0 or less.

    A saturating law is fitted from four different x and six points on.
    """
    if len(set(x)) < 3 or min([*x, *y]) <= 0:
        return []
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    scales = float(np.exp(np.log(xs).mean())), float(np.exp(np.log(ys).mean()))
    points = xs / scales[0], np.log(ys / scales[1])
    found = [_form("linear", points, scales, _line), _form("power", points, scales, _power)]
    if len(set(x)) >= _SATURATING_FROM and len(x) >= POINTS_TO_TELL:
        found.append(_form("saturating", points, scales, _offset))
    return sorted(found, key=lambda form: form.aicc)


def _line(x: _Array, a: float, b: float) -> _Array:
    return _log(a + b * x)


def _power(x: _Array, b: float, p: float) -> _Array:
    return _log(b * x**p)


def _offset(x: _Array, a: float, b: float, p: float) -> _Array:
    return _log(a + b * x**p)


def _log(values: _Array) -> _Array:
    """The logarithm; far below every point where there is none, so that no fit ends there."""
    logs: _Array = np.log(np.maximum(values, 1e-30))
    return logs


def _starts(kind: Kind, x: _Array, y: _Array) -> list[list[float]]:
    """Where to start: for a fixed exponent, offset and factor by linear least squares with relative errors."""
    if kind == "power":
        slope, intercept = np.polyfit(np.log(x), y, 1)
        return [[math.exp(intercept), float(slope)]]
    starts = []
    for p in (1.0,) if kind == "linear" else _POWERS:
        columns = np.stack([np.ones_like(x), x**p], axis=1) / np.exp(y)[:, None]
        (a, b), *_ = np.linalg.lstsq(columns, np.ones_like(x), rcond=None)
        starts.append([float(a), float(b)] if kind == "linear" else [float(a), float(b), p])
    return starts


def _form(kind: Kind, points: tuple[_Array, _Array], scales: tuple[float, float], law: Callable[..., _Array]) -> Form:
    """The best fit of one form, in the points' own units."""
    x, y = points
    best: tuple[float, _Array, _Array] | None = None
    nearest = sorted(_starts(kind, x, y), key=lambda start: float(((law(x, *start) - y) ** 2).sum()))
    for start in nearest[:2]:
        found = optimize.least_squares(lambda values: law(x, *values) - y, start, x_scale="jac", max_nfev=400)
        squares = 2 * float(found.cost)
        if best is None or squares < best[0]:
            best = squares, found.x, found.jac
    assert best is not None
    squares, values, jacobian = best
    n, parameters = len(x), len(values) + 1  # the errors' own size is one more
    few = 2 * parameters * (parameters + 1) / (n - parameters - 1) if n > parameters + 1 else 0.0
    aicc = n * math.log(max(squares / n, _EXACT**2)) + 2 * parameters + few
    df = n - len(values)
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * (squares / df)
    a, b, p = {"linear": (*values, 1.0), "power": (0.0, *values), "saturating": (*values,)}[kind]
    wide = 0.0 if kind == "linear" else t_quantile(df, LEVEL) * math.sqrt(float(covariance[-1, -1]))
    left = y - law(x, *values)
    furthest = max(abs(math.expm1(float(left[x == each].mean()))) for each in np.unique(x))
    factor = float(b) * scales[1] / scales[0] ** float(p)
    return Form(kind, float(a) * scales[1], factor, float(p), wide, math.sqrt(squares / n), aicc, furthest)
