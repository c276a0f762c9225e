"""What the documentation says can be typed and pointed at."""

import re
from pathlib import Path

import pytest
import yaml

from tests.processes import must_run

ROOT = Path(__file__).parents[1]
DOCS = sorted(page for page in (ROOT / "docs").rglob("*.md") if "results" not in page.relative_to(ROOT).parts)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
MOST_WORDS = 1500
WORDS_BEFORE_A_COMMAND = 200
NOTHING_TO_RUN = {
    "docs/architecture/data.md": "reasons for decisions about data, instruments and studies",
    "docs/architecture/models.md": "reasons for decisions about models and training",
}
"""Pages that no command would make clearer."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def headings(page: Path) -> set[str]:
    """The anchors that a page's headings make, as GitHub and the site do."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#{1,4} (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", ["README.md", "docs/student.md"])
def test_python_blocks_run(page: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]*)\)", page.read_text()):
        other = page.parent / target if target else page
        assert other.suffix != ".md" or anchor in headings(other), f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_a_page_is_read_at_one_sitting(page: Path) -> None:
    """At most 1,500 words, without the code."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    assert len(prose.split()) <= MOST_WORDS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_first_command_is_on_the_first_screen(page: Path) -> None:
    """The first block of code comes after at most 200 words: a screen, with a picture and a table."""
    before, fence, _ = page.read_text().partition("\n```")
    if name_of(page) in NOTHING_TO_RUN:
        assert not fence, "this page has something to run"
    else:
        assert fence
        assert len(before.split()) <= WORDS_BEFORE_A_COMMAND


def test_the_readme_begins_with_a_picture_and_what_one_gets() -> None:
    before = (ROOT / "README.md").read_text().partition("\n```")[0]
    assert 0 < before.index("](docs/images/") < before.index("You get")


def test_every_picture_is_on_a_page() -> None:
    shown = {
        (page.parent / name).resolve()
        for page in PAGES
        for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())
    }
    pictures = set((ROOT / "docs/images").iterdir())
    assert pictures
    assert pictures <= shown


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_can_be_typed(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        compile(block, name_of(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_config_files_exist(page: Path) -> None:
    for name in re.findall(r"configs/[\w/]+\.yaml", page.read_text()):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_study_that_shows_how_to_write_one_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs/studies/write.md").read_text()
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "dropout.yaml").write_text(re.findall(r"```yaml\n(.*?)```", page, re.S)[0])
    said = must_run("study", "--config", "dropout.yaml", "--preset", "cpu", "--slurm", "true", cwd=tmp_path).stdout
    assert "--array=0-3" in said, "two depths, with and without dropout"


def test_the_pages_of_recipes_show_the_lines_of_the_files() -> None:
    pages = "".join((ROOT / page).read_text() for page in ("docs/recipes.md", "docs/recipes/mup.md"))
    shown = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", pages, re.M | re.S)]
    lines = {}
    for file in sorted((ROOT / "configs/recipes").glob("*.yaml")):
        lines[file.stem] = yaml.safe_load(file.read_text())
        lines[file.stem].get("model", {}).pop("class_path", None)
    del lines["depth"]  # the page has its command instead
    assert shown == [
        lines[name]
        for name in ("muon", "wsd", "averaging", "batch_warmup", "z_loss", "qk_clip", "ngpt", "spikes", "mup")
    ]
    assert len(lines) == len(shown)


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
