"""The lessons run, every exercise knows its solution from a wrong answer, and the site can show them."""

import importlib.util
import json
import os
import re
from pathlib import Path

import pytest

from lightning_gpt.lessons import SHORT, check, steps

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "docs/lessons").glob("*.ipynb"))
_SPEC = importlib.util.spec_from_file_location("lessons_of_the_site", ROOT / "site/lessons.py")
assert _SPEC is not None
assert _SPEC.loader is not None
site = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(site)


@pytest.fixture(autouse=True)
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A twentieth of the work, in an empty folder."""
    monkeypatch.setenv(SHORT, "short")
    monkeypatch.chdir(tmp_path)


def exercises(lesson: Path) -> list[dict]:
    return [cell for cell in json.loads(lesson.read_text())["cells"] if "solution" in cell["metadata"]]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_a_lesson_runs_and_its_solutions_are_right(lesson: Path) -> None:
    done = site.run(lesson, solved=True)
    assert "".join(cell.printed for cell in done).count("Right.\n") == len(exercises(lesson)) >= 3
    assert sum(len(cell.pictures) for cell in done) >= 1


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_a_lesson_is_kept_without_outputs_and_asks_before_it_tells(lesson: Path) -> None:
    cells = json.loads(lesson.read_text())["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
    for cell in exercises(lesson):
        asked, told = "".join(cell["source"]), "".join(cell["metadata"]["solution"])
        assert " = ...\n" in asked
        assert "..." not in told
        assert asked.partition("check(")[2] == told.partition("check(")[2]
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", lesson.read_text()):
        assert (lesson.parent / target).exists(), f"{lesson.name} links to {target}"


def test_a_page_shows_code_and_outputs(tmp_path: Path) -> None:
    code = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nprint('seen')"
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["[next](2.ipynb)"]},
        {"cell_type": "code", "id": "b", "metadata": {"solution": ["print(1)"]}, "source": [code]},
    ]
    (tmp_path / "1.ipynb").write_text(json.dumps({"cells": cells}))
    page = site.page(tmp_path / "1.ipynb")
    assert "[next](2.md)" in page
    assert f"```python\n{code}\n```" in page
    assert "```text\nseen\n```" in page
    assert "![output](data:image/png;base64,iVBOR" in page
    assert "few steps" in page
    assert site.run(tmp_path / "1.ipynb", solved=True)[1].printed == "1\n"


def test_answers_are_told_apart(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for answer, right in ((..., 1), (1, 1), (2, 1), (0.1 + 0.2, 0.3), (3, lambda value: value > 3), ("a", "a")):
        check(answer, right, "look again")
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["Replace", "Right.", "Not", "Right.", "Not", "Right."]
    # an answer of another kind is wrong rather than an error, and a list may stand for a tuple
    for answer, right in (("a", 0.3), ([1], lambda ids: ids.tolist()), (3, (1, 2)), ([1, 2], (1, 2))):
        check(answer, right, "look again")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["Not", "Not", "Not", "Right."]
    assert said[2] == "Not yet. Look again."
    assert steps(100) == 5
    monkeypatch.delenv(SHORT)
    assert steps(100) == 100
    assert os.environ.get(SHORT) is None
