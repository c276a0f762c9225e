"""A study's first stage: what is tried, what is chosen, and what the report says of it."""

from pathlib import Path
from typing import Any

import pytest

from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.studies.report.document import Picture
from lightning_gpt.studies.report.report import write_report
from lightning_gpt.studies.report.results import StudyResults, collect, write_results
from lightning_gpt.studies.report.tuning_table import tuning_blocks
from lightning_gpt.studies.run.result import CellResult
from lightning_gpt.studies.run.tuning import choices, costs_folder, rungs, tuned, tuning_folder
from lightning_gpt.studies.spec.cells import setting_text, value_at
from lightning_gpt.studies.spec.study import Study
from tests.studies.helpers import LAYERS, finished, keep, study

RATE = "model.init_args.optimization.lr"
TUNE = {"key": RATE, "values": [0.001, 0.002, 0.004], "budget": 30, "seeds": [7, 8]}
NOT_FINITE = "the loss is not finite"
LOSSES = {
    1: {0.001: [3.0, 3.1], 0.002: [2.0, 2.1], 0.004: [4.0, 4.1]},
    2: {0.001: [3.0, 3.1], 0.002: [2.5, 2.4], 0.004: [1.0, 1.1]},
    4: {0.001: [2.0, 2.3], 0.002: [2.0, 2.5], 0.004: [None, 9.0]},
}


def trials(made: Study) -> list[CellResult]:
    """The trials, with a loss from LOSSES by depth, rate and seed; None for one that failed."""
    found = []
    for cell in made.trials.cells:
        loss = LOSSES[cell.settings[LAYERS]][cell.settings[RATE]][cell.seed - 7]
        done = finished(cell, values={} if loss is None else {"val/loss": loss})
        found.append(
            CellResult(cell, "failed", error=f"{NOT_FINITE}; the batch is saved in a/b.ckpt") if loss is None else done
        )
    return found


def test_each_setting_is_tried_with_each_value_for_a_shorter_time(tmp_path: Path) -> None:
    config = {"trainer": {"max_steps": 999, "val_check_interval": 50, "accumulate_grad_batches": 2}}
    made = study(tmp_path, tune=TUNE, config=config, variants={"long": {"trainer.max_steps": 5000}, "short": {}})
    tried = made.trials.cells
    assert len(tried) == 2 * 3 * 3 * 2
    assert {value_at(cell.config, RATE) for cell in tried} == set(TUNE["values"])  # type: ignore[call-overload]
    for cell in tried:
        assert cell.name.endswith(f"lr={value_at(cell.config, RATE)},seed={cell.seed}")
        trainer = cell.config["trainer"]
        assert (trainer["max_steps"], trainer["val_check_interval"]) == (30, 60)
        assert cell.config["diagnostics"] == {"enabled": False}
    assert [value_at(cell.config, "trainer.max_steps") for cell in made.cells] == [5000] * 6 + [999] * 6
    assert {value_at(cell.config, RATE) for cell in made.cells} == {None}, "nothing is chosen yet"
    assert {value_at(cell.config, RATE) for cell in made.provisional.cells} == {0.001}


def test_the_lowest_mean_is_chosen_and_a_value_that_failed_is_not(tmp_path: Path) -> None:
    made = study(tmp_path, tune=TUNE)
    assert made.tune is not None
    found = {choice.settings[LAYERS]: choice for choice in choices(made.tune, trials(made)).values()}
    assert {depth: choice.best for depth, choice in found.items()} == {1: 0.002, 2: 0.004, 4: 0.001}
    assert {depth: choice.edge for depth, choice in found.items()} == {1: "", 2: "highest", 4: "lowest"}
    assert found[4].failures == {0.004: f"{NOT_FINITE}; the batch is saved in a/b.ckpt"}
    with pytest.raises(
        WorkError, match=r"1 of 18 trials of lr are still to be run, first of them n_layer=1,lr=0\.001,seed"
    ):
        choices(made.tune, [CellResult(made.trials.cells[0], "unfinished"), *trials(made)[1:]])
    lost = [CellResult(cell, "failed", error="A disk is full") for cell in made.trials.cells]
    with pytest.raises(WorkError, match=r"no lr of 1 can be chosen: with 0\.001, a disk is full"):
        choices(made.tune, lost)
    silent = [finished(cell, values={}) for cell in made.trials.cells]
    with pytest.raises(WorkError, match="it measured no finite val/loss"):
        choices(made.tune, silent)


