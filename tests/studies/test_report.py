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
from lightning_gpt.studies.report.document import Findings, Heading, Picture, Table
from lightning_gpt.studies.report.groups import groups
from lightning_gpt.studies.report.latex import to_latex
from lightning_gpt.studies.report.page_width import fitted
from lightning_gpt.studies.report.report import check_report, report_blocks, write_report
from lightning_gpt.studies.report.results import StudyResults, collect, write_results
from lightning_gpt.studies.report.sections import make_section
from lightning_gpt.studies.report.tested import written
from lightning_gpt.studies.run.result import CellResult, cell_folder, fail
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
    blocks = written(make_section(name, options).blocks(found))
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
        assert len((tmp_path / picture).with_suffix(".csv").read_text().splitlines()) > 2
    for text in ("What else was found", "the papers: validation perplexity", "38.50"):
        assert text in html
        assert text in markdown


def interval(numbers: list[float]) -> float:
    """Half the 95 % interval of a mean of two numbers: Student's t with one degree of freedom is 12.706."""
    assert len(numbers) == 2
    return 12.7062047 * statistics.stdev(numbers) / 2**0.5


def test_settings_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    found = results(tmp_path, grid={LAYERS: [4, 1, 2]}, variants={"b": {}, "a": {}})
    assert [group.label for group in groups(found)] == [f"{name}, n_layer {n}" for name in "ba" for n in (1, 2, 4)]


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
            assert shown == measure(tag).text(statistics.mean(numbers), interval(numbers))
    for row, line in zip(cells.rows, rows, strict=True):
        assert row[0] == line["cell"]
        assert row[2:] == [measure(tag).text(float(line[tag])) for tag in found.study.measure]
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
    assert re.search(r"Step time against n_layer is best described by a line, 10(\.00)? \+ 20(\.00)? · n_layer", said)
    assert "(exact, 6 cells); ruled out: a power law." in said
    assert "The papers say so; so it is here: a line is exact." in said
    said = sentences(changed(found, "cost/step_seconds", lambda depth, _: 0.01 * depth**1.3), "fit", **options)
    assert "is best described by a power law, 10 · n_layer^1.3000 (exact, 6 cells); ruled out: a line." in said
    assert "As a power law its exponent is 1.3000 [1.3000, 1.3000]." in said
    assert re.search(
        r"The papers say so; here it is not so: a line is ruled out, being up to \d+.\d\d% off the means.", said
    )
    one = StudyResults(found.study, found.results[::2])
    assert "3 cells are too few to rule out a power law" in sentences(one, "fit", **options)
    assert "The papers say so; here too few cells were measured to tell." in sentences(one, "fit", **options)
    noisy = changed(found, "cost/step_seconds", lambda depth, seed: 0.01 * depth * (1 + 0.4 * (seed - 0.5)))
    assert "The papers say so; here that is possible, as is a power law: a line" in sentences(noisy, "fit", **options)


def test_power_law(tmp_path: Path) -> None:
    found = results(tmp_path)
    said = sentences(found, "fit", x="cost/parameters", y="val/loss", kind="power")
    assert re.search(r"is best described by a power law, 3(\.000)? · parameters\^-0.0500 \(exact, 6 cells\)", said)
    nothing = changed(found, "val/loss", lambda depth, seed: 0.0)
    assert "a fit with relative errors needs figures above 0" in sentences(nothing, "fit", x="n_layer", y="val/loss")


def test_trend_is_tested_and_held_against_the_reference(tmp_path: Path) -> None:
    found = results(tmp_path, reference=REFERENCE)
    said = sentences(found, "trend", x="n_layer", y="val/perplexity")
    assert "Validation perplexity falls at every step of n_layer from 1 to 4 (-12.00, p < 0.001)" in said
    assert "This agrees with the papers in direction: from 2 to 4 their validation perplexity falls too" in said
    rising = changed(found, "val/perplexity", lambda depth, seed: 30.0 + depth + 0.001 * seed * depth)
    said = sentences(rising, "trend", x="n_layer", y="val/perplexity")
    assert "rises at every step of n_layer" in said
    assert "This differs from the papers: from 2 to 4 their validation perplexity falls, ours rises" in said


