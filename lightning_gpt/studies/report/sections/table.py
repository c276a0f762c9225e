"""The table of all settings: means with their intervals, and published figures beside ours."""

from dataclasses import dataclass

from lightning_gpt.studies.report.document import Block, Heading, Table
from lightning_gpt.studies.report.estimates import LEVEL
from lightning_gpt.studies.report.groups import groups
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections.base import Section
from lightning_gpt.studies.spec.cells import setting_id, setting_text
from lightning_gpt.studies.spec.measures import measure


@dataclass(frozen=True)
class SettingsTable(Section):
    """One row per setting and one column per measure; a reference's figures follow in a column marked as theirs."""

    def blocks(self, results: StudyResults) -> list[Block]:
        study, reference = results.study, results.study.reference
        measures = [measure(tag) for tag in study.measure]
        tuned = [] if study.tune is None else [study.tune]
        header, theirs = [*study.axes.values(), *(f"{each.name}, tuned" for each in tuned), "n"], set()
        for each in measures:
            header.append(each.title + results.mark(each.tag))
            if reference is not None and each.tag in reference.values:
                theirs.add(len(header))
                header.append(f"{reference.name}: {each.title}")
        rows = []
        for group in groups(results):
            row = [setting_text(group.settings[key]) for key in study.axes]
            row += [setting_text(study.chosen.get(setting_id(group.settings))) for _ in tuned]
            row.append(f"{len(group.results)}/{group.planned}")
            for each in measures:
                found = group.spread(each.tag)
                row.append("–" if found is None else each.text(found.mean, found.half_width))
                if reference is not None and each.tag in reference.values:
                    row.append(each.text(reference.values[each.tag].get(group.settings[reference.axis])))
            rows.append(row)
        caption = (
            f"Mean ± half its {1 - LEVEL:.0%} confidence interval, from the standard error over the seeds (Student's "
            f"t); n: finished seeds / planned seeds."
        )
        caption += next((warning for each in measures if (warning := results.warning(each.tag))), "")
        if study.alone is not None and any(result.alone for result in results.finished):
            caption += (
                f" Step times and speed: of each cell with no other beside it, after all cells, for {study.alone:,} "
                f"steps, in rounds of all settings."
            )
        if theirs and reference is not None:
            caption += f" Figures of {reference.name} are their own, from other data, sizes and machines."
        keys = len(study.axes) + len(tuned)
        return [Heading("All settings"), Table(header, rows, caption, frozenset(theirs), max(1, keys))]