def test_cells_use_what_was_chosen_and_the_report_says_how(tmp_path: Path) -> None:
    made = study(tmp_path, tune=TUNE, report=["table"])
    with pytest.raises(WorkError, match="18 of 18 trials of lr are still to be run"):
        collect(made, tmp_path)
    for result in trials(made):
        if result.status == "finished":
            keep(result, tuning_folder(tmp_path))
        else:
            place = tuning_folder(tmp_path) / "cells" / result.cell.folder
            place.mkdir(parents=True)
            (place / "failure.json").write_text('{"error": "the loss is not finite"}')
    chosen = collect(made, tmp_path)
    rates = {cell.settings[LAYERS]: value_at(cell.config, RATE) for cell in chosen.study.cells}
    assert rates == {1: 0.002, 2: 0.004, 4: 0.001}
    for cell in chosen.study.cells:
        keep(finished(cell), tmp_path)
    again = collect(made, tmp_path)
    assert len(again.finished) == 6
    write_results(again, tmp_path)
    write_report(again, tmp_path)
    assert (tmp_path / "results.csv").read_text().startswith("cell,n_layer,lr,seed,status,")
    assert ",4,0.001,1,finished,0," in (tmp_path / "results.csv").read_text()
    text = (tmp_path / "report.md").read_text().replace("\\", "")
    assert "| n_layer | lr, tuned | n |" in text
    assert "each of 3 values was trained for 30 steps with 2 seeds" in text
    lowest = (
        "The best lr lies at the lowest edge of what was tried, so a lower one may be better, for: n_layer 4 (0.001)."
    )
    assert text.count(lowest) == 2, "in its section and at the top"
    assert text.index(lowest) < text.index("## All settings")
    assert "highest edge of what was tried, so a higher one may be better, for: n_layer 2 (0.004)." in text
    assert "Not told apart from the best by these seeds: n_layer 4: 0.002." in text
    assert "lr 0.004 was left out for n_layer 4: the loss is not finite." in text
    assert re_row(text, "n_layer 2")[-1] == "0.004 (highest tried)"
    assert re_row(text, "n_layer 4")[3] == "failed"
    assert (tmp_path / "plots/tuning.png").is_file()


def test_many_settings_have_a_row_each_in_the_picture(tmp_path: Path) -> None:
    depths = list(range(1, 11))
    made = study(tmp_path, tune={**TUNE, "seeds": [7]}, grid={LAYERS: depths}, report=["table"])
    losses = {cell.digest: 2 + 0.1 * cell.settings[LAYERS] + cell.settings[RATE] for cell in made.trials.cells}
    for cell in made.trials.cells:
        keep(finished(cell, values={"val/loss": losses[cell.digest]}), tuning_folder(tmp_path))
    chosen = collect(made, tmp_path)
    for cell in chosen.study.cells:
        keep(finished(cell), tmp_path)
    write_report(collect(made, tmp_path), tmp_path)
    drawn = (tmp_path / "plots/tuning.csv").read_text().splitlines()
    assert drawn[1] == f'"n_layer 1, lr 0.001",mean,{2.101!r}'
    assert len(drawn) == 1 + 10 * 3
    (ax,) = [block.chart.axes[0] for block in tuning_blocks(chosen) if isinstance(block, Picture)]
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"n_layer {depth}" for depth in depths]
    assert ax.get_legend_handles_labels()[1] == ["lr 0.001", "lr 0.002", "lr 0.004"]


def re_row(text: str, label: str) -> list[str]:
    """The cells of the last table row that begins with a label."""
    line = [line for line in text.splitlines() if line.startswith(f"| {label} |")][-1]
    return [part.strip() for part in line.strip("|").split("|")]


