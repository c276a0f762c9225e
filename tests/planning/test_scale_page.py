"""docs/scale.md shows what the plan proposes."""

from benchmarks import scale


def test_the_rows_of_the_page_are_those_of_the_plan() -> None:
    """Two models of the six; ``python -m benchmarks.scale --write`` makes them all."""
    _, shown, _ = scale.table_of(scale.PAGE.read_text())
    assert len(shown) == len(scale.DEPTHS) * len(scale.WIDTHS) * len(scale.DEVICES)
    assert list(scale.rows(depths=(32,))) == shown[: 2 * len(scale.DEVICES)]