def test_a_trend_that_the_seeds_do_not_show_is_none(tmp_path: Path) -> None:
    found = results(tmp_path, reference=REFERENCE, seeds=[0, 1, 2])
    luck = {1: [0, 1, 3], 2: [2, 0, 1], 4: [1, 2, 0]}
    loose = changed(found, "val/perplexity", lambda depth, seed: 30.0 - depth / 4 + luck[depth][seed])
    said = sentences(loose, "trend", x="n_layer", y="val/perplexity")
    assert "is not shown to change from n_layer 1 to 4" in said
    assert "no single step is shown" in said
    assert re.search(r"With 3 seeds and 3 tests in this report, a difference of [\d.]+ would be found in 80% of", said)
    assert "Whether this agrees with the papers is open" in said
    steps = changed(
        found, "val/perplexity", lambda depth, seed: {1: 9.0, 2: 5.0, 4: 5.0}[depth] + luck[depth][seed] / 99
    )
    said = sentences(steps, "trend", x="n_layer", y="val/perplexity")
    assert "falls from n_layer 1 to 4" in said
    assert "of single steps, 1 to 2 (falls) is shown" in said
    one = StudyResults(found.study, [result for result in found.results if result.cell.seed == 0])
    said = sentences(one, "trend", x="n_layer", y="val/perplexity")
    assert "was measured at 3 values of n_layer" in said
    assert "With one seed each, the spread between seeds is unknown" in said


def test_a_trend_of_several_lines_names_one_smallest_difference(tmp_path: Path) -> None:
    made = results(tmp_path, variants={"calm": {}, "uneven": {}})
    uneven = [
        dataclasses.replace(each, values=each.values | {"val/loss": 5 - depth / 9 + noise * each.cell.seed * depth**2})
        for each in made.results
        for depth, noise in [(each.cell.settings[LAYERS], 0.1 if each.cell.settings["variant"] == "uneven" else 0.01)]
    ]
    blocks = written(make_section("trend", {"x": "n_layer", "y": "val/loss"}).blocks(StudyResults(made.study, uneven)))
    said = " ".join(line for block in blocks if isinstance(block, Findings) for line in block.sentences)
    (table,) = [block for block in blocks if isinstance(block, Table)]
    assert re.findall(r"a difference of ([\d.]+) nats would be found", said) == [max(row[-1] for row in table.rows)]


def test_two_points_are_no_trend(tmp_path: Path) -> None:
    found = results(tmp_path, grid={LAYERS: [2, 4]}, reference=REFERENCE)
    said = sentences(found, "trend", x="n_layer", y="val/perplexity")
    assert "Validation perplexity is lower at n_layer 4 than at 2 (-8.000, p < 0.001)." in said
    assert "step" not in said
    same = changed(found, "val/perplexity", lambda depth, seed: 30.0 + depth * seed)
    assert "is not shown to differ between n_layer 2 and 4" in sentences(same, "trend", x="n_layer", y="val/perplexity")


def test_the_first_paragraph_answers_the_question(tmp_path: Path) -> None:
    sections = ["table", {"trend": {"x": "n_layer", "y": "val/perplexity"}}, {"layers": {"diagnostic": "token_cosine"}}]
    write_report(results(tmp_path, report=sections), tmp_path)
    first, second = (tmp_path / "report.md").read_text().replace("\\", "").split("\n\n")[1:3]
    assert first.startswith(
        "Validation perplexity falls at every step of n_layer from 1 to 4 (-12.00, p < 0.001). Token"
    )
    assert "rises in 6 of 6 runs from the embedding to the last layer. In the last layer it is higher with 4" in first
    assert second == "The question: What does depth do?"


