"""docs/architecture.md shows the house as it is: every module once, and none that is gone."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
TREE = re.search(r"^```\n(.*?)^```", (ROOT / "docs" / "architecture.md").read_text(), re.M | re.S)


def modules() -> Counter[str]:
    """How many modules of each file name there are."""
    files = [file for folder in ("lightning_gpt", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    return Counter(file.name for file in files if not file.name.startswith("__"))


def test_every_module_stands_in_the_tree_and_nothing_else_does() -> None:
    assert TREE is not None
    shown = Counter(re.findall(r"\b[a-z_0-9]+\.py\b", TREE[1]))
    assert shown == modules(), f"missing: {modules() - shown}; gone: {shown - modules()}"


def test_every_folder_stands_in_the_tree() -> None:
    assert TREE is not None
    packages = {
        file.parent.name for folder in ("lightning_gpt", "benchmarks") for file in (ROOT / folder).rglob("*.py")
    }
    assert packages <= set(re.findall(r"\b([a-z_]+)/", TREE[1]))
