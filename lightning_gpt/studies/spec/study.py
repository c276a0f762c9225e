"""A study: what to run, what to measure and what to report, with the cells that follow from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from lightning_gpt.studies.spec.cells import VARIANT, Cell, make_cells, setting_id, short_names
from lightning_gpt.studies.spec.equal import PARAMETERS, WIDTH_KEY, StepWork, amount_of, steps_for
from lightning_gpt.studies.spec.tune import MEASURE, TIMES, Tune, shortened


@dataclass(frozen=True)
class Reference:
    """Published figures to show beside ours, marked as theirs.

    Args:
        name: Who published them.
        axis: The axis that they vary along.
        values: For each measure, the figure at each value of the axis.
    """

    name: str
    axis: str
    values: dict[str, dict[Any, float]]


@dataclass(frozen=True)
class Study:
    """What to run, what to measure and what to report.

    Args:
        name: The study's name, made of letters, digits, ``-`` and ``_``.
        question: The question that it asks, for the report.
        config: The configuration of ``fit`` that all cells share.
        grid: The values of each axis, by the dotted key that the axis sets.
        variants: Named mappings of dotted keys to values; together they form one more axis.
        seeds: Values of ``seed_everything``; each setting is run with every seed.
        measure: The measures: columns of ``results.csv``.
        report: The sections of the report, each a name and its options.
        reference: Published figures to compare with.
        preset: The chosen preset; empty where the study has none.
        tune: Its first stage, which chooses an option for each setting; None without one.
        chosen: What that stage has chosen, by :func:`~lightning_gpt.studies.spec.cells.setting_id`.
        alone: Optimizer steps in which the times of each cell are measured alone, after all cells; None for not at all.
        steps: Optimizer steps of the cells of a stage; None for those of their configurations.
        equal: What all settings train with as much of as the first: ``tokens``, ``flops`` or ``parameters``; empty for
            their own steps and widths.
        among: For the trials of a later rung: the option's key, and the values left of each setting, by
            :func:`~lightning_gpt.studies.spec.cells.setting_id`; None for all values of the grid.
        work: That of an optimizer step of each setting, by :func:`~lightning_gpt.studies.spec.cells.setting_id`.
        in_rounds: Whether all settings are run with one seed before any is with the next, so that what changes on the
            machine in the meantime meets all settings alike.
    """

    name: str
    question: str
    config: dict[str, Any]
    grid: dict[str, list[Any]]
    variants: dict[str, dict[str, Any]]
    seeds: list[int]
    measure: list[str]
    report: list[tuple[str, dict[str, Any]]]
    reference: Reference | None = None
    preset: str = ""
    tune: Tune | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)
    alone: int | None = None
    steps: int | None = None
    equal: str = ""
    among: tuple[str, Mapping[str, Sequence[Any]]] | None = None
    work: Mapping[str, StepWork] = field(default_factory=dict)
    in_rounds: bool = False

    @property
    def title(self) -> str:
        """Name and preset."""
        return f"{self.name}-{self.preset}" if self.preset else self.name

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells of the study, in order."""
        cells = make_cells(self.config, self.grid, self.variants, self.seeds, self._last)
        if self.among is not None:
            key, left = self.among
            cells = [cell for cell in cells if cell.settings[key] in left[setting_id(cell.without(key))]]
        if self.in_rounds:
            cells = sorted(cells, key=lambda cell: self.seeds.index(cell.seed))
        return [replace(cell, number=number) for number, cell in enumerate(cells)]

    def _last(self, settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        setting = setting_id(settings)
        tuned = {self.tune.key: self.chosen[setting]} if self.tune is not None and setting in self.chosen else {}
        by_width = self.equal == PARAMETERS and bool(self.work)
        if by_width:
            tuned[WIDTH_KEY] = int(self.work[setting][WIDTH_KEY])
        if self.steps is not None:
            return {**tuned, **shortened(config, self.steps)}
        if not self.work or by_width:
            return tuned
        return {**tuned, **steps_for(config, self.work[setting], self.equal, self._amount)}

    @cached_property
    def _amount(self) -> float:
        """What the first setting takes."""
        first = make_cells(self.config, self.grid, self.variants, self.seeds[:1])[0]
        return amount_of(first.config, self.work[setting_id(first.settings)], self.equal)

    @property
    def trials(self) -> "Study":
        """The first stage as a study of its own: each setting with each value that is tried; its first rung."""
        return self.rung(0, None)

    def rung(self, number: int, left: Mapping[str, Sequence[Any]] | None) -> "Study":
        """The trials of a rung of the first stage, with the values that are left of each setting; None for all."""
        assert self.tune is not None
        grid = {**self.grid, self.tune.key: self.tune.values}
        name = f"{self.name}-tuning" if number == 0 else f"{self.name}-tuning-{number + 1}"
        study = replace(self, name=name, grid=grid, seeds=self.tune.seeds, measure=[MEASURE], report=[])
        _, steps = self.tune.rungs[number]
        among = None if left is None else (self.tune.key, left)
        work = {
            setting_id({**cell.settings, self.tune.key: value}): self.work[setting_id(cell.settings)]
            for cell in (self.cells if self.work else ())
            for value in self.tune.values
        }
        return replace(study, reference=None, tune=None, alone=None, steps=steps, among=among, work=work)

    @property
    def costs(self) -> "Study":
        """The measurement of times as a study of its own: each cell for a few steps."""
        study = replace(self, name=f"{self.name}-costs", measure=list(TIMES), report=[], reference=None)
        return replace(study, steps=self.alone, in_rounds=True)

    def with_work(self, work: Sequence[StepWork]) -> "Study":
        """The study whose settings, in order, take so much for a step."""
        settings = dict.fromkeys(setting_id(cell.settings) for cell in self.cells)
        return replace(self, work=dict(zip(settings, work, strict=True)))

    def with_choice(self, values: Mapping[str, Any]) -> "Study":
        """The study whose settings have the values that its first stage has chosen for them."""
        return replace(self, chosen=values)

    @property
    def provisional(self) -> "Study":
        """The study as it is checked before its first stage: with the first of the values that will be tried."""
        if self.tune is None:
            return self
        return self.with_choice({setting_id(cell.settings): self.tune.values[0] for cell in self.cells})

    @cached_property
    def axes(self) -> dict[str, str]:
        """The short name of each axis, by its key; seeds are not among them."""
        return short_names([*([VARIANT] if self.variants else []), *self.grid])
