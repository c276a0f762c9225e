"""The learning rate and the batch over the steps of a run, at the points where the formulas are known."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gpt.errors import CallError
from lightning_gpt.training.optim import Optimization
from lightning_gpt.training.schedules import accumulated_at, batch_stages


def wsd(shape: str, step: int) -> float:
    """Warm-up over 10 steps of 101, then 50 at the peak, then the decay, of which step 100 is the end."""
    options = {"warmup": 10 / 101, "stable": 50 / 101, "final_lr": 0.2, "decay_shape": shape}
    return Optimization(schedule="wsd", **options).lr_factor(step, 101)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
def test_wsd_warms_up_stays_and_ends(shape: str) -> None:
    assert wsd(shape, 0) == pytest.approx(0.1)
    assert {wsd(shape, step) for step in range(9, 61)} == {1.0}
    assert wsd(shape, 61) < 1
    assert wsd(shape, 100) == pytest.approx(0.2)
    assert wsd(shape, 150) == pytest.approx(0.2)


def test_a_decay_of_one_step_ends_at_the_last_rate() -> None:
    rates = [Optimization(schedule="wsd", warmup=0.05, stable=0.9, final_lr=0.2).lr_factor(n, 20) for n in range(20)]
    assert rates == [1.0] * 19 + [0.2]


def test_wsd_halfway_down() -> None:
    assert wsd("linear", 80) == pytest.approx(0.2 + 0.8 * 0.5)
    assert wsd("1-sqrt", 80) == pytest.approx(0.2 + 0.8 * (1 - math.sqrt(0.5)))
    assert wsd("1-sqrt", 70) == pytest.approx(0.2 + 0.8 * 0.5), "a quarter of the way is half of the decay"


def test_wsd_of_a_shape_is_the_shape_alone_without_a_stable_part() -> None:
    plain = Optimization(schedule="linear", warmup=0.1)
    staged = Optimization(schedule="wsd", warmup=0.1, stable=0.0)
    assert [plain.lr_factor(step, 50) for step in range(50)] == [staged.lr_factor(step, 50) for step in range(50)]


def test_more_than_all_steps_are_refused() -> None:
    with pytest.raises(CallError, match=r"warmup 0.3 and stable 0.8 .* exceed 1"):
        Optimization(schedule="wsd", warmup=0.3, stable=0.8)


def test_batch_grows_by_its_factors() -> None:
    stages = batch_stages(12, warmup_steps=9)
    assert [(stage.first, stage.accumulate) for stage in stages] == [(0, 1), (4, 2), (8, 4), (11, 12)]
    assert [accumulated_at(stages, step) for step in (0, 3, 4, 10, 11, 1000)] == [1, 1, 2, 4, 12, 12]


@given(accumulate=st.integers(1, 96), warmup_steps=st.integers(1, 300))
def test_no_step_of_a_growing_batch_crosses_a_multiple_of_its_size(accumulate: int, warmup_steps: int) -> None:
    stages = batch_stages(accumulate, warmup_steps)
    sizes = [stage.accumulate for stage in stages]
    assert sizes[0] == 1
    assert sizes[-1] == accumulate
    done = 0
    for step in range(stages[-1].first + 2):
        size = accumulated_at(stages, step)
        assert done % size == 0
        assert accumulate % size == 0
        done += size
    longest = sum(max(2, b // a) for a, b in pairwise(sizes))
    assert warmup_steps - 1 <= stages[-1].first + (accumulate == 1) * warmup_steps <= warmup_steps + 2 * longest