def test_times_of_cells_that_ran_beside_others_are_marked(tmp_path: Path) -> None:
    found = results(tmp_path, report=["table", {"trend": {"x": "n_layer", "y": "cost/step_seconds"}}])
    write_report(found, tmp_path)
    assert "†" not in (tmp_path / "report.html").read_text()
    beside = [dataclasses.replace(result, neighbours=result.cell.seed) for result in found.results]
    for others, word in ((beside, "beside up to 1 other:"), (beside[:5], "beside up to 1 other:")):
        write_report(StudyResults(found.study, others), tmp_path)
        text = (tmp_path / "report.md").read_text()
        assert "step time (ms) †" in text
        assert "parameters †" not in text
        marked = [line for line in text.splitlines() if line.startswith("| n") and "=" in line and " † |" in line]
        assert len(marked) == sum(each.neighbours == 1 for each in others)  # each cell that shared, and no other
        assert f"cells ran {word} their times are not those of a cell alone" in text
    unknown = [dataclasses.replace(result, neighbours=None) for result in found.results]
    write_report(StudyResults(found.study, unknown), tmp_path)
    assert "6 of 6 cells ran where others may have run beside them" in (tmp_path / "report.md").read_text()


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text())))


def test_a_plots_csv_holds_what_is_drawn(tmp_path: Path) -> None:
    sections = [
        {"trend": {"x": "n_layer", "y": "val/perplexity"}},
        {"compare": {"measure": "val/loss"}},
        {"layers": {"diagnostic": "token_cosine"}},
        {"fit": {"x": "n_layer", "y": "cost/step_seconds"}},
    ]
    found = results(tmp_path, report=sections, reference=REFERENCE)
    write_report(found, tmp_path)
    trend = rows_of(tmp_path / "plots" / "trend_val-perplexity_n_layer.csv")
    ours = [row for row in trend if row["plot"] == "validation perplexity"]
    drawn = {(row["kind"], row["n_layer"], row["validation perplexity"]) for row in ours}
    each = {("seed", f"{depth}.0", f"{40 - 4 * depth + seed}.0") for depth in (1, 2, 4) for seed in (0, 1)}
    assert drawn == each | {("mean", f"{depth}.0", f"{40.5 - 4 * depth}") for depth in (1, 2, 4)}
    theirs = [row["validation perplexity"] for row in trend if row["kind"] == "published"]
    assert [float(value) for value in theirs] == [1.0, 29.4 / 38.5]
    compare = rows_of(tmp_path / "plots" / "compare_val-loss.csv")
    assert list(compare[0]) == ["line", "kind", "validation loss (nats)"]
    means = {row["line"]: float(row["validation loss (nats)"]) for row in compare if row["kind"] == "mean"}
    assert means == {f"n_layer {depth}": pytest.approx(3.0 * (1000.0 * depth) ** -0.05) for depth in (1, 2, 4)}
    layers = rows_of(tmp_path / "plots" / "layers_token_cosine.csv")
    after = [row for row in layers if row["plot"].startswith("after") and row["line"] == "n_layer 4"]
    assert [float(row["token cosine similarity"]) for row in after if row["kind"] == "mean"] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.5]
    )
    fit = rows_of(tmp_path / "plots" / "fit_cost-step_seconds_n_layer.csv")
    assert {row["line"] for row in fit if row["kind"] == "form"} >= {"a line"}


def test_plots_are_as_wide_as_a_column_or_the_page(tmp_path: Path) -> None:
    sections = [{"trend": {"x": "n_layer", "y": "val/perplexity"}}, {"compare": {"measure": "val/loss"}}]
    found = results(tmp_path, report=[*sections, {"layers": {"diagnostic": "token_cosine"}}], reference=REFERENCE)
    charts = {block.name: block.chart for block in report_blocks(found) if isinstance(block, Picture)}
    assert len(charts) == 3
    for chart in charts.values():
        list(chart.files())
        assert chart.figure.get_figwidth() == (3.4 if len(chart.axes) == 1 else 7.0)
        for ax in chart.axes:
            labels = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels()]
            assert all(7.5 <= label.get_fontsize() <= 8.5 for label in labels)


