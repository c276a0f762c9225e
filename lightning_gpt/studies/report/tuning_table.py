"""How a study's first stage chose an option for each setting."""

from collections.abc import Mapping
from typing import Any

from lightning_gpt.studies.report import plots
from lightning_gpt.studies.report.chart import new_chart, new_dot_rows
from lightning_gpt.studies.report.comparisons import compare
from lightning_gpt.studies.report.document import Findings, Heading, Picture, Table, Text, Written
from lightning_gpt.studies.report.estimates import LEVEL, SeedSpread
from lightning_gpt.studies.report.groups import label_of
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.run.tuning import TunedChoice
from lightning_gpt.studies.spec.cells import is_number, setting_text
from lightning_gpt.studies.spec.measures import measure
from lightning_gpt.studies.spec.tune import MEASURE, Tune

_MOST_LINES = 8
"""Settings that a plot shows as a line each."""


def tuning_blocks(results: StudyResults) -> list[Written]:
    """The trials of each setting as table and plot, and what is to be said of the choices; empty without trials."""
    study, tune = results.study, results.study.tune
    if tune is None or not results.choices:
        return []
    named = {label_of(choice.settings, study.axes) or "all": choice for choice in results.choices.values()}
    how = (
        f"Before its cells were run, {tune.name} was chosen for each setting: {_budgets(tune)} with {len(tune.seeds)} "
        f"seed{'s' if len(tune.seeds) > 1 else ''}, and the one with the lowest mean {measure(MEASURE).label} is used. "
        f"A longer training may have another best value."
    )
    how += _shared(results)
    return [
        Heading(f"How {tune.name} was chosen"),
        Text(how),
        Findings(_remarks(tune, named)),
        *_picture(tune, named),
        _table(tune, named),
    ]


def _shared(results: StudyResults) -> str:
    """Which trials are cells too, and what that does."""
    study, tune = results.study, results.study.tune
    assert tune is not None
    trials = {cell.digest for rung in range(len(tune.rungs)) for cell in study.rung(rung, None).cells}
    shared = [cell for cell in study.cells if cell.digest in trials]
    if not shared:
        return ""
    numbers = sorted({cell.seed for cell in shared})
    seeds = f"seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    settings = list(dict.fromkeys(label_of(cell.settings, study.axes) for cell in shared))
    if len(settings) == len(results.choices):
        return f" The trials of {seeds} are cells too; as they chose the value, they favour each setting a little."
    return (
        f" The trials of {seeds} of {'; '.join(settings)} are cells too; as they chose the value, they favour these "
        f"settings a little over the others."
    )


def _budgets(tune: Tune) -> str:
    """How many values were trained for how long."""
    (count, steps), *later = tune.rungs
    said = f"each of {count} values was trained for {steps:,} steps"
    if later:
        said += "".join(f", the best {count} anew for {steps:,}" for count, steps in later) + " (successive halving)"
    return said


def _remarks(tune: Tune, named: Mapping[str, TunedChoice]) -> list[str]:
    """Choices at the edge of what was tried, values that the seeds do not tell apart, and values that failed."""
    edges = []
    for way, beyond in (("lowest", "lower"), ("highest", "higher")):
        at = [f"{label} ({setting_text(choice.best)})" for label, choice in named.items() if choice.edge == way]
        if at:
            edges.append(
                f"The best {tune.name} lies at the {way} edge of what was tried, so a {beyond} one may be better, for: "
                f"{'; '.join(at)}."
            )
    said = [" ".join(edges)] if edges else []  # one remark, since the first is in the report's summary
    ties = [f"{label}: {', '.join(tied)}" for label, choice in named.items() if (tied := _tied(choice))]
    if ties:
        said.append(f"Not told apart from the best by these seeds: {'; '.join(ties)}.")
    for label, choice in named.items():
        said += [
            f"{tune.name} {setting_text(value)} was left out for {label}: {why.partition(';')[0]}."
            for value, why in choice.failures.items()
        ]
    return said


