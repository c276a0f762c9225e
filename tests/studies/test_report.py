"""The report says what the figures say: the table's are those of results.csv, and the words follow from them."""

import csv
import dataclasses
import io
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report.document import Findings, Table
from lightning_gpt.studies.report.report import check_report, report_blocks, write_report
from lightning_gpt.studies.report.results import StudyResults, collect, write_results
from lightning_gpt.studies.report.sections import make_section
from lightning_gpt.studies.run.result import CellResult
from lightning_gpt.studies.spec.measures import measure
from lightning_gpt.trust import trust
from tests.studies.helpers import LAYERS, finished, keep, results, study

ACCOUNTS = "lightning_gpt.studies.verdicts.oversmoothing.Accounts"
INITIALISATION = "lightning_gpt.studies.verdicts.initialisation.Initialisation"
REFERENCE = {"name": "the papers", "axis": LAYERS, "values": {"val/perplexity": {2: 38.5, 4: 29.4}}}
SECTIONS = [
    "table",
    {"curves": {"measure": "val/loss"}},
    {"trend": {"x": "n_layer", "y": "val/perplexity"}},
    {"fit": {"x": "n_layer", "y": "cost/step_seconds", "claim": "the papers say that time is linear"}},
    {"fit": {"x": "cost/parameters", "y": "val/loss", "kind": "power"}},
    {"compare": {"measure": "val/loss"}},
    {"layers": {"diagnostic": "token_cosine"}},
    {"flow": {"diagnostic": "grad_norm"}},
    INITIALISATION,
    ACCOUNTS,
]


def sentences(found: StudyResults, name: str, **options: str) -> str:
    blocks = make_section(name, options).blocks(found)
    return " ".join(sentence for block in blocks if isinstance(block, Findings) for sentence in block.sentences)


def changed(found: StudyResults, tag: str, value: Any) -> StudyResults:
    """The same with one measure a function of depth and seed."""
    made = []
    for result in found.results:
        depth = result.cell.settings[LAYERS]
        made.append(dataclasses.replace(result, values=result.values | {tag: value(depth, result.cell.seed)}))
    return StudyResults(found.study, made)


def test_report_is_whole_and_needs_no_network(tmp_path: Path) -> None:
    found = results(tmp_path, report=SECTIONS, reference=REFERENCE)
    write_report(found, tmp_path)
    html, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', html)
    assert "<script" not in html
    pictures = re.findall(r"!\[.*?\]\((plots/.*?\.png)\)", markdown)
    assert len(pictures) == html.count("data:image/svg+xml") == 6
    for picture in pictures:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (tmp_path / picture).with_suffix(".svg").read_bytes()
    for text in ("What was found", "the papers: validation perplexity", "38.50"):
        assert text in html
        assert text in markdown


