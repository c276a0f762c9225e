"""Types and ranges of options, written in a signature beside the option.

``warmup: Annotated[float, Range(0, below=1)] = 0.05`` states what the option may be. ``--help`` shows it, and
:func:`check_options` refuses every other value.
"""

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from lightning_gpt.errors import CallError, shortened

_LONGEST_SHOWN = 80
"""Characters of a wrong value that a message shows."""
_LARGEST_WHOLE = 2**53
"""Beyond it, floating point does not hold every whole number, and torch takes no whole number beyond 2^63."""
_LARGEST = 3.4e38
"""The largest number in single precision."""
_IF_TOO_LARGE = f", and at most {_LARGEST:g} (or {_LARGEST_WHOLE:,} without a decimal point)"


@dataclass(frozen=True)
class Range:
    """The numbers that an option may be; written as ``Annotated[int, Range(1, 1024)]``.

    Args:
        least: The smallest number allowed.
        most: The largest number allowed.
        above: All allowed numbers are above it.
        below: All allowed numbers are below it.
    """

    least: float | None = None
    most: float | None = None
    _: KW_ONLY
    above: float | None = None
    below: float | None = None

    def __contains__(self, number: float) -> bool:
        return (
            (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def __repr__(self) -> str:
        """The range in words, which is how ``--help`` and messages show it."""
        if self.least is not None and self.most is not None:
            return f"from {self.least:,} to {self.most:,}"
        words = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        return " and ".join(f"{word} {bound:,}" for word, bound in words if bound is not None)


Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(0, 1)]
ShareBelowOne = Annotated[float, Range(0, below=1)]
ShareAboveZero = Annotated[float, Range(above=0, most=1)]

# The upper bounds are far above every sensible value. They keep a slip of the keyboard from exhausting the machine.
Depth = Annotated[int, Range(1, 10_000)]
"""Layers of a model."""
Heads = Annotated[int, Range(1, 2**16)]
Width = Annotated[int, Range(1, 2**20)]
"""Dimensions of a vector."""
Length = Annotated[int, Range(1, 2**24)]
"""Tokens of a sequence."""
VocabSize = Annotated[int, Range(1, 2**22)]
TokenId = Annotated[int, Range(0, 2**22 - 1)]
Rows = Annotated[int, Range(1, 2**20)]
"""Sequences of a batch."""
Index = Annotated[int, Range(0, 10**6)]
"""A place in a list, counted from 0."""
Processes = Annotated[int, Range(1, 1024)]
"""Processes or threads on one machine."""
Count = Annotated[int, Range(1, 10**15)]
"""Steps, passes or tokens of a whole training run, which may lie beyond its end."""
Seed = Annotated[int, Range(0, 2**32 - 1)]


def check_options(function: Callable[..., Any], values: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse values that the signature of ``function`` does not allow.

    A constructor calls it first, with ``locals()``; a dataclass in ``__post_init__``, with its ``__init__`` and
    ``vars(self)``.

    Args:
        function: The function or constructor whose parameters are the options.
        values: Values by name; those that are not parameters are ignored.
        prefix: What messages put before an option's name, for example ``muon.``.

    Raises:
        CallError: A value is of another type than the parameter's annotation says, or out of its range.
    """
    for name, parameter in inspect.signature(function).parameters.items():
        if name in values:
            check_option(f"{prefix}{name}", values[name], parameter.annotation)


def check_option(name: str, value: Any, hint: Any) -> None:
    """Refuse ``value`` unless the annotation ``hint`` allows it.

    Raises:
        CallError: The message names the option, the value and what is allowed.
    """
    if not _allows(hint, value):
        large = isinstance(value, int | float) and _LARGEST_WHOLE < abs(value) < math.inf
        only_large = large and _allows(hint, _LARGEST if value > 0 else -_LARGEST)
        raise CallError(f"{name} is {shown(value)}; it must be {_words(hint)}{_IF_TOO_LARGE if only_large else ''}")


def shown(value: Any) -> str:
    """A value as messages show it, cut if it is long."""
    try:
        return shortened(repr(value), _LONGEST_SHOWN)
    except ValueError:  # Python does not write such numbers out
        return f"a number of more than {sys.get_int_max_str_digits():,} digits"


def _allows(hint: Any, value: Any) -> bool:
    """Whether an annotation allows a value.

    Lists and tuples may stand for each other, because YAML has one of them only. A whole number is a number; true,
    false, infinity and not-a-number are not.
    """
    kind, inner = get_origin(hint), get_args(hint)
    if hint in (Any, inspect.Parameter.empty):
        return True
    if kind is Annotated:
        ranges = (each for each in inner[1:] if isinstance(each, Range))
        return _allows(inner[0], value) and all(value in each for each in ranges)
    if kind in (Union, UnionType):
        return any(_allows(each, value) for each in inner)
    if kind is Literal:
        return value in inner
    if kind in (list, tuple):
        if not isinstance(value, list | tuple):
            return False
        hints = inner if kind is tuple and inner[-1] is not ... else inner[:1] * len(value)
        return len(value) == len(hints) and all(map(_allows, hints, value))
    if hint in (int, float) and isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= _LARGEST_WHOLE
    if hint is float:
        return isinstance(value, float) and abs(value) <= _LARGEST
    return isinstance(value, kind or hint)


def _words(hint: Any) -> str:
    """What an annotation allows, in words."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        if hint == Positive:
            return "a positive number"
        ranges = " and ".join(str(each) for each in inner[1:] if isinstance(each, Range))
        return f"{_words(inner[0])} {'of ' if ranges.startswith('at') else ''}{ranges}".rstrip()
    if kind in (Union, UnionType):
        words = [_words(each) for each in inner if each is not NoneType]
        return " or ".join(words) + (", or null" if NoneType in inner else "")
    if kind is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if kind is tuple and inner[-1] is not ...:
        words = list(map(_words, inner))
        return f"a list of {len(inner)}: " + (f"each {words[0]}" if len(set(words)) == 1 else ", ".join(words))
    if kind in (list, tuple):
        return f"a list, each entry {_words(inner[0])}"
    return _NAMES.get(kind or hint) or f"of type {(kind or hint).__name__}"


_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping",
    Callable: "a function",
}
