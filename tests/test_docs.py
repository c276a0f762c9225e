"""What the documentation says can be typed and pointed at."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", ["README.md", "docs/student.md"])
def test_python_blocks_run(page: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_config_files_exist(page: Path) -> None:
    for name in re.findall(r"configs/[\w/]+\.yaml", page.read_text()):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_every_dependency_has_its_reason() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    reasons = (ROOT / "docs/dependencies.md").read_text()
    for requirement in listed:
        name = re.split(r"[\[<>=]", requirement)[0]
        assert f"`{name}" in reasons, f"docs/dependencies.md says nothing of {name}"


def test_every_command_is_in_the_readme() -> None:
    from lightning_gpt.commands import COMMANDS

    readme = (ROOT / "README.md").read_text()
    for command in COMMANDS:
        assert f"`{command}`" in readme or f"lightning-gpt {command}" in readme
