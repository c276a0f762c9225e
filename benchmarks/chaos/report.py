"""What a chaos run counts."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.chaos.case import Case


def counts(cases: Sequence[Case]) -> dict[str, Any]:
    """Kills in all, by subject and way, and by subject and moment; resumes, differences, faults and losses."""
    hits = [(case, hit) for case in cases for hit in case.hits]
    return {
        "cases": len(cases),
        "kills": len(hits),
        "of fresh processes": sum(not case.forked for case, _ in hits),
        "resumes": sum(case.resumes for case in cases),
        "differences": sum(bool(case.differences) for case in cases),
        "lost": sum(bool(hit.lost) for _, hit in hits),
        "wrong endings": sum(bool(hit.faults) for _, hit in hits),
        "by way": _table((case.subject, hit.way) for case, hit in hits),
        "by moment": _table((case.subject, hit.moment) for case, hit in hits),
        "by place": _table((case.subject, case.place) for case, _ in hits),
    }


def _table(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for (row, column), count in sorted(Counter(pairs).items()):
        table.setdefault(row, {})[column] = count
    return table


def markdown(cases: Sequence[Case], missing: Sequence[str]) -> str:
    """The counts as a page, then everything that went wrong."""
    found = counts(cases)
    lines = ["# Chaos", ""]
    lines += [f"- {name}: {value}" for name, value in found.items() if isinstance(value, int)]
    lines += [f"- not available here: {place}" for place in missing]
    for name, table in found.items():
        if isinstance(table, dict):
            lines += ["", f"## Kills {name}", "", *_rows(table)]
    problems = [(number, case) for number, case in enumerate(cases) if case.problems]
    lines += ["", "## Problems", ""]
    for number, case in problems:
        lines.append(f"- case {number}, {case.subject}, {case.place}, {[(h.way, h.moment) for h in case.hits]}")
        lines += [f"  - {problem}" for problem in case.problems[:10]]
    return "\n".join([*lines, *([] if problems else ["None."]), ""])


def _rows(table: dict[str, dict[str, int]]) -> Iterator[str]:
    columns = sorted({column for row in table.values() for column in row})
    yield f"| subject | {' | '.join(columns)} | all |"
    yield "| --- " * (len(columns) + 2) + "|"
    for name, row in table.items():
        yield f"| {name} | {' | '.join(str(row.get(column, 0)) for column in columns)} | {sum(row.values())} |"