def layers_picture(folder: Path, diagnostic: str, values: list[float], **over: Any) -> Picture:
    """The picture of a diagnostic that is 0 before training and ``values`` after it, from the report."""
    made = study(folder, report=[{"layers": {"diagnostic": diagnostic}}], grid={LAYERS: [len(values)]}, **over)
    entries = [{"step": 0, diagnostic: [0.0] * len(values)}, {"step": 9, diagnostic: values}]
    found = StudyResults(made, [finished(cell, layers=entries) for cell in made.cells])
    return next(block for block in report_blocks(found) if isinstance(block, Picture))


def test_a_title_that_is_longer_than_the_axis_is_within_the_picture(tmp_path: Path) -> None:
    variants = {
        f"a variant with a long name, {rate}": {"model.init_args.dropout": rate} for rate in (0.1, 0.2, 0.3, 0.4)
    }
    chart = layers_picture(tmp_path, "angular_distance", [0.5, 0.1], variants=variants).chart
    assert len(chart.axes[0].get_ylabel()) > 50
    dict(chart.files())
    height, label = chart.figure.bbox.height, chart.axes[0].yaxis.label.get_window_extent()
    assert label.y0 >= 0
    assert label.y1 <= height


def test_one_block_that_exceeds_all_others_does_not_hide_them(tmp_path: Path) -> None:
    picture = layers_picture(tmp_path, "layer_value", [2.5, 0.02, -0.01, 0.03])
    assert [ax.get_yscale() for ax in picture.chart.axes] == ["symlog", "symlog"]
    assert picture.caption.endswith("the vertical scale is linear up to 0.01 and logarithmic above.")
    alike = layers_picture(tmp_path, "layer_value", [0.3, 0.2, 0.2, 0.3])
    assert [ax.get_yscale() for ax in alike.chart.axes] == ["linear", "linear"]


def test_a_table_too_wide_for_a_page_is_written_in_parts() -> None:
    header = ["setting", "seed", *(f"measure {number}" for number in range(20))]
    rows = [[f"setting {row}", str(row), *(f"{row}.{column:03}" for column in range(20))] for row in range(3)]
    table = Table(header, rows, "Figures.", frozenset({3, 19}), keys=2)
    heading, *parts = fitted([Heading("All"), table])
    assert heading == Heading("All")
    assert len(parts) > 1
    assert [part.caption for part in parts] == ["Figures.", *["All, continued."] * (len(parts) - 1)]
    assert all(part.header[:2] == header[:2] for part in parts)
    assert [title for part in parts for title in part.header[2:]] == header[2:]
    for number, row in enumerate(rows):
        assert [cell for part in parts for cell in part.rows[number][2:]] == row[2:]
        assert all(len("  ".join(part.rows[number])) <= 100 for part in parts)
    theirs = [part.header[column] for part in parts for column in sorted(part.theirs)]
    assert theirs == ["measure 1", "measure 17"]
    assert fitted([narrow := Table(header[:4], [row[:4] for row in rows], "Few.")]) == [narrow]


