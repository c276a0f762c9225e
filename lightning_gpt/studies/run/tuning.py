"""What the first stage of a study says about the best value of an option for each setting."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_gpt.errors import WorkError
from lightning_gpt.studies.run.result import CellResult, cell_folder, read_results
from lightning_gpt.studies.spec.cells import is_number, setting_id
from lightning_gpt.studies.spec.study import Study
from lightning_gpt.studies.spec.tune import MEASURE, Tune


def tuning_folder(folder: Path) -> Path:
    """Where the first stage of the study in ``folder`` is."""
    return folder / "tuning"


def costs_folder(folder: Path) -> Path:
    """Where the times of the cells of the study in ``folder`` are measured alone."""
    return folder / "costs"


@dataclass(frozen=True)
class TunedChoice:
    """The trials of one setting, and the best value among them.

    Args:
        settings: The setting.
        losses: The validation loss by value and seed, of the values all of whose trials ended well.
        failures: Why another value is none to choose, by value.
        stopped: The optimizer steps and the mean loss of each value that successive halving has stopped early.
    """

    settings: dict[str, Any]
    losses: dict[Any, dict[int, float]] = field(default_factory=dict)
    failures: dict[Any, str] = field(default_factory=dict)
    stopped: dict[Any, tuple[int, float]] = field(default_factory=dict)

    def mean(self, value: Any) -> float:
        """The mean loss of a value."""
        return math.fsum(self.losses[value].values()) / len(self.losses[value])

    @property
    def best(self) -> Any:
        """The value of the lowest mean loss; of equals, the first that the study lists."""
        return min(self.losses, key=self.mean)

    @property
    def edge(self) -> str:
        """``lowest`` or ``highest`` where the best value is that of all numbers tried; otherwise empty."""
        tried = [*self.losses, *self.failures, *self.stopped]
        if len(tried) < 2 or not all(map(is_number, tried)):
            return ""
        return "lowest" if self.best == min(tried) else "highest" if self.best == max(tried) else ""


def rungs(study: Study, folder: Path) -> Iterator[tuple[Study, Callable[[], dict[str, TunedChoice]]]]:
    """The trials of each rung of a study's first stage, in order, and how its choice is read.

    The next rung follows from what the one before has left in ``folder``, so its trials must have ended by then.

    Raises:
        WorkError: As :func:`choices`.
    """
    assert study.tune is not None
    left: dict[str, list[Any]] | None = None
    earlier: dict[str, TunedChoice] = {}
    for number, (_, steps) in enumerate(study.tune.rungs):
        trials = study.rung(number, left)

        def read(trials: Study = trials, earlier: dict[str, TunedChoice] = earlier) -> dict[str, TunedChoice]:
            assert study.tune is not None
            found = choices(study.tune, read_results(trials, tuning_folder(folder)))
            return {setting: _after(earlier.get(setting), choice) for setting, choice in found.items()}

        yield trials, read
        if number + 1 < len(study.tune.rungs):
            count, _ = study.tune.rungs[number + 1]
            found = read()
            ranked = {setting: sorted(choice.losses, key=choice.mean) for setting, choice in found.items()}
            left = {setting: values[:count] for setting, values in ranked.items()}
            earlier = {
                setting: replace(
                    choice,
                    losses={},
                    stopped={
                        **choice.stopped,
                        **{value: (steps, choice.mean(value)) for value in ranked[setting][count:]},
                    },
                )
                for setting, choice in found.items()
            }


def tuned(study: Study, folder: Path) -> dict[str, TunedChoice]:
    """What the first stage in ``folder`` has chosen for each setting.

    Raises:
        WorkError: As :func:`choices`.
    """
    found: dict[str, TunedChoice] = {}
    for _, read in rungs(study, folder):
        found = read()
    return found


def use_trials(study: Study, folder: Path) -> None:
    """Let a finished trial with the configuration and seed of a cell be that cell, which is then not trained again.

    Args:
        study: The study, with what its first stage has chosen.
        folder: Its folder, in which the cell becomes a link to the trial.
    """
    found = {}
    for trials, _ in rungs(study, folder):
        for trial in read_results(trials, tuning_folder(folder)):
            if trial.status == "finished":
                found[trial.cell.digest] = cell_folder(tuning_folder(folder), trial.cell)
    for cell in study.cells:
        place = cell_folder(folder, cell)
        if cell.digest in found:
            place.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):  # the cell has begun, or another process has made the link
                place.symlink_to(os.path.relpath(found[cell.digest], place.parent))


def _after(earlier: TunedChoice | None, choice: TunedChoice) -> TunedChoice:
    """A choice with what became of the values of the rungs before it."""
    if earlier is None:
        return choice
    return replace(choice, failures={**earlier.failures, **choice.failures}, stopped=earlier.stopped)


def choices(tune: Tune, trials: Sequence[CellResult]) -> dict[str, TunedChoice]:
    """The choice of each setting, by :func:`~lightning_gpt.studies.spec.cells.setting_id`.

    A value is one to choose if all its trials ended and measured a loss.

    Raises:
        WorkError: Trials are still to be run, or no value of a setting is one to choose.
    """
    left = [trial for trial in trials if trial.status in ("unfinished", "missing")]
    if left:
        raise WorkError(
            f"{len(left)} of {len(trials)} trials of {tune.name} are still to be run, first of them {left[0].cell.name}"
        )
    found: dict[str, TunedChoice] = {}
    by_value: dict[tuple[str, str], list[CellResult]] = {}
    for trial in trials:
        settings = trial.cell.without(tune.key)
        found.setdefault(setting_id(settings), TunedChoice(settings))
        by_value.setdefault((setting_id(settings), repr(trial.cell.settings[tune.key])), []).append(trial)
    for (setting, _), members in by_value.items():
        value, reasons = members[0].cell.settings[tune.key], [reason for each in members if (reason := _reason(each))]
        if reasons:
            found[setting].failures[value] = reasons[0]
        else:
            found[setting].losses[value] = {each.cell.seed: each.values[MEASURE] for each in members}
    for choice in found.values():
        if not choice.losses:
            named = ", ".join(map(str, choice.settings.values())) or "the study"
            value, why = next(iter(choice.failures.items()))
            raise WorkError(f"no {tune.name} of {named} can be chosen: with {value}, {why[0].lower()}{why[1:]}")
    return found


def _reason(trial: CellResult) -> str:
    """Why a trial gives no loss; empty where it gives one."""
    if trial.status == "failed":
        return trial.error or "failed"
    return "" if MEASURE in trial.values else f"it measured no finite {MEASURE}"
