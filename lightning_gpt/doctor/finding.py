"""What a check found, and running checks so that none of them can end the others."""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Literal

from lightning_gpt.errors import CallError, WorkError


@dataclass(frozen=True)
class CheckResult:
    """One line of the table."""

    level: Literal["ok", "warning", "problem"]
    text: str
    """What was found."""
    remedy: str = ""
    """What to do; empty if nothing is to be done, or if the text says it."""


Check = Callable[[], Iterator[CheckResult]]
"""A check yields what it finds. It may raise anything: that becomes a finding too."""


def ok(text: str) -> CheckResult:
    """Nothing is to be done."""
    return CheckResult("ok", text)


def warning(text: str, remedy: str) -> CheckResult:
    """Work is possible, but slower or less safe than it could be."""
    return CheckResult("warning", text, remedy)


def problem(text: str, remedy: str = "") -> CheckResult:
    """Something will fail."""
    return CheckResult("problem", text, remedy)


def examine(checks: Mapping[str, Check]) -> Iterator[tuple[str, CheckResult]]:
    """Run checks one after the other; yields the name of each and what it found, as soon as it is known."""
    for name, check in checks.items():
        found: list[CheckResult] = []
        # what libraries print while they are imported and tried out is not of the table
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            try:
                found.extend(check())
            except (Exception, SystemExit) as error:
                found.append(failed(error))
        yield from ((name, finding) for finding in found)


def failed(error: BaseException, remedy: str = "") -> CheckResult:
    """An error that ended a check, as a finding.

    Args:
        error: What was raised.
        remedy: What to do if the error is, or was raised from, a message to the user.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, CallError | WorkError):
        cause = cause.__cause__
    if cause is not None:
        return problem(_one_line(str(cause)), remedy)
    if isinstance(error, ImportError):
        return problem(
            f"this check needs a package that is missing or broken: {_one_line(str(error))}",
            "run pip install -e . in the checkout",
        )
    said = _one_line(f"{type(error).__name__}: {error}")
    return problem(f"this check failed: {said}", "report it as a bug, with this line")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