@pytest.mark.parametrize(("key", "values"), [("ffn", ["gelu", "relu"]), ("bias", [True, False])])
def test_words_can_be_chosen_too_and_have_no_edge(key: str, values: list[Any], tmp_path: Path) -> None:
    tune = {"key": f"model.init_args.{key}", "values": values, "budget": 1}
    made = study(tmp_path, tune=tune, grid={}, report=[])
    assert made.tune is not None
    results = [finished(cell, values={"val/loss": 2.0}) for cell in made.trials.cells]
    (choice,) = choices(made.tune, results).values()
    assert (choice.best, choice.edge) == (values[0], "")
    chosen = made.with_choice({key: each.best for key, each in choices(made.tune, results).items()})
    write_report(StudyResults(chosen, [finished(cell) for cell in chosen.cells], {"": choice}), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert f"Not told apart from the best by these seeds: all: {setting_text(values[1])}." in text
    assert not (tmp_path / "plots/tuning.png").exists()


@pytest.mark.parametrize(
    ("count", "halving", "budget", "expected"),
    [
        (8, None, 100, [(8, 100)]),
        (8, 2, 100, [(8, 25), (4, 50), (2, 100)]),
        (5, 2, 100, [(5, 25), (3, 50), (2, 100)]),
        (9, 3, 90, [(9, 30), (3, 90)]),
        (3, 4, 90, [(3, 90)]),
        (8, 2, 3, [(8, 1), (4, 1), (2, 3)]),
    ],
)
def test_halving_gives_more_steps_to_fewer_values(
    count: int, halving: int | None, budget: int, expected: list[tuple[int, int]], tmp_path: Path
) -> None:
    tune = {"key": RATE, "values": list(range(1, count + 1)), "budget": budget}
    made = study(tmp_path, tune=tune | ({} if halving is None else {"halving": halving}))
    assert made.tune is not None
    assert made.tune.rungs == expected


def test_each_setting_goes_on_with_its_own_best_values(tmp_path: Path) -> None:
    """Losses by rate: in the first rung as listed, in the second turned round among those that are left."""
    first = {1: [4.0, 1.0, 2.0, 3.0], 2: [1.0, 2.0, 3.0, None], 4: [None, None, 1.0, None]}
    rates = [0.001, 0.002, 0.003, 0.004]
    tune = {"key": RATE, "values": rates, "budget": 40, "seeds": [7], "halving": 2}
    made = study(tmp_path, tune=tune, report=["table"])
    left: list[set[tuple[int, float]]] = []
    for number, (rung, _) in enumerate(rungs(made, tmp_path)):
        left.append({(cell.settings[LAYERS], cell.settings[RATE]) for cell in rung.cells})
        assert [cell.number for cell in rung.cells] == list(range(len(rung.cells)))
        assert {value_at(cell.config, "trainer.max_steps") for cell in rung.cells} == {20 * (number + 1)}
        with pytest.raises(WorkError, match=f"{len(rung.cells)} of {len(rung.cells)} trials of lr are still to be run"):
            tuned(made, tmp_path)
        for cell in rung.cells:
            loss = first[cell.settings[LAYERS]][rates.index(cell.settings[RATE])]
            if loss is None:
                place = tuning_folder(tmp_path) / "cells" / cell.folder
                place.mkdir(parents=True)
                (place / "failure.json").write_text('{"error": "the loss is not finite"}')
            else:
                keep(finished(cell, values={"val/loss": loss if number == 0 else 9.0 - loss}), tuning_folder(tmp_path))
    assert len(left) == 2
    assert left[0] == {(depth, rate) for depth in first for rate in rates}
    assert left[1] == {(1, 0.002), (1, 0.003), (2, 0.001), (2, 0.002), (4, 0.003)}
    found = {choice.settings[LAYERS]: choice for choice in tuned(made, tmp_path).values()}
    assert {depth: choice.best for depth, choice in found.items()} == {1: 0.003, 2: 0.002, 4: 0.003}
    assert found[1].stopped == {0.004: (20, 3.0), 0.001: (20, 4.0)}
    assert (found[2].stopped, found[2].failures) == ({0.003: (20, 3.0)}, {0.004: "the loss is not finite"})
    assert {depth: choice.edge for depth, choice in found.items()} == {1: "", 2: "", 4: ""}
    chosen = collect(made, tmp_path)
    for cell in chosen.study.cells:
        keep(finished(cell), tmp_path)
    write_report(collect(made, tmp_path), tmp_path)
    text = (tmp_path / "report.md").read_text().replace("\\", "")
    assert "each of 4 values was trained for 20 steps, the best 2 anew for 40 (successive halving) with 1 seed" in text
    assert re_row(text, "n_layer 1")[1:] == ["4 after 20", "8", "7", "3 after 20", "0.003"]
    assert re_row(text, "n_layer 2")[4] == "failed"


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"tune": {**TUNE, "halving": 1}}, "tune: halving is 1; it must be a whole number of at least 2"),
        ({"tune": {**TUNE, "halving": True}}, "tune: halving is True; it must be a whole number of at least 2"),
        ({"tune": {**TUNE, "steps": 3}}, "tune: unknown key 'steps'; did you mean seeds"),
        ({"tune": {**TUNE, "key": None}}, "tune: key is None; it must be the dotted key of an option"),
        ({"tune": {**TUNE, "key": "seed_everything"}}, "seed_everything cannot be an axis"),
        ({"tune": {**TUNE, "key": LAYERS}}, "tune: .*n_layer is an axis of the grid; it cannot be chosen too"),
        ({"tune": {**TUNE, "values": [1]}}, "there must be two or more to choose from"),
        ({"tune": {**TUNE, "values": [1, 1]}}, "holds a value twice"),
        ({"tune": {**TUNE, "budget": 0}}, "budget is 0; it must be a number of optimizer steps of at least 1"),
        ({"tune": {**TUNE, "seeds": []}}, "seeds is empty"),
        ({"tune": TUNE, "variants": {"a": {RATE: 1.0}}}, "variant a sets .*lr, which tune chooses"),
    ],
)
def test_a_wrong_first_stage_is_refused(over: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CallError, match=message):
        study(tmp_path, **over)


