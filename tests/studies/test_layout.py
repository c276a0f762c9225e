"""Imports inside ``studies`` point one way: verdicts → report → run → spec."""

import ast
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[2] / "lightning_gpt/studies"
MAY_IMPORT = {
    "spec": {"spec"},
    "run": {"spec", "run"},
    "report": {"spec", "run", "report"},
    "verdicts": {"spec", "run", "report"},
}


@pytest.mark.parametrize("file", sorted(STUDIES.rglob("*.py")), ids=lambda file: str(file.relative_to(STUDIES)))
def test_imports_point_one_way(file: Path) -> None:
    nodes = ast.walk(ast.parse(file.read_text()))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    rooms = {module.split(".")[2] for module in modules if module.startswith("lightning_gpt.studies.")}
    assert rooms <= MAY_IMPORT.get(file.relative_to(STUDIES).parts[0], set())