def test_latex_tables_hold_the_reports_figures(tmp_path: Path) -> None:
    found = results(tmp_path, report=["table"], reference=REFERENCE)
    write_report(found, tmp_path)
    text = (tmp_path / "tables.tex").read_text()
    tables = [block for block in fitted(report_blocks(found)) if isinstance(block, Table)]
    assert text.count(r"\begin{table}") == text.count(r"\bottomrule") == len(tables)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}")
    for table in tables:
        for row in table.rows:
            plain = " & ".join(row).replace("_", r"\_").replace("±", r"$\pm$").replace("–", "--")
            assert f"{plain} " + r"\\" in text
    special = Table(["50% of x_1 & μ"], [["[-0.5, 3]"], ["a$b ~ {c}^2 #1"]], "A \\ B")
    made = to_latex("s", [special])
    for escaped in (r"\% of", r"x\_1", r"\&", r"$\mu$", r"{[}$-$0.5, 3]", r"a\$b \textasciitilde{} \{c\}", r"\#1"):
        assert escaped in made
    assert r"A \textbackslash{} B" in made
    long = to_latex("s", [Heading("Cells"), Table(["cell"], [[str(row)] for row in range(90)], "Every cell.")])
    assert long.count(r"\begin{table}") == 3
    assert long.count("Cells, continued.") == 2
    # about as many letters as a line of LaTeX's article holds, and a few more
    fits, wide = (Table(["x" * 12] * 6, [["x" * size] * 6], "Wide.") for size in (13, 14))
    assert r"\footnotesize" in to_latex("s", [fits])
    assert r"\scriptsize" in to_latex("s", [wide])


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


@pytest.mark.parametrize(
    ("difference", "half_width", "text"),
    [
        (-0.08986, 0.10215, "-0.090 [-0.192, 0.012]"),
        (50.57, 7.26, "+50.6 [43.3, 57.8]"),
        (242.0, 15.2, "+242.0 [226.8, 257.2]"),
        (-12345.6, 850.0, "-12,346 [-13,196, -11,496]"),
        (0.25, 0.0, "+0.2500"),
    ],
)
def test_a_difference_has_the_digits_that_its_error_warrants(difference: float, half_width: float, text: str) -> None:
    assert measure("val/perplexity").change_text(difference, half_width) == text


def test_compare_holds_settings_against_one(tmp_path: Path) -> None:
    figures = {1: [5.0, 5.2], 2: [5.1, 5.4], 4: [4.0, 4.2001]}
    found = changed(results(tmp_path), "val/loss", lambda depth, seed: figures[depth][seed])
    said = sentences(found, "compare", measure="val/loss", beside="n_layer 1")
    assert "The lowest mean of validation loss is that of n_layer 4" in said
    assert (
        "Compared with n_layer 1, validation loss is lower with n_layer 4 "
        "(-0.99995 nats [-1.00059, -0.99931], p < 0.001)." in said
    )
    assert "is higher" not in said
    assert "1 of 2 settings is not shown to differ from n_layer 1 in validation loss." in said
    assert re.search(
        r"With 2 seeds and 2 tests in this report, a difference of [\d.]+ nats would be found in 80%", said
    )
    said = sentences(found, "compare", measure="val/loss", beside="n_layer 4")
    assert "Compared with n_layer 4, validation loss is higher with n_layer 2 (" in said
    one = StudyResults(found.study, found.results[::2])
    assert "nothing can be said to differ" in sentences(one, "compare", measure="val/loss", beside="n_layer 1")
    with pytest.raises(
        CallError, match="beside is 'GPT'; it must be one of the settings n_layer 1; n_layer 2; n_layer 4"
    ):
        make_section("compare", {"measure": "val/loss", "beside": "GPT"}).check(found.study)


def test_figures_that_decimals_would_show_as_0_have_an_exponent(tmp_path: Path) -> None:
    figures = {1: [4e-8, 6e-8], 2: [4e-11, 6e-11], 4: [0.5, 0.6]}
    found = changed(results(tmp_path), "val/loss", lambda depth, seed: figures[depth][seed])
    said = sentences(found, "compare", measure="val/loss", beside="n_layer 1")
    assert "is that of n_layer 2 (5e-11 ± 1.3e-10 nats), the highest that of n_layer 4 (0.5500 ± 0.6353 nats)" in said
    tables = [
        each
        for each in written(make_section("compare", {"measure": "val/loss", "beside": "n_layer 1"}).blocks(found))
        if isinstance(each, Table)
    ]
    assert [row[1] for row in tables[0].rows if row[0] == "n_layer 2"] == ["-4.99e-08 [-1.77e-07, 7.7e-08]"]