def test_a_preset_may_have_its_own(tmp_path: Path) -> None:
    made = study(tmp_path, preset="cpu", tune=TUNE, presets={"cpu": {"tune": {**TUNE, "budget": 3}}, "paper": {}})
    assert made.tune is not None
    assert made.tune.budget == 3
    made = study(tmp_path, preset="paper", tune=TUNE, presets={"cpu": {"tune": {**TUNE, "budget": 3}}, "paper": {}})
    assert made.tune is not None
    assert made.tune.budget == 30


def test_times_are_measured_in_rounds_of_all_settings(tmp_path: Path) -> None:
    made = study(tmp_path, alone={"steps": 40}, tune=TUNE).provisional
    costs = made.costs.cells
    assert [(cell.number, cell.seed, cell.settings[LAYERS]) for cell in costs] == [
        *[(number, 0, depth) for number, depth in enumerate([1, 2, 4])],
        *[(number + 3, 1, depth) for number, depth in enumerate([1, 2, 4])],
    ]
    assert {cell.name for cell in costs} == {cell.name for cell in made.cells}
    assert {value_at(cell.config, "trainer.max_steps") for cell in costs} == {40}
    assert {value_at(cell.config, RATE) for cell in costs} == {0.001}
    assert study(tmp_path).alone is None
    with pytest.raises(CallError, match="alone: steps is 0; it must be a number of optimizer steps of at least 1"):
        study(tmp_path, alone={"steps": 0})


def test_times_alone_are_reported_when_all_cells_have_them(tmp_path: Path) -> None:
    made = study(tmp_path, alone={"steps": 40})
    for cell in made.cells:
        keep(finished(cell, neighbours=1), tmp_path)
    times = {"cost/step_seconds": 0.5, "cost/tokens_per_second": 7.0}
    costs = made.costs.cells
    for cell in costs[:-1]:
        keep(finished(cell, values=times), costs_folder(tmp_path))
    partly = collect(made, tmp_path)
    assert partly.mark("cost/step_seconds") == " †"
    assert {result.alone for result in partly.results} == {()}
    keep(finished(costs[-1], values=times), costs_folder(tmp_path))
    whole = collect(made, tmp_path)
    assert {result.values["cost/step_seconds"] for result in whole.results} == {0.5}
    assert {result.values["cost/parameters"] for result in whole.results} == {1000.0, 2000.0, 4000.0}
    assert (whole.mark("cost/step_seconds"), whole.mark("wall_seconds")) == ("", " †")
