"""A study's YAML file, read and checked before anything runs."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_gpt.errors import CallError
from lightning_gpt.safe_yaml import read_yaml
from lightning_gpt.studies.spec.cells import VARIANT, Cell, make_cells, merged, setting_id, short_names
from lightning_gpt.studies.spec.equal import AMOUNTS, PARAMETERS, WIDTH_KEY, StepWork, amount_of, steps_for
from lightning_gpt.studies.spec.measures import measure
from lightning_gpt.studies.spec.tune import MEASURE, TIMES, Tune, shortened

_PRESET_KEYS = ("base", "config", "grid", "variants", "seeds", "tune", "alone", "equal")
_KEYS = ("name", "question", *_PRESET_KEYS, "measure", "reference", "report", "presets")
_MOST_CELLS = 10_000
_SEED_KEY = "seed_everything"


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


def read_study(file: Path, preset: str | None) -> Study:
    """Read and check a study's YAML file, with a preset merged over it.

    Raises:
        CallError: The file is not a valid study, or has no such preset.
    """
    content = _Reader(file, read_yaml(file, "study"))
    presets = content.mapping("presets")
    if preset is None and presets:
        raise CallError(f"study {str(file)!r} has presets: choose one with --preset ({', '.join(presets)})")
    if preset is not None and preset not in presets:
        known = f"it has {', '.join(presets)}" if presets else "it has none"
        raise CallError(f"study {str(file)!r} has no preset {preset!r}; {known}")
    return content.study(preset)


@dataclass(frozen=True)
class _Reader:
    file: Path
    content: dict[str, Any]
    allowed: tuple[str, ...] = _KEYS
    where: str = ""

    def __post_init__(self) -> None:
        for key in self.content:
            if key not in self.allowed:
                close = get_close_matches(str(key), self.allowed, n=1)
                meant = f"; did you mean {close[0]}?" if close else f"; its keys are {', '.join(self.allowed)}"
                raise self.error(f"unknown key {key!r}{meant}")

    def error(self, message: str) -> CallError:
        return CallError(f"study {str(self.file)!r}: {self.where}{message}")

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.content.get(key)
        if not isinstance(value, dict | None):
            raise self.error(f"{key} is {value!r}; it must be a mapping")
        self._require_text_keys(key, value or {})
        return value or {}

    def _require_text_keys(self, what: str, values: dict[Any, Any]) -> None:
        for key in values:
            if not isinstance(key, str):
                raise self.error(f"{what} has the key {key!r}; its keys must be text")

    def sequence(self, key: str, default: list[Any]) -> list[Any]:
        value = self.content.get(key, default)
        if not isinstance(value, list):
            raise self.error(f"{key} is {value!r}; it must be a list")
        return value

    def study(self, preset: str | None) -> Study:
        name = self.content.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]{1,100}", name):
            raise self.error(f"name is {name!r}; it may contain letters, digits, - and _ only, at most 100")
        over = _Reader(self.file, {}, _PRESET_KEYS)
        if preset is not None:
            over = _Reader(self.file, self._preset(preset), _PRESET_KEYS, f"preset {preset}: ")
        config: dict[str, Any] = {}
        for reader in (self, over):
            for base in reader.sequence("base", []):
                config = merged(config, reader.base_file(base))
        for reader in (self, over):
            config = merged(config, reader.mapping("config"))
        if _SEED_KEY in config:
            del config[_SEED_KEY]  # the study sets the seeds
        question = self.content.get("question", "")
        if not isinstance(question, str):
            raise self.error(f"question is {question!r}; it must be text")
        axes = {**self.mapping("grid"), **over.mapping("grid")}
        variants = over.mapping("variants") or self.mapping("variants")
        seeds = over.sequence("seeds", self.sequence("seeds", [0]))
        measures = self.sequence("measure", ["val/loss", "val/perplexity"])
        grid = {key: self.axis(key, values, "grid") for key, values in axes.items() if values is not None}
        self._check_count(len(seeds) * len(variants or [""]) * math.prod(map(len, grid.values())))
        study = Study(
            name=name,
            question=question.strip(),
            config=config,
            grid=grid,
            variants={str(key): self._variant(str(key), values) for key, values in variants.items()},
            seeds=self.seed_values(seeds),
            measure=[measure(str(tag)).tag for tag in measures],
            report=[self._section(entry) for entry in self.sequence("report", ["table"])],
            reference=self._reference(grid),
            preset=preset or "",
            tune=over.tune() or self.tune(),
            alone=over.alone() or self.alone(),
            equal=over.equal() or self.equal(),
        )
        self._check_overlaps(study)
        return study

    def _check_count(self, cells: int) -> None:
        if cells > _MOST_CELLS:
            raise self.error(f"it has {cells:,} cells (seeds x variants x grid); at most {_MOST_CELLS:,} are allowed")

    def _preset(self, name: str) -> dict[str, Any]:
        content = self.mapping("presets")[name] or {}
        if not isinstance(content, dict):
            raise self.error(f"preset {name} is {content!r}; it must be a mapping")
        return content

    def base_file(self, name: Any) -> dict[str, Any]:
        """A base configuration; its path is relative to the study's file."""
        if not isinstance(name, str):
            raise self.error(f"base holds {name!r}; it must be a list of paths to config files")
        return read_yaml(self.file.parent / name, f"study {str(self.file)!r}: {self.where}base")

    def axis(self, key: str, values: Any, where: str) -> list[Any]:
        """The values of an axis, or those that are tried for an option."""
        if key == _SEED_KEY:
            raise self.error(f"{where}: {key} cannot be an axis; list the seeds under seeds")
        if not isinstance(values, list):
            raise self.error(f"{where}: {key} is {values!r}; it must be a list of values")
        if not values:
            raise self.error(f"{where}: {key} is an empty axis; give it at least one value, or remove it")
        for value in values:
            if not isinstance(value, str | int | float | bool | None):
                raise self.error(
                    f"{where}: {key} holds {value!r}; an axis holds numbers and words; use variants for anything else"
                )
        if len(set(map(repr, values))) < len(values):
            raise self.error(f"{where}: {key} holds a value twice: {values}")
        return values

    def _variant(self, name: str, values: Any) -> dict[str, Any]:
        if not isinstance(values, dict | None):
            raise self.error(f"variant {name} is {values!r}; it must be a mapping of dotted keys to values")
        self._require_text_keys(f"variant {name}", values or {})
        if _SEED_KEY in (values or {}):
            raise self.error(f"variant {name}: list the seeds under seeds")
        return values or {}

    def seed_values(self, seeds: list[Any]) -> list[int]:
        """The seeds, checked."""
        if not seeds:
            raise self.error("seeds is empty; give at least one")
        if not all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds):
            raise self.error(f"seeds is {seeds}; each must be a whole number of at least 0")
        if len(set(seeds)) < len(seeds):
            raise self.error(f"seeds holds a seed twice: {seeds}")
        return seeds

    def equal(self) -> str:
        """What all settings train with as much of; empty for their own steps."""
        value = self.content.get("equal", "")
        if value not in ("", *AMOUNTS, PARAMETERS):
            raise self.error(f"equal is {value!r}; it must be {', '.join(AMOUNTS)} or {PARAMETERS}")
        return str(value)

    def alone(self) -> int | None:
        """The steps in which times are measured alone; None for not at all."""
        given = self.mapping("alone")
        if not given:
            return None
        reader = _Reader(self.file, given, ("steps",), f"{self.where}alone: ")
        return reader.steps("steps")

    def steps(self, key: str) -> int:
        """A number of optimizer steps."""
        value = self.content.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"{key} is {value!r}; it must be a number of optimizer steps of at least 1")
        return value

    def tune(self) -> Tune | None:
        """The first stage; None without one."""
        given = self.mapping("tune")
        if not given:
            return None
        reader = _Reader(self.file, given, ("key", "values", "budget", "seeds", "halving"), f"{self.where}tune: ")
        key, budget = given.get("key"), reader.steps("budget")
        if not isinstance(key, str) or not key:
            raise reader.error(f"key is {key!r}; it must be the dotted key of an option")
        values = reader.axis(key, given.get("values"), "values")
        if len(values) < 2:
            raise reader.error(f"values is {values}; there must be two or more to choose from")
        halving = given.get("halving")
        if halving is not None and (not isinstance(halving, int) or isinstance(halving, bool) or halving < 2):
            raise reader.error(f"halving is {halving!r}; it must be a whole number of at least 2, or be left out")
        return Tune(key, values, budget, reader.seed_values(reader.sequence("seeds", [0])), halving)

    def _section(self, entry: Any) -> tuple[str, dict[str, Any]]:
        if isinstance(entry, str):
            return entry, {}
        if isinstance(entry, dict) and len(entry) == 1:
            name, options = next(iter(entry.items()))
            if isinstance(options, dict | None):
                return str(name), options or {}
        raise self.error(f"report holds {entry!r}; a section is a name, or a name with a mapping of options")

    def _reference(self, grid: Mapping[str, Any]) -> Reference | None:
        given = self.mapping("reference")
        if not given:
            return None
        reader = _Reader(self.file, given, ("name", "axis", "values"), "reference: ")
        values = {}
        for tag, by_value in reader.mapping("values").items():
            known = isinstance(by_value, dict) and all(
                isinstance(value, int | float) and math.isfinite(value) for value in by_value.values()
            )
            if not known:
                raise reader.error(f"{tag} is {by_value!r}; it must give a number at values of the axis")
            values[measure(str(tag)).tag] = {key: float(value) for key, value in by_value.items()}
        axis = str(given.get("axis"))
        if axis not in grid:
            raise reader.error(f"axis is {axis!r}; the axes are {', '.join(grid) or 'none'}")
        return Reference(str(given.get("name", "reference")), axis, values)

    def _check_overlaps(self, study: Study) -> None:
        tuned = None if study.tune is None else study.tune.key
        if tuned in study.grid:
            raise self.error(f"tune: {tuned} is an axis of the grid; it cannot be chosen too")
        if study.equal == PARAMETERS and WIDTH_KEY in [*study.grid, tuned, *itertools.chain(*study.variants.values())]:
            raise self.error(
                f"equal: {PARAMETERS} sets {WIDTH_KEY}, so it cannot be an axis, tuned or set by a variant"
            )
        for name, values in study.variants.items():
            if tuned in values:
                raise self.error(f"variant {name} sets {tuned}, which tune chooses")
        for name, values in study.variants.items():
            for key in values:
                if key in study.grid:
                    raise self.error(f"variant {name} sets {key}, which is an axis of the grid and would override it")
