"""What the lessons (``docs/lessons``) use besides the package: exercises that check themselves, and a short setting."""

import os
from collections.abc import Callable
from typing import Any

import torch

SHORT = "LIGHTNING_GPT_LESSONS"
"""Environment variable that, set to ``short``, makes the lessons do a twentieth of their work."""


def is_short() -> bool:
    """Whether the lessons are to do a twentieth of their work."""
    return os.environ.get(SHORT) == "short"


def steps(count: int) -> int:
    """``count`` optimizer steps or documents; a twentieth of it, and 2 at least, in the short setting."""
    return max(2, count // 20) if is_short() else count


def check(answer: Any, right: object | Callable[[Any], bool], hint: str) -> None:
    """Print whether the answer to an exercise is right.

    Args:
        answer: The answer; ``...`` where there is none yet.
        right: The right one (numbers and tensors up to 1e-4 of their size), or a function that says whether one is.
        hint: What helps if it is wrong.
    """
    if answer is ...:
        print("Replace ... by your answer, and run the cell again.")
    else:
        print("Right." if _is_right(answer, right) else f"Not yet. {hint[:1].upper()}{hint[1:]}.")


def _is_right(answer: Any, right: object | Callable[[Any], bool]) -> bool:
    try:
        if callable(right):
            return bool(right(answer))
        if isinstance(right, torch.Tensor | float):
            given, wanted = (torch.as_tensor(value).detach().double() for value in (answer, right))
            return given.shape == wanted.shape and torch.allclose(given, wanted, rtol=1e-4, atol=1e-6)
        return bool(list(answer) == list(right) if isinstance(right, tuple) else answer == right)
    except Exception:  # an answer may be anything, and one of another kind is a wrong one
        return False
