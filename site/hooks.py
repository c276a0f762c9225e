"""What the site holds beside docs/: pages from the root of the repository, a reference page per package folder, and the
lessons with their outputs, which are run for it.

MkDocs calls the functions below by their names. Links between files of the repository become links between pages, so
the sources stay readable where they are.
"""

import ast
import contextlib
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lightning_gpt"
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "examples/many_devices/README.md": "many-devices.md",
}
"""Pages that are not in docs/, and their names in the site."""

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference to the navigation."""
    pages = [{title: page} for title, page, _ in _reference()]
    config.nav = [*(config.nav or []), {"Reference": pages}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for _, page, content in [*_reference(), *_lessons()]:
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page at pages of the site; what has none keeps its text."""
    here = page.file.src_uri
    if here.startswith(("reference/", "lessons/")):
        return markdown
    source = {page: source for source, page in ELSEWHERE.items()}.get(here, f"docs/{here}")

    def rewritten(link: re.Match[str]) -> str:
        shown, text, target, anchor = link[1], link[2], link[3], link[4] or ""
        path = (ROOT / source).parent / target
        if not target or ":" in target or not path.exists():
            return link[0]
        found = _page_of(Path(os.path.normpath(path)).relative_to(ROOT))
        if found is None:
            return text
        found = os.path.relpath(found, Path(here).parent)
        return f"{shown}[{text}]({found}{anchor if '#' not in found else ''})"

    return _LINK.sub(rewritten, markdown)


def _page_of(file: Path) -> str | None:
    """The page, or the image, of a file of the repository, from the top of the site."""
    if str(file) in ELSEWHERE:
        return ELSEWHERE[str(file)]
    if file.parts[0] == "docs":
        return str(file.relative_to("docs").with_suffix(".md" if file.suffix == ".ipynb" else file.suffix))
    if file.parts[0] != "lightning_gpt":
        return None
    if file.suffix == ".py":
        return f"reference/{_name(file.parent)}.md#{'.'.join(file.with_suffix('').parts)}"
    return f"reference/{_name(file)}.md" if (ROOT / file).is_dir() else None


def _name(folder: Path) -> str:
    return ".".join(folder.parts)


def _reference() -> Iterator[tuple[str, str, str]]:
    """The title, the name and the content of each reference page."""
    yield "Public interface", "reference/index.md", _public()
    for folder in sorted({file.parent for file in PACKAGE.rglob("*.py")}):
        name = _name(folder.relative_to(ROOT))
        modules = [file for file in sorted(folder.glob("*.py")) if file.stem not in ("__init__", "__main__")]
        if not modules:
            continue
        described = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        about = "" if folder == PACKAGE else described.partition("\n\n")[0]
        sections = [f"::: {name}.{module.stem}" for module in modules]
        yield name, f"reference/{name}.md", "\n\n".join([f"# {name}", about, *sections])


def _lessons() -> Iterator[tuple[str, str, str]]:
    """The title, the name and the content of each lesson, run in an empty folder."""
    spec = importlib.util.spec_from_file_location("site_lessons", ROOT / "site/lessons.py")
    assert spec is not None
    assert spec.loader is not None
    lessons = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lessons)
    for notebook in sorted((ROOT / "docs/lessons").glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            content = lessons.page(notebook)
        yield content.splitlines()[0].lstrip("# "), f"lessons/{notebook.stem}.md", content


def _public() -> str:
    """A table of the names in ``lightning_gpt.__all__`` and where they are described."""
    homes = {}
    for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            homes |= {alias.name: str(node.module) for alias in node.names if node.module != "importlib"}
    rows = []
    for name, module in homes.items():
        home, node = _definition(module, name)
        summary = (ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " ")
        rows.append(f"| [`{name}`][{home}.{name}] | {summary.replace('``', '`')} |")
    start = ["# Public interface", "", "`from lightning_gpt import …`", "", "| name | what |", "| --- | --- |"]
    return "\n".join([*start, *rows])


def _definition(module: str, name: str) -> tuple[str, ast.ClassDef | ast.FunctionDef]:
    """The module that defines a name, and the definition; a package's ``__init__`` may import it from there."""
    path = ROOT / module.replace(".", "/")
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return _definition(str(node.module), name)
    raise LookupError(f"{module} has no {name}")
