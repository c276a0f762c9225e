"""The report of a study from its finished cells: ``report.html``, ``report.md``, ``tables.tex`` and the plots."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_gpt.studies.report.document import Findings, Heading, Lead, Picture, Table, Text, Written
from lightning_gpt.studies.report.groups import label_of
from lightning_gpt.studies.report.html import to_html
from lightning_gpt.studies.report.latex import to_latex
from lightning_gpt.studies.report.markdown import to_markdown
from lightning_gpt.studies.report.page_width import fitted
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections import make_section
from lightning_gpt.studies.report.tested import written
from lightning_gpt.studies.report.tuning_table import tuning_blocks
from lightning_gpt.studies.spec.cells import value_at
from lightning_gpt.studies.spec.equal import AMOUNTS, PARAMETERS, WIDTH_KEY
from lightning_gpt.studies.spec.measures import measure
from lightning_gpt.studies.spec.study import Study
from lightning_gpt.whole_file import write_file

_ANSWERS = 5
"""So many sections answer the study's question: a study lists first those that do."""


def check_report(study: Study) -> None:
    """Refuse sections that do not exist or do not suit the study, before anything runs."""
    for name, options in study.report:
        make_section(name, options).check(study)


def write_report(results: StudyResults, folder: Path) -> str:
    """Write the report and its plots to ``folder``; returns a line that names the files."""
    blocks = _named_apart(fitted(report_blocks(results)))
    svgs, files = {}, {}
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for block in blocks:
        if isinstance(block, Picture):
            for kind, content in block.chart.files():
                (folder / "plots" / f"{block.name}.{kind}").write_bytes(content)
                if kind == "svg":
                    svgs[block.name] = content
            files[block.name] = f"plots/{block.name}.png"
    title = f"Study {results.study.title}"
    write_file(folder / "report.html", to_html(title, blocks, svgs))
    write_file(folder / "report.md", to_markdown(title, blocks, files))
    write_file(folder / "tables.tex", to_latex(title, blocks))
    done = f"{len(results.finished)} of {len(results.results)} cells"
    return f"{folder}: report.html, report.md, tables.tex, results.csv, results.json and plots of {done}"


def _named_apart(blocks: Sequence[Written]) -> list[Written]:
    """The same, with a number after the name of a picture that has the name of one before it."""
    names: Counter[str] = Counter()
    found: list[Written] = []
    for block in blocks:
        if isinstance(block, Picture):
            names[block.name] += 1
            if names[block.name] > 1:
                block = replace(block, name=f"{block.name}_{names[block.name]}")
        found.append(block)
    return found


def report_blocks(results: StudyResults) -> list[Written]:
    """The report in order: question and answer, missing figures, findings, sections, how it was made."""
    study = results.study
    sections = [(name, options, make_section(name, options).blocks(results)) for name, options in study.report]
    empty = [_section_text(name, options) for name, options, content in sections if not content]
    blocks = written([block for *_, content in sections for block in content])
    blocks = [
        block for block in [*blocks, *tuning_blocks(results)] if not isinstance(block, Findings) or block.sentences
    ]
    stated = dict.fromkeys(block.answer or block.sentences[0] for block in blocks if isinstance(block, Findings))
    answers = [block.answer for block in blocks if isinstance(block, Findings) and block.answer]
    lead = list(dict.fromkeys(answers))[:_ANSWERS]
    others = [sentence for sentence in stated if sentence not in lead]
    title = "What else was found" if lead else "What was found"
    more: list[Written] = [Heading(title), Findings(others)] if others else []
    return [
        *([Lead(" ".join(lead))] if lead else []),
        *([Text(f"The question: {study.question}")] if study.question else []),
        *_missing(results, empty),
        *more,
        *blocks,
        *_how(results),
    ]


def _missing(results: StudyResults, empty: Sequence[str]) -> list[Written]:
    """Which cells have no figures, and why; ``empty``: the sections that no finished cell has figures for."""
    others = [result for result in results.results if result.status != "finished"]
    absent = [
        f"{tag} of {result.cell.name}"
        for result in results.finished
        for tag in results.study.measure
        if result.value(tag) is None
    ]
    blocks: list[Written] = []
    if others:
        done = f"{len(results.finished)} of {len(results.results)}"
        blocks.append(Text(f"This report is partial: {done} cells are finished. The figures below cover only those."))
        rows = [[result.cell.name, result.status, result.error] for result in others]
        blocks.append(Table(["cell", "status", "error"], rows, "Cells without figures."))
    if absent:
        more = f" and {len(absent) - 6} more" if len(absent) > 6 else ""
        blocks.append(Text(f"Not measured, or not finite: {', '.join(absent[:6])}{more}."))
    if empty and results.finished:
        blocks.append(Text(f"Left out, because too few finished cells have the figures: {', '.join(empty)}."))
    return blocks


def _section_text(name: str, options: dict[str, Any]) -> str:
    """A section as the study file asks for it, on one line."""
    of = ", ".join(f"{option} {value}" for option, value in options.items())
    return f"{name.rpartition('.')[2]}{f' ({of})' if of else ''}"


def _how(results: StudyResults) -> list[Written]:
    """The environments that the cells ran in, and the figures of every cell."""
    study = results.study
    blocks: list[Written] = [Heading("How it was made")]
    if study.work and study.equal == PARAMETERS:
        widths = {label_of(cell.settings, study.axes): value_at(cell.config, WIDTH_KEY) for cell in study.cells}
        each = ", ".join(f"{label}: {width:,}" for label, width in widths.items())
        blocks.append(Text(f"All settings have nearly as many parameters as the first, by their width: {each}."))
    elif study.work:
        steps = {label_of(cell.settings, study.axes): cell.config["trainer"]["max_steps"] for cell in study.cells}
        each = ", ".join(f"{label}: {number:,}" for label, number in steps.items())
        alike = f"All settings were trained with as many {AMOUNTS[study.equal]} as the first"
        blocks.append(Text(f"{alike}. Optimizer steps: {each}."))
    blocks += [Text(_environment_text(environment)) for environment in results.environments()]
    measures = [measure(tag) for tag in study.measure]
    rows = [
        [
            result.cell.name,
            result.status,
            *(each.text(result.value(each.tag)) + results.mark_of(result, each.tag) for each in measures),
        ]
        for result in results.results
    ]
    header = ["cell", "status", *(each.title for each in measures)]
    caption = "Every cell. results.csv has the same figures in full precision, results.json each cell's configuration."
    caption += next((warning for each in measures if (warning := results.warning(each.tag))), "")
    return [*blocks, Table(header, rows, caption)]


def _environment_text(environment: dict[str, Any]) -> str:
    git = environment.get("git")
    code = "no git revision"
    if git:
        code = f"git revision {git['revision'][:12]}{' with uncommitted changes' if git['changed'] else ''}"
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    gpus = ", ".join(environment["gpus"]) or "no GPU"
    return (
        f"{environment['processor']}, {environment['cores']} cores, {environment['memory_gb']} GB, {gpus}; "
        f"{environment['system']}, Python {environment['python']}; {code}; {packages}."
    )
