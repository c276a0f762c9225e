"""An option's type and range stand in its signature, and every other value is refused in one line."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest

from lightning_gpt.errors import CallError
from lightning_gpt.options import Positive, Range, Share, ShareBelowOne, Width, check_option

HUGE = 10**5000


@pytest.mark.parametrize(
    ("hint", "good", "bad", "allowed"),
    [
        (int, [0, -3], [True, 1.0, "1", None, [1], {}], "a whole number"),
        (float, [0, -3, 0.5], [True, "1", None, math.nan, math.inf, -math.inf], "a number"),
        (bool, [True, False], [0, 1, "true", None], "true or false"),
        (str, ["", "a"], [1, None, ["a"]], "text"),
        (int | None, [None, 1], ["", False], "a whole number, or null"),
        (int | str, [1, "a"], [None, 1.0], "a whole number or text"),
        (Positive, [1e-9, 1], [0, -1, True, math.inf], "a positive number"),
        (ShareBelowOne, [0, 0.99], [1, -0.01, math.nan], "a number of at least 0 and below 1"),
        (Share, [0, 1], [1.01, -0.01], "a number from 0 to 1"),
        (Annotated[float, Range(above=0, most=1)], [1, 0.1], [0, 1.5], "a number above 0 and at most 1"),
        (Width, [1, 2**20], [0, 2**20 + 1, 1.0, HUGE], "a whole number from 1 to 1,048,576"),
        (Width | None, [None, 1], [0], "a whole number from 1 to 1,048,576, or null"),
        (Annotated[int, Range(3)], [3], [2], "a whole number of at least 3"),
        (Literal["a", "b"], ["a"], ["c", 1, None, ["a"]], "one of a, b"),
        (list[Share], [[], [0, 1], (0.5,)], [[2], 1, "ab", {}], "a list, each entry a number from 0 to 1"),
        (tuple[str, ...], [(), ["a"]], [[1], "a"], "a list, each entry text"),
        (
            tuple[int, str],
            [(1, "a"), [1, "a"]],
            [[1], ["a", 1], [1, "a", 2]],
            "a list of 2: a whole number, text",
        ),
        (tuple[Share, Share], [(0, 1)], [(0, 2), [1]], "a list of 2: each a number from 0 to 1"),
        (dict[str, Any], [{}], [[], None], "a mapping"),
        (Callable[[str], bool], [str.isalpha], ["str.isalpha"], "a function"),
        (Range, [Range(1)], [1], "of type Range"),
        (Any, [None, HUGE], [], ""),
    ],
    ids=lambda value: value.replace(",", "") if isinstance(value, str) else "",
)
def test_an_annotation_says_what_is_allowed(hint: Any, good: list[Any], bad: list[Any], allowed: str) -> None:
    for value in good:
        check_option("it", value, hint)
    for value in bad:
        with pytest.raises(CallError) as caught:
            check_option("it", value, hint)
        message = str(caught.value)
        assert message.startswith("it is ")
        assert message.endswith(f"; it must be {allowed}")


def test_a_number_that_is_only_too_large_is_told_so() -> None:
    for value, hint in ((1e300, float), (-1e300, float | None), (10**30, Positive), (HUGE, float)):
        with pytest.raises(CallError, match=r"number.*, and at most 3.4e\+38 \(or 9,007,199,254,740,992 without a"):
            check_option("it", value, hint)


def test_a_message_shows_the_value_cut_if_it_is_long() -> None:
    for value, seen in ((HUGE, "a number of more than 4,300 digits"), ([HUGE], "a number of"), ("x" * 999, "'xxx")):
        with pytest.raises(CallError, match=f"it is {seen}") as caught:
            check_option("it", value, Width)
        assert len(str(caught.value)) < 200