def test_flow_is_the_ratio_of_first_and_last_block(tmp_path: Path) -> None:
    made = study(tmp_path)
    norms = {1: [1.0], 2: [0.5, 1.0], 4: [0.001, 0.01, 0.1, 1.0]}
    found = [
        finished(cell, layers=[{"step": 9, "grad_norm": [(1 + cell.seed) * each for each in norms[depth]]}])
        for cell in made.cells
        if (depth := cell.settings[LAYERS])
    ]
    blocks = written(make_section("flow", {"diagnostic": "grad_norm"}).blocks(StudyResults(made, found)))
    (table,) = (block for block in blocks if isinstance(block, Table))
    assert [row[0] for row in table.rows] == ["n_layer 2", "n_layer 4"]  # one block has no way to go
    assert [row[-2:] for row in table.rows] == [["0.5000", "0.5000"], ["0.001000", "0.1000"]]
    (said,) = (block.sentences for block in blocks if isinstance(block, Findings))
    assert said == [
        "The first and the last block are within a factor of 10 in gradient norm with: n_layer 2.",
        "Gradient norm vanishes towards the first block with n_layer 4: there it is 0.001000 times the last block's, a "
        "factor of 0.1000 per block.",
    ]
    (answer,) = (block.answer for block in blocks if isinstance(block, Findings))
    assert answer == (
        "Gradient norm keeps its size along the blocks with n_layer 2, and vanishes towards the first block with "
        "n_layer 4."
    )
    wide = [dataclasses.replace(each, layers=[{"step": 9, "grad_norm": [0.1 + each.cell.seed, 1.0]}]) for each in found]
    said = sentences(StudyResults(made, wide), "flow", diagnostic="grad_norm")
    assert (
        "Whether gradient norm keeps its size towards the first block with n_layer 2 is open: there it is 0.3317"
        in said
    )
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
    made = study(folder, variants=variants, grid={"model.init_args.n_layer": [6]}, seeds=[0, 1, 2])
    found = []
    for cell in made.cells:
        last = bare if cell.settings["variant"] == "none" else 0.9
        shares = [0.1, 0.2, 0.4, 0.6, 0.8, 0.9][:: 1 if positive else -1]
        entry = {
            "token_cosine": [0.0, 0.01, 0.03, 0.06, 0.1, 0.15, 0.21],  # grows by 0.01, 0.02, …, 0.06
            "rank_residual": [1.0, 0.9, 0.9, 0.9, 0.9, 0.9, last],
            "value_positive_share": shares,
        }
        found.append(finished(cell, layers=[{"step": 0, **entry}, {"step": 9, **entry}]))
    return StudyResults(made, found)


def norm_results(folder: Path, **more: Any) -> StudyResults:
    """Runs with and without LayerNorm, whose last rank residual it raises by 0.1, 0.2 and 0.4 by seed."""
    variants = {"pre": {}, "bare": {"model.init_args.norm": "none"}, **more}
    made = study(folder, variants=variants, grid={LAYERS: [2]}, seeds=[0, 1, 2])
    found = []
    for cell in made.cells:
        last = 0.5 if cell.settings["variant"] == "bare" else 0.5 + [0.1, 0.2, 0.4][cell.seed]
        entry = {"token_cosine": [0.0, 0.1, 0.2], "rank_residual": [1.0, 0.9, last]}
        found.append(finished(cell, layers=[{"step": 0, **entry}]))
    return StudyResults(made, found)


def test_runs_that_differ_in_more_than_the_norm_are_no_pairs(tmp_path: Path) -> None:
    said = sentences(norm_results(tmp_path), ACCOUNTS)
    assert "higher with it in 3 of 3 pairs that differ only in the norm, tested by seed (difference +0.23 " in said
    others = {f"dropout {rate}": {"model.init_args.dropout": rate} for rate in (0.1, 0.2)}
    assert sentences(norm_results(tmp_path, **others), ACCOUNTS) == said


