"""What is printed and written of a figure, and whether it is what was asked."""

import json
from pathlib import Path

import pytest

from benchmarks.report import line, markdown, write
from benchmarks.result import Result, Skipped, Target
from benchmarks.rounds import Spread

FIGURES = {"ours": Spread(1834.4, 1800, 1900), "nanoGPT": Spread(1000, 990, 1010)}
FAST = Result("step", "L = 4", Spread(1.834, 1.79, 1.9), "x", Target(1.8, "at least"), FIGURES, "tokens/s")
LARGE = Result("memory", "peak", Spread(0.52, 0.52, 0.52), "x", Target(0.4, "at most"))
FREE = Result("step", "beside minGPT", Spread(2, 1.5, 2.5))
LEFT_OUT = Skipped("step", "beside litgpt", "litgpt is not installed")


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (
            FAST,
            "step: L = 4: 1.83 x (1.79 to 1.9); target at least 1.8 x: reached; ours 1,834 tokens/s, "
            "nanoGPT 1,000 tokens/s",
        ),
        (LARGE, "memory: peak: 0.52 x; target at most 0.4 x: not reached"),
        (FREE, "step: beside minGPT: 2 x (1.5 to 2.5)"),
        (LEFT_OUT, "step: beside litgpt: skipped, litgpt is not installed"),
    ],
)
def test_a_line_says_what_was_asked_and_measured(outcome: Result | Skipped, expected: str) -> None:
    assert line(outcome) == expected


@pytest.mark.parametrize(
    ("sense", "value", "reached"),
    [("at least", 1.8, True), ("at least", 1.79, False), ("at most", 1.8, True), ("at most", 1.81, False)],
)
def test_the_bound_itself_is_reached(sense: str, value: float, reached: bool) -> None:
    assert Target(1.8, sense).reached(value) is reached  # type: ignore[arg-type]


def test_a_coefficient_just_below_one_is_not_rounded_to_it() -> None:
    assert Result("depth", "R²", Spread(0.9987, 0.9987, 0.9987), "").measured == "0.9987"


def test_the_table_has_a_row_for_each_outcome() -> None:
    page = markdown({"threads": 2}, [FAST, LEFT_OUT])
    assert page.startswith("- threads: 2\n")
    assert (
        "| step | L = 4 | at least 1.8 x | 1.83 x (1.79 to 1.9) | reached | ours 1,834 tokens/s, "
        "nanoGPT 1,000 tokens/s |"
    ) in page
    assert "| step | beside litgpt |  |  | skipped | litgpt is not installed |" in page
    rows = [text for text in page.splitlines() if text.startswith("|")]
    assert {text.count("|") for text in rows} == {7}


def test_the_json_file_has_the_figures_in_full(tmp_path: Path) -> None:
    write(tmp_path, {"threads": 2}, [FAST, LEFT_OUT])
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["machine"] == {"threads": 2}
    fast, left_out = content["rows"]
    assert fast["value"] == {"median": 1.834, "least": 1.79, "most": 1.9}
    assert fast["figures"]["nanoGPT"]["median"] == 1000
    assert (fast["verdict"], left_out["verdict"]) == ("reached", "skipped")
