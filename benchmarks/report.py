"""The output of a benchmark: one line per outcome, a JSON file and a Markdown table."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.result import Result, Skipped
from lightning_gpt.json_text import to_json

Outcome = Result | Skipped


def line(outcome: Outcome) -> str:
    """One outcome on one line."""
    if isinstance(outcome, Skipped):
        return f"{outcome.row}: {outcome.what}: skipped, {outcome.why}"
    parts = [f"{outcome.row}: {outcome.what}: {outcome.measured}"]
    if outcome.target is not None:
        parts.append(f"target {outcome.asked}: {outcome.verdict}")
    if outcome.figures:
        parts.append(outcome.contenders)
    return "; ".join(parts)


def markdown(machine: Mapping[str, Any], outcomes: Iterable[Outcome]) -> str:
    """The machine and the table as Markdown."""
    lines = [
        *(f"- {name}: {value}" for name, value in machine.items()),
        "",
        "| row | what | target | measured (min to max) | | values |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for outcome in outcomes:
        if isinstance(outcome, Skipped):
            cells = [outcome.row, outcome.what, "", "", "skipped", outcome.why]
        else:
            contenders = outcome.contenders
            cells = [outcome.row, outcome.what, outcome.asked, outcome.measured, outcome.verdict, contenders]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def write(folder: Path, machine: Mapping[str, Any], outcomes: list[Outcome]) -> None:
    """Write ``bench.json`` and ``bench.md`` to ``folder``."""
    content = {"machine": dict(machine), "rows": [outcome.values() for outcome in outcomes]}
    (folder / "bench.json").write_text(to_json(content, indent=2) + "\n", encoding="utf-8")
    (folder / "bench.md").write_text(markdown(machine, outcomes), encoding="utf-8")
