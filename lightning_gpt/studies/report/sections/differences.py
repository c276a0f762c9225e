"""How sections word differences between settings, with what their seeds could have shown."""

from collections.abc import Mapping, Sequence

from lightning_gpt.studies.report.comparisons import POWER, Comparison, smallest_effect, usual_error
from lightning_gpt.studies.report.document import Table
from lightning_gpt.studies.report.estimates import LEVEL
from lightning_gpt.studies.report.tested import p_text
from lightning_gpt.studies.spec.measures import Measure, number_text

_HOW = {"paired": "seed by seed", "shared": "shared error", "welch": "Welch"}
ONE_SEED = "With one seed each, the spread between seeds is unknown: nothing can be said to differ."


def shown(p: float) -> bool:
    """Whether a corrected p-value counts."""
    return p <= LEVEL


def change_text(what: Measure, each: Comparison, p: float) -> str:
    """A difference with its interval and corrected p-value."""
    return f"{what.change_text(each.difference, each.half_width)}, {p_text(p)}"


def findable(each: Comparison, beside: Sequence[Comparison], tests: int) -> float:
    """The smallest difference that a comparison shows, among ``tests``, in POWER of all studies.

    It is of the usual error of ``beside``, the comparisons of the same measure that were made the same way.
    """
    alike = [other for other in beside if (other.n, other.how) == (each.n, each.how)]
    return smallest_effect(usual_error(alike), each.df, LEVEL / tests)


def findable_text(what: Measure, comparisons: Sequence[Comparison], tests: int) -> str:
    """The smallest difference that a section's seeds show, as a sentence; empty where nothing varies."""
    if not any(each.error for each in comparisons):
        return ""
    sizes = [findable(each, comparisons, tests) for each in comparisons]
    seeds = sorted({each.n for each in comparisons})
    how = "–".join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))
    return (
        f"With {how} seeds and {tests} test{'s' if tests > 1 else ''} in this report, a difference of "
        f"{number_text(max(sizes) * what.scale)}{what.suffix} would be found in {POWER:.0%} of studies."
    )


def difference_table(
    what: Measure, rows: Mapping[str, Comparison], corrected: Sequence[float], tests: int, title: str, caption: str
) -> Table:
    """One row per comparison: difference with interval, p-values, verdict, smallest difference that would be shown."""
    lines = []
    for (label, each), p in zip(rows.items(), corrected, strict=True):
        verdict = "not shown" if not shown(p) else "higher" if each.difference > 0 else "lower"
        least = findable(each, list(rows.values()), tests) * what.scale
        how = f"{each.n}, {_HOW[each.how]}"
        difference = Measure(what.tag, what.label, "", what.scale).change_text(each.difference, each.half_width)
        lines.append([label, difference, how, f"{each.p:.2g}", f"{p:.2g}", verdict])
        lines[-1].append(number_text(least))
    unit = f" ({what.unit})" if what.unit else ""
    header = [title, f"difference{unit}, {1 - LEVEL:.0%} interval", "seeds", "p", "p corrected", "verdict"]
    header.append(f"smallest shown{unit}")
    shared = ""
    if any(each.how == "shared" for each in rows.values()):
        shared = ", where the variance of each setting is drawn towards that of all (Smyth 2004)"
    note = (
        f"{caption} p: Student's t test{shared}; corrected: Holm's method over the {tests} "
        f"{'tests' if tests > 1 else 'test'} of this report, at {LEVEL:.0%} in all; smallest shown: what {POWER:.0%} "
        f"of studies of this size would find."
    )
    return Table(header, lines, note)
