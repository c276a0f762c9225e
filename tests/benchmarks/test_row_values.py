"""What each row makes of what it measured: which time is divided by which, in which unit, against which target."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmarks.bench import OURS, Bench
from benchmarks.report import Outcome
from benchmarks.result import Result
from benchmarks.rounds import Spread
from benchmarks.rows import attention, busy, fit, generation, memory, startup, training
from benchmarks.workload import Spec

Times = dict[str, list[float]]


def results(outcomes: Iterator[Outcome]) -> list[Result]:
    return [outcome for outcome in outcomes if isinstance(outcome, Result)]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType, Times], None]:
    """Replaces what a row's rounds measure, but not what it asks them to measure."""

    def replaced(row: ModuleType, times: Times) -> None:
        def measured(costs: Mapping[str, Callable[[], float]], rounds: int) -> Times:
            assert set(costs) == set(times)
            return times

        monkeypatch.setattr(row, "interleaved", measured)

    return replaced


def test_fit_s_help_is_divided_by_the_import(bench: Bench, given: Any) -> None:
    given(startup, {"--help": [0.4, 0.2], "fit --help": [6.0, 3.0], "import lightning": [4.0, 3.0]})
    short, of_fit = results(startup.help_(bench))
    assert (short.value, short.unit, short.asked) == (Spread.of([0.4, 0.2]), "s", "at most 1 s")
    assert (of_fit.value, of_fit.unit, of_fit.asked) == (Spread.of([1.5, 1.0]), "x", "at most 1.3 x")
    assert of_fit.figures == {"fit --help": Spread.of([6.0, 3.0]), "import lightning": Spread.of([4.0, 3.0])}


def test_the_start_of_fit_is_without_the_import_of_the_same_round(bench: Bench, given: Any) -> None:
    given(startup, {"fit": [7.0, 9.0], "import": [4.0, 8.0]})
    (row,) = results(startup.start(bench))
    assert (row.value, row.unit, row.asked) == (Spread.of([3.0, 1.0]), "s", "at most 3 s")


def test_the_kernel_s_memory_is_divided_by_the_formula_s(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"sdpa": 20e6, "manual": 500e6}

    @contextmanager
    def worker(project: str) -> Iterator[Any]:
        yield SimpleNamespace(ask=lambda what, spec: peaks[spec["options"]["attention_backend"]])

    monkeypatch.setattr(bench, "worker", worker)
    (row,) = results(attention.memory(bench))
    assert (row.value.median, row.unit, row.asked) == (pytest.approx(0.04), "x", "at most 0.1 x")
    assert {name: figure.median for name, figure in row.figures.items()} == {"sdpa": 20, "manual": 500}


def test_a_window_s_longer_sequence_is_divided_by_the_shorter(bench: Bench, given: Any) -> None:
    given(attention, {"T = 128": [0.008, 0.012], "T = 64": [0.004, 0.004]})
    (row,) = results(attention.window(bench))
    assert (row.value, row.asked) == (Spread.of([2.0, 3.0]), "at most 2.2 x")
    assert row.figures["T = 64"] == Spread.of([4.0, 4.0]), "in ms"


def test_our_peak_is_divided_by_a_project_s(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(spec: Spec) -> int:
        return (10_000_000 if spec.project == OURS else 40_000_000) * spec.n_layer

    monkeypatch.setattr(bench, "step_peak", peak)
    bench.workload = replace(bench.workload, depths=[1, 4])
    (row,) = results(memory.memory(bench))
    assert (row.what, row.asked) == ("peak of a step, L = 4, vs. nanoGPT", "at most 0.4 x")
    assert (row.value.median, row.unit) == (0.25, "x")
    assert {name: figure.median for name, figure in row.figures.items()} == {OURS: 40, "nanoGPT": 160}
    bench.__dict__["missing"] = {"nanoGPT": "left out", "litgpt": "left out"}
    (alone,) = results(memory.memory(bench))
    assert (alone.what, alone.value.median, alone.unit) == ("peak of a step, L = 4", 40, "MB")


def test_checkpointing_s_time_is_divided_by_that_of_none(bench: Bench, given: Any) -> None:
    given(memory, {"none": [1.0, 2.0], "block": [1.5, 2.5], "attention": [1.1, 2.4]})
    rows = {row.what: row for row in results(memory.checkpointing(bench))}
    block = rows["step time, L = 3, checkpointing block vs. none"]
    assert (block.value, block.asked) == (Spread.of([1.5, 1.25]), "at most 1.35 x")
    assert rows["step time, L = 3, checkpointing attention vs. none"].value == Spread.of([1.1, 1.2])


def test_a_step_of_fit_is_divided_by_a_bare_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([float(number) for number in (0, 30, 36, 48, 54, 60, 66)])  # the first round is not counted
    monkeypatch.setattr(fit, "clock", lambda device: next(now))
    (row,) = results(fit.fit(bench))
    assert (row.value, row.asked) == (Spread.of([2.0, 1.0]), "at most 1.03 x")
    assert row.figures == {"fit": Spread.of([4.0, 2.0]), "bare loop": Spread.of([2.0, 2.0])}, "seconds a step"


def test_generation_is_faster_where_ours_takes_less(bench: Bench, given: Any) -> None:
    given(generation, {OURS: [1.0], "nanoGPT": [5.0], f"{OURS} in bf16": [0.5], f"{OURS} in int8": [2.0]})
    rows = results(generation.one_prompt(bench))
    values = {row.what.removeprefix("4 tokens after 3, L = 1, one prompt, "): row.value.median for row in rows}
    assert values == {
        "vs. nanoGPT": 5,
        "ours in bf16, vs. nanoGPT": 10,
        "ours in int8, vs. nanoGPT": 2.5,
        "ours in bf16, vs. ours in fp32": 2,
        "ours in int8, vs. ours in fp32": 0.5,
    }
    assert {name: figure.median for name, figure in rows[0].figures.items()} == {OURS: 4, "nanoGPT": 0.8}


def test_a_late_token_is_divided_by_an_early_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_seconds_by_position", lambda model, prompt, tokens: [*map(float, range(tokens))])
    (row,) = results(generation.position(bench))
    assert row.value.median == pytest.approx(25.5 / 9.5), "the middle of ten tokens about 26 and about 10"
    assert (row.asked, row.figures["at 10"].median) == ("at most 1.2 x", 9500)


def test_a_compiled_step_is_divided_by_a_plain_one(bench: Bench, given: Any) -> None:
    given(training, {"plain": [2.0, 4.0], "compiled": [1.0, 1.0]})
    rows = results(training.compiled(bench))
    assert [row.value for row in rows] == [Spread.of([0.5, 0.25])] * 2
    assert [row.what.split(", ")[1] for row in rows] == ["fp32", "bf16"]


def test_busy_steps_are_divided_by_one_that_is_alone_and_chooses_nothing(
    bench: Bench, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy, "cannot_choose", lambda: None)
    given(busy, {"alone": [2.1], "alone, without": [2.0], "beside": [3.0], "beside, without": [8.0]})
    rows = results(busy.busy(bench))
    assert [row.value.median for row in rows] == [1.5, 4.0, 1.05]
    assert rows[0].figures["beside"].median == 3000, "in ms"