def _tied(choice: TunedChoice) -> list[str]:
    """The values whose loss is that of the best one, as far as the seeds tell; of one seed, those that are equal."""
    found, best = [], choice.losses[choice.best]
    for value, losses in choice.losses.items():
        test = compare(losses, best)
        alike = choice.mean(value) == choice.mean(choice.best) if test is None else test.p > LEVEL
        if value != choice.best and alike:
            found.append(setting_text(value))
    return found


def _picture(tune: Tune, named: Mapping[str, TunedChoice]) -> list[Picture]:
    """The loss against the value, a line or a row for each setting; nothing for values that are not numbers."""
    numbers = [value for value in tune.values if is_number(value)]
    if len(numbers) < len(tune.values):
        return []
    if len(named) > _MOST_LINES:
        return [_rows(tune, named, numbers)]
    chart = new_chart()
    (ax,) = chart.axes
    for (label, choice), look in zip(named.items(), plots.looks(len(named), ordered=False), strict=True):
        tried = sorted(choice.losses)
        spreads = [SeedSpread(tuple(choice.losses[value].values())) for value in tried]
        plots.draw_spreads(chart, ax, tried, spreads, look, label)
        ax.plot([choice.best], [choice.mean(choice.best)], "o", color=look.color, markersize=7, fillstyle="none")
    if min(numbers) > 0:
        ax.set_xscale("log")
    ax.set_xticks(numbers, [setting_text(value) for value in numbers])
    ax.minorticks_off()
    ax.set(xlabel=tune.name, ylabel=measure(MEASURE).title)
    chart.legend(len(named))
    caption = f"{measure(MEASURE).label.capitalize()} after {tune.budget:,} steps against {tune.name}; ringed: chosen."
    return [Picture("tuning", chart, caption)]


def _rows(tune: Tune, named: Mapping[str, TunedChoice], values: list[Any]) -> Picture:
    """The loss of each value in the row of its setting, where there are too many settings for a line each."""
    chart, ax = new_dot_rows(list(named))
    for value, look in zip(values, plots.looks(len(values), ordered=True), strict=True):
        means = {label: choice.mean(value) for label, choice in named.items() if value in choice.losses}
        places = [row for row, label in enumerate(named) if label in means]
        name = f"{tune.name} {setting_text(value)}"
        ax.plot(list(means.values()), places, look.marker, color=look.color, markersize=4, label=name)
        for label, mean in means.items():
            chart.note(ax, f"{label}, {name}", "mean", [mean])
    best = [choice.mean(choice.best) for choice in named.values()]
    ax.plot(best, range(len(named)), "o", color="#1a1a1a", markersize=8, fillstyle="none")
    plots.readable_axis(ax.xaxis)
    ax.set_xlabel(measure(MEASURE).title)
    chart.legend(len(values))
    return Picture(
        "tuning", chart, f"{measure(MEASURE).label.capitalize()} after {tune.budget:,} steps; ringed: chosen."
    )


def _table(tune: Tune, named: Mapping[str, TunedChoice]) -> Table:
    rows = []
    for label, choice in named.items():
        figures = [_figure(choice, value) for value in tune.values]
        rows.append([label, *figures, setting_text(choice.best) + (f" ({choice.edge} tried)" if choice.edge else "")])
    header = ["setting", *(f"{tune.name} {setting_text(value)}" for value in tune.values), "chosen"]
    what = measure(MEASURE)
    return Table(
        header, rows, f"Mean {what.title} of the trials, ± half its {1 - LEVEL:.0%} interval where there are seeds."
    )


def _figure(choice: TunedChoice, value: Any) -> str:
    if value in choice.stopped:
        steps, loss = choice.stopped[value]
        return f"{measure(MEASURE).text(loss)} after {steps:,}"
    if value not in choice.losses:
        return "failed"
    losses = SeedSpread(tuple(choice.losses[value].values()))
    return measure(MEASURE).text(losses.mean, losses.half_width)