def test_accounts_follow_the_figures(tmp_path: Path) -> None:
    said = sentences(smoothing_results(tmp_path, bare=0.01, positive=True), ACCOUNTS)
    assert "before training, 0.0111 times [0.0111, 0.0111]; after training, 0.0111 times" in said
    assert (
        "growth of token cosine across a block: 1.00 (36 blocks of 6 runs), p = 0.0039 corrected for the 1 test" in said
    )
    assert "2103.03404): supported." in said
    assert "2401.04301): supported." in said
    assert "2312.06182): not tested." in said
    assert "2405.18781): not tested." in said
    said = sentences(smoothing_results(tmp_path, bare=0.8, positive=False), ACCOUNTS)
    assert "2103.03404): not supported." in said
    assert "2401.04301): not supported." in said


def test_a_layer_without_a_figure_leaves_a_gap(tmp_path: Path) -> None:
    """Attention has no softmax in some layers, and so no entropy: the others keep their numbers."""
    made = study(tmp_path, grid={LAYERS: [4]})
    entropies = [None, 1.5, None, 2.5]
    found = StudyResults(made, [finished(c, layers=[{"step": 0, "attention_entropy": entropies}]) for c in made.cells])
    blocks = written(make_section("layers", {"diagnostic": "attention_entropy"}).blocks(found))
    (table,) = [block for block in blocks if isinstance(block, Table)]
    assert table.header == ["block", "n_layer 4"]
    assert table.rows == [["block 0", ""], ["1", "1.500"], ["2", ""], ["3", "2.500"]]
    (picture,) = [block for block in blocks if isinstance(block, Picture)]
    assert {point[3] for point in picture.chart.points} == {1, 3}
    said = sentences(found, "layers", diagnostic="attention_entropy")
    assert "of the last block after training: n_layer 4: 2.500" in said
    assert sentences(found, "flow", diagnostic="attention_entropy") == ""


def test_two_pictures_of_one_name_are_two_files(tmp_path: Path) -> None:
    compared = [{"compare": {"measure": "val/loss", "beside": f"n_layer {depth}"}} for depth in (1, 2)]
    write_report(results(tmp_path, report=compared), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert re.findall(r"plots/(\w+-?\w+)\.png", text) == ["compare_val-loss", "compare_val-loss_2"]
    first, second = ((tmp_path / f"plots/compare_val-loss{end}.svg").read_bytes() for end in ("", "_2"))
    assert first != second


def test_a_setting_without_figures_is_no_single_seed(tmp_path: Path) -> None:
    made = study(tmp_path)
    found = StudyResults(
        made, [CellResult(c, "missing") if c.settings[LAYERS] == 1 else finished(c) for c in made.cells]
    )
    said = sentences(found, "compare", measure="val/loss", beside="n_layer 1")
    assert "n_layer 1 has no figures to compare the others with." in said
    assert "one seed" not in said


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("compare", {"measure": "cost/step_seconds", "beside": "n_layer 1"}),
        ("trend", {"x": "n_layer", "y": "cost/step_seconds"}),
        ("gain", {"x": "n_layer", "y": "cost/step_seconds"}),
        ("fit", {"x": "n_layer", "y": "cost/step_seconds", "claim": "the papers say that time is linear"}),
    ],
)
def test_nothing_is_concluded_from_times_of_cells_that_ran_beside_others(
    name: str, options: dict[str, str], tmp_path: Path
) -> None:
    made = study(tmp_path)
    reason = "Step time was measured while other cells ran or may have run (6 of 6 cells), so nothing is concluded"
    for neighbours in (0, 1):
        found = StudyResults(made, [finished(cell, neighbours=neighbours) for cell in made.cells])
        blocks = written(make_section(name, options).blocks(found))
        (findings,) = [block for block in blocks if isinstance(block, Findings)]
        assert (reason in " ".join(findings.sentences)) == bool(neighbours)
        assert bool(findings.answer) == (not neighbours)


