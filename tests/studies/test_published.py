"""The studies in docs/results/ can be read, checked and run again by others."""

import csv
import json
from pathlib import Path

import pytest

from lightning_gpt.studies.report.report import check_report
from lightning_gpt.studies.spec.study_file import read_study

DOCS = Path(__file__).parents[2] / "docs"
PUBLISHED = sorted((DOCS / "results").iterdir())


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda each: each.name)
def test_the_study_is_the_one_of_the_results(folder: Path) -> None:
    study = read_study(folder / "study.yaml", None)
    check_report(study)
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["cell"] for row in rows] == [cell.name for cell in study.provisional.cells]
    assert {row["status"] for row in rows} == {"finished"}
    assert list(rows[0])[-len(study.measure) :] == study.measure
    assert (folder / "tuning.csv").exists() == (study.tune is not None)
    assert "torch" in json.dumps(json.loads((folder / "environment.json").read_text()))


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda each: each.name)
def test_a_page_of_findings_rests_on_it(folder: Path) -> None:
    assert any(f"results/{folder.name}/report.md" in page.read_text() for page in (DOCS / "findings").glob("*.md"))
