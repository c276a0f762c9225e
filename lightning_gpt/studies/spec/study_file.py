"""A study's YAML file, read and checked before anything runs."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lightning_gpt.errors import CallError
from lightning_gpt.safe_yaml import read_yaml
from lightning_gpt.studies.spec.cells import VARIANT, is_number, merged, value_at
from lightning_gpt.studies.spec.equal import AMOUNTS, BATCH_WARMUP, PARAMETERS, STEP_KEYS, WIDTH_KEY
from lightning_gpt.studies.spec.measures import measure
from lightning_gpt.studies.spec.study import Reference, Study
from lightning_gpt.studies.spec.tune import Tune

_PRESET_KEYS = ("base", "config", "grid", "variants", "seeds", "tune", "alone", "equal")
_KEYS = ("name", "question", *_PRESET_KEYS, "measure", "reference", "report", "presets")
_MOST_CELLS = 10_000
_SEED_KEY = "seed_everything"


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
        self._require_text_keys(key, value or {}, deep=key == "config")
        return value or {}

    def _require_text_keys(self, what: str, values: dict[Any, Any], *, deep: bool = False) -> None:
        for key, value in values.items():
            if not isinstance(key, str):
                raise self.error(f"{what} has the key {key!r}; its keys must be text")
            if deep and isinstance(value, dict):
                self._require_text_keys(f"{what}.{key}", value, deep=True)

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
            tune=self._under(over, "tune").tune(),
            alone=self._under(over, "alone").alone(),
            equal=self._under(over, "equal").equal(),
        )
        self._check_overlaps(study)
        self._check_needs(study)
        return study

    def _under(self, preset: "_Reader", key: str) -> "_Reader":
        """Where ``key`` is read: in the preset if it names it, also with null, which takes away what stands here."""
        return preset if key in preset.content else self

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
        if not all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32 for seed in seeds):
            raise self.error(f"seeds is {seeds}; each must be a whole number from 0 to {2**32 - 1:,}")
        if len(set(seeds)) < len(seeds):
            raise self.error(f"seeds holds a seed twice: {seeds}")
        return seeds

    def equal(self) -> str:
        """What all settings train with as much of; empty for their own steps."""
        value = self.content.get("equal")
        if value not in (None, "", *AMOUNTS, PARAMETERS):
            raise self.error(f"equal is {value!r}; it must be {', '.join(AMOUNTS)} or {PARAMETERS}")
        return value or ""

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
        others = [key for by_value in values.values() for key in by_value if not is_number(key)]
        if others and all(map(is_number, grid[axis])):
            raise reader.error(f"values holds {others[0]!r}; the values of {axis} are numbers")
        return Reference(str(given.get("name", "reference")), axis, values)

    def _check_overlaps(self, study: Study) -> None:
        tuned = None if study.tune is None else study.tune.key
        if VARIANT in study.grid:
            raise self.error(f"grid: {VARIANT} is the name of the axis that variants form; it cannot be another axis")
        if tuned in study.grid:
            raise self.error(f"tune: {tuned} is an axis of the grid; it cannot be chosen too")
        for key in {"": (), PARAMETERS: (WIDTH_KEY,)}.get(study.equal, STEP_KEYS):
            given = {repr(values.get(key)) for values in study.variants.values()}
            if key == WIDTH_KEY:  # no variant may give one; all may give the same steps
                given.add(repr(None))
            if key in [*study.grid, tuned] or len(given) > 1:
                raise self.error(
                    f"equal: {study.equal} sets {key}, so it cannot be an axis, tuned, or differ in variants"
                )
        for name, values in study.variants.items():
            if tuned in values:
                raise self.error(f"variant {name} sets {tuned}, which tune chooses")
        for name, values in study.variants.items():
            for key in values:
                if key in study.grid:
                    raise self.error(f"variant {name} sets {key}, which is an axis of the grid and would override it")

    def _check_needs(self, study: Study) -> None:
        """Refuse what would be found only after all cells, or all trials, have been trained."""
        if study.tune is not None and any(value_at(cell.config, "data.global_batch") for cell in study.cells):
            raise self.error("tune needs data.batch_size, not data.global_batch: a trial is validated at its last step")
        if any(value_at(cell.config, BATCH_WARMUP) for cell in study.cells):
            told = (
                "and optimization.batch_warmup cannot be combined: the first steps of a growing batch have fewer "
                "micro-batches"
            )
            if study.equal in AMOUNTS:
                raise self.error(f"equal: {study.equal} {told}")
            if study.tune is not None:
                raise self.error(f"tune {told}, and a trial is validated at its last step")
        unvalidated = any(value_at(cell.config, "trainer.limit_val_batches") == 0 for cell in study.cells)
        if study.tune is not None and unvalidated:
            raise self.error("tune chooses by validations, and trainer.limit_val_batches 0 leaves them out")
        saves = "trainer.enable_checkpointing"
        unmeasured = [tag for tag in (study.reference.values if study.reference else ()) if tag not in study.measure]
        if unmeasured:
            raise self.error(f"reference: values has {unmeasured[0]}, which measure does not list")
        tests = [tag for tag in study.measure if tag.startswith("test/")]
        if tests and any(value_at(cell.config, saves) is False for cell in study.cells):
            raise self.error(f"{tests[0]} is measured from a checkpoint, but {saves} is false")