def test_an_axis_goes_by_its_short_name(tmp_path: Path) -> None:
    axis = {"model.init_args.attention.window": [4, 8, 16]}
    found = results(tmp_path, grid=axis, report=[{"fit": {"x": "window", "y": "val/loss"}}])
    check_report(found.study)
    assert "against window" in sentences(found, "fit", x="window", y="cost/step_seconds")


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


def test_the_error_of_a_cell_does_not_say_where_the_study_lay(tmp_path: Path) -> None:
    made = study(tmp_path)
    place = cell_folder(tmp_path, made.cells[0])
    place.mkdir(parents=True)
    fail(place, f"step 4 was not taken; the batch is saved in {place}/version_0/non_finite/step_4.ckpt")
    failed = collect(made, tmp_path).results[0]
    assert failed.error == "step 4 was not taken; the batch is saved in version_0/non_finite/step_4.ckpt"


def test_a_section_that_has_no_figures_is_named(tmp_path: Path) -> None:
    found = results(
        tmp_path, report=["table", {"layers": {"diagnostic": "rms"}}, {"layers": {"diagnostic": "token_cosine"}}]
    )
    write_report(found, tmp_path)
    text = (tmp_path / "report.md").read_text().replace("\\", "")
    assert "Left out, because too few finished cells have the figures: layers (diagnostic rms)." in text
    nothing = StudyResults(found.study, [CellResult(cell, "missing") for cell in found.study.cells])
    write_report(nothing, tmp_path)
    assert "Left out" not in (tmp_path / "report.md").read_text(), "that nothing is finished says it"


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


def test_products_and_settings_can_be_fitted_and_times_on_either_axis_are_marked(tmp_path: Path) -> None:
    made = study(tmp_path, grid={LAYERS: [1, 2, 4, 8]})
    values = {"cost/step_seconds": 1.0, "cost/parameters": 10.0, "val/loss": 2.0}
    found = [
        finished(cell, values={name: value * cell.settings[LAYERS] for name, value in values.items()}, neighbours=1)
        for cell in made.cells
    ]
    results = StudyResults(made, found)
    for y in ("n_layer", "n_layer * n_layer", "cost/step_seconds * cost/parameters"):
        section = make_section("fit", {"x": "n_layer * cost/parameters", "y": y})
        section.check(made)
        assert "power law" in sentences(results, "fit", x="n_layer * cost/parameters", y=y)
    for options in ({"x": "cost/step_seconds", "y": "val/loss"}, {"x": "n_layer", "y": "n_layer * cost/step_seconds"}):
        assert "so nothing is concluded from it" in sentences(results, "fit", **options)


def test_equal_figures_have_no_lowest_and_one_setting_no_name(tmp_path: Path) -> None:
    made = study(tmp_path, grid={LAYERS: [1, 2]})
    same = StudyResults(made, [finished(cell, values={"cost/parameters": 1000.0}) for cell in made.cells])
    said = sentences(same, "compare", measure="cost/parameters", beside="n_layer 1")
    assert "All settings have the same mean of parameters (1,000)." in said
    falling = StudyResults(
        made,
        [finished(cell, values={"val/loss": 3.0 - cell.settings[LAYERS] + cell.seed / 1e3}) for cell in made.cells],
    )
    assert "Validation loss falls from n_layer 1 to 2." in sentences(falling, "gain", x="n_layer", y="val/loss")
    theirs = {"name": "theirs", "axis": LAYERS, "values": {"val/loss": {2: 3.0, 1: 3.0}}}
    still = StudyResults(study(tmp_path, grid={LAYERS: [1, 2]}, reference=theirs), falling.results)
    said = sentences(still, "trend", x="n_layer", y="val/loss")
    assert "from 1 to 2 their validation loss does not change" in said
    assert "agrees" not in said