def test_figures_of_the_table_are_those_of_results_csv(tmp_path: Path) -> None:
    found = results(tmp_path, report=["table"], reference=REFERENCE)
    write_results(found, tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert len(rows) == 6
    tables = [block for block in report_blocks(found) if isinstance(block, Table)]
    settings, cells = tables
    for row in settings.rows:
        ours = [each for each in rows if each["n_layer"] == row[0]]
        for tag in found.study.measure:
            numbers = [float(each[tag]) for each in ours]
            shown = row[settings.header.index(measure(tag).title)]
            assert shown == measure(tag).text(statistics.mean(numbers), statistics.stdev(numbers))
    for row, written in zip(cells.rows, rows, strict=True):
        assert row[0] == written["cell"]
        assert row[2:] == [measure(tag).text(float(written[tag])) for tag in found.study.measure]
    theirs = settings.header.index("the papers: validation perplexity")
    assert theirs in settings.theirs
    assert [row[theirs] for row in settings.rows] == ["–", "38.50", "29.40"]


def test_results_json_has_every_cell_with_its_config(tmp_path: Path) -> None:
    found = results(tmp_path)
    write_results(found, tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    assert [cell["config"] for cell in content["cells"]] == [cell.config for cell in found.study.cells]
    assert content["cells"][0]["environment"]["cores"] == 2
    assert content["cells"][0]["layers"][-1]["token_cosine"] == pytest.approx([0.1, 0.2])


def test_linear_time_is_said_to_be_linear_and_other_time_not(tmp_path: Path) -> None:
    found = results(tmp_path)
    options = {"x": "n_layer", "y": "cost/step_seconds", "claim": "the papers say so"}
    said = sentences(found, "fit", **options)
    assert re.search(r"Step time \(ms\) = 10(\.00)? \+ 20(\.00)? · n_layer", said)
    assert "R² = 1.0000 over 6 cells: linear" in said
    assert "Agreeing: the papers say so." in said
    said = sentences(changed(found, "cost/step_seconds", lambda depth, _: 0.01 * 4.0**depth), "fit", **options)
    assert ": not linear" in said
    assert "Not agreeing: the papers say so." in said


def test_power_law(tmp_path: Path) -> None:
    said = sentences(results(tmp_path), "fit", x="cost/parameters", y="val/loss", kind="power")
    assert re.search(
        r"Validation loss \(nats\) = 3(\.000)? · \(parameters\)\^-0.0500, R² = 1.0000 of the logarithms", said
    )


def test_trend_is_held_against_the_reference(tmp_path: Path) -> None:
    found = results(tmp_path, reference=REFERENCE)
    said = sentences(found, "trend", x="n_layer", y="val/perplexity")
    assert "falls at every step with n_layer" in said
    assert "beyond the noise of the seeds" in said
    assert "This agrees with the papers in direction" in said
    rising = changed(found, "val/perplexity", lambda depth, seed: 30.0 + depth + 10 * seed)
    said = sentences(rising, "trend", x="n_layer", y="val/perplexity")
    assert "rises at every step with n_layer" in said
    assert "within the noise of the seeds" in said
    assert "This differs from the papers" in said


def test_layers_say_which_way_they_go(tmp_path: Path) -> None:
    said = sentences(results(tmp_path), "layers", diagnostic="token_cosine")
    assert "rises in 6 and falls in 0 of 6 runs" in said
    assert "over-smoothing would make it rise, as it does in 6 of 6" in said
    assert "of the last layer after training: n_layer 1: 0.2000" in said
    assert "n_layer 4: 0.5000" in said


def test_layers_before_training_and_changes_of_a_hundredth(tmp_path: Path) -> None:
    made = study(tmp_path)
    last = {1: 1.009, 2: 1.02, 4: 0.9}
    entries = {depth: [1.0] * depth + [end] for depth, end in last.items()}
    found = [
        finished(cell, layers=[{"step": 0, "rms": entries[depth]}, {"step": 9, "rms": [9.0] * (depth + 1)}])
        for cell in made.cells
        if (depth := cell.settings[LAYERS])
    ]
    said = sentences(StudyResults(made, found), "layers", diagnostic="rms", when="first")
    assert "before training, activation RMS (root mean square of the residual stream) rises in 2 and falls in 2" in said
    assert "and stays within 1% in 2, of 6 runs" in said
    assert "of the last layer before training: n_layer 1: 1.009" in said
    with pytest.raises(CallError, match="when is 'middle'; it must be first or last"):
        make_section("layers", {"diagnostic": "rms", "when": "middle"}).check(made)


def test_compare_holds_settings_against_one(tmp_path: Path) -> None:
    found = changed(results(tmp_path), "val/loss", lambda depth, seed: {1: 5.0, 2: 5.2, 4: 4.0}[depth] + 0.2 * seed)
    said = sentences(found, "compare", measure="val/loss", beside="n_layer 1")  # sd of 0 and 0.2: 0.141
    assert "Validation loss is lowest with n_layer 4" in said
    assert "Validation loss is lower than that of n_layer 1 with: n_layer 4." in said
    assert "higher than" not in said
    assert (
        "1 of 2 settings differ from n_layer 1 by less than twice the standard deviation between seeds, which is"
        in said
    )
    assert "0.1414 nats" in said
    assert "higher than that of n_layer 4 with: n_layer 2; n_layer 1." in sentences(
        found, "compare", measure="val/loss", beside="n_layer 4"
    )
    with pytest.raises(
        CallError, match="beside is 'GPT'; it must be one of the settings n_layer 1; n_layer 2; n_layer 4"
    ):
        make_section("compare", {"measure": "val/loss", "beside": "GPT"}).check(found.study)


def test_flow_is_the_ratio_of_first_and_last_block(tmp_path: Path) -> None:
    made = study(tmp_path)
    norms = {1: [1.0], 2: [0.5, 1.0], 4: [0.001, 0.01, 0.1, 1.0]}
    found = [
        finished(cell, layers=[{"step": 9, "grad_norm": [(1 + cell.seed) * each for each in norms[depth]]}])
        for cell in made.cells
        if (depth := cell.settings[LAYERS])
    ]
    blocks = make_section("flow", {"diagnostic": "grad_norm"}).blocks(StudyResults(made, found))
    (table,) = (block for block in blocks if isinstance(block, Table))
    assert [row[0] for row in table.rows] == ["n_layer 2", "n_layer 4"]  # one block has no way to go
    assert [row[-2:] for row in table.rows] == [["0.5000", "0.5000"], ["0.001000", "0.1000"]]
    (said,) = (block.sentences for block in blocks if isinstance(block, Findings))
    assert said == [
        "The first and the last block are within a factor of 10 in gradient norm with: n_layer 2.",
        "Gradient norm vanishes towards the first block with n_layer 4: there it is 0.001000 times the last block's, a "
        "factor of 0.1000 per block.",
    ]
    gone = [dataclasses.replace(each, layers=[{"step": 9, "grad_norm": [0.0, 1.0]}]) for each in found[2:]]
    said = sentences(StudyResults(made, [*found[:2], *gone]), "flow", diagnostic="grad_norm")
    assert said == ""
    said = sentences(StudyResults(made, [*found[:-1], gone[-1]]), "flow", diagnostic="grad_norm")
    assert "A run with n_layer 4 is left out here: gradient norm is 0 in its first or last block." in said
    with pytest.raises(CallError, match="rms is of the stream"):
        make_section("flow", {"diagnostic": "rms"}).check(made)


def smoothing_results(folder: Path, bare: float, positive: bool) -> StudyResults:
    """Runs with and without residual path: ``bare`` is the last rank residual without it."""
    variants = {"pre": {}, "none": {"model.init_args.residual": "none"}}
    made = study(folder, variants=variants, grid={"model.init_args.n_layer": [4]}, seeds=[0, 1, 2])
    found = []
    for cell in made.cells:
        last = bare if cell.settings["variant"] == "none" else 0.9
        shares = [0.2, 0.4, 0.6, 0.8] if positive else [0.8, 0.6, 0.4, 0.2]
        entry = {
            "token_cosine": [0.0, 0.1, 0.3, 0.6, 1.0],  # grows by 0.1, 0.2, 0.3, 0.4
            "rank_residual": [1.0, 0.9, 0.9, 0.9, last],
            "value_positive_share": shares,
        }
        found.append(finished(cell, layers=[{"step": 0, **entry}, {"step": 9, **entry}]))
    return StudyResults(made, found)


def test_accounts_follow_the_figures(tmp_path: Path) -> None:
    said = sentences(smoothing_results(tmp_path, bare=0.01, positive=True), ACCOUNTS)
    assert "2103.03404): supported." in said
    assert "2401.04301): supported." in said
    assert "2312.06182): not tested." in said
    assert "2405.18781): not tested." in said
    said = sentences(smoothing_results(tmp_path, bare=0.8, positive=False), ACCOUNTS)
    assert "2103.03404): not supported." in said
    assert "2401.04301): not supported." in said


def test_partial_report_names_what_is_missing(tmp_path: Path) -> None:
    made = study(tmp_path, report=["table", {"fit": {"x": "n_layer", "y": "cost/step_seconds"}}])
    found = [finished(cell) for cell in made.cells[:3]]
    found += [
        CellResult(made.cells[3], "failed", error="the disk is full"),
        *[CellResult(c, "missing") for c in made.cells[4:]],
    ]
    write_report(StudyResults(made, found), tmp_path)
    text = (tmp_path / "report.md").read_text().replace("\\", "")
    assert "This report is partial: 3 of 6 cells are finished" in text
    assert "| n_layer=2,seed=1 | failed | the disk is full |" in text
    assert "| n_layer=4,seed=1 | missing |  |" in text
    assert "not fitted, because a fit needs finished cells at three different values (there are 2)" in text


def test_measure_that_a_run_has_not_is_named(tmp_path: Path) -> None:
    found = results(tmp_path, measure=["val/loss", "scalar:my/own"])
    write_report(found, tmp_path)
    assert "Not measured, or not finite: scalar:my/own of n_layer=1,seed=0" in (
        (tmp_path / "report.md").read_text().replace("\\", "")
    )


def test_results_are_read_back_and_a_changed_config_is_another_cell(tmp_path: Path) -> None:
    found = results(tmp_path)
    for result in found.results[:2]:
        keep(result, tmp_path)
    again = collect(found.study, tmp_path)
    assert again.results[:2] == found.results[:2]
    assert [result.status for result in again.results] == ["finished"] * 2 + ["missing"] * 4
    other = study(tmp_path, config={"trainer": {"max_steps": 3}})
    assert {result.status for result in collect(other, tmp_path).results} == {"missing"}


@pytest.mark.parametrize(
    ("value", "text"), [(38.5, "38.50"), (0.00012, "0.0001200"), (1234567.0, "1,234,567"), (2e-6, "2e-06"), (0.0, "0")]
)
def test_numbers_as_people_read_them(value: float, text: str) -> None:
    assert measure("scalar:x").text(value) == text


def test_a_study_may_bring_a_section_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_sections.py").write_text(
        "from dataclasses import dataclass\n"
        "from lightning_gpt.studies.report.document import Text\n"
        "from lightning_gpt.studies.report.sections.base import Section\n"
        "@dataclass(frozen=True)\n"
        "class Count(Section):\n"
        "    noun: str = 'cells'\n"
        "    def blocks(self, results):\n"
        "        return [Text(f'{len(results.finished)} {self.noun}')]\n"
    )
    monkeypatch.setattr("lightning_gpt.trust._trusted", [])
    trust([str(tmp_path / "my_sections.py")])
    found = results(tmp_path, report=[{"my_sections.Count": {"noun": "runs"}}])
    check_report(found.study)
    write_report(found, tmp_path)
    assert "\n\n6 runs\n\n" in (tmp_path / "report.md").read_text()
