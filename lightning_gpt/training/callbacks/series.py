"""A series of checkpoints whose steps double, each known by its hash."""

from pathlib import Path

import lightning as L

from lightning_gpt.checkpoint_folder import Saved
from lightning_gpt.checkpoint_name import run_of
from lightning_gpt.checkpoint_series import (
    delist,
    enlist,
    listed,
    path_of_step,
    require_listed,
    require_step,
    series_of,
    steps_in,
    sums_of,
)
from lightning_gpt.console import say
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.saving import BackgroundSaves
from lightning_gpt.training.checkpoint_io import nothing_is_being_saved, wait_for_saves
from lightning_gpt.whole_file import take_over


class CheckpointSeries:
    """Keeps the weights of steps 0, 1, 2, 4, 8, … below ``every``, and of each multiple of ``every``.

    With 1,000 these are the steps that Pythia published (Biderman et al. 2023, 2304.01373, section 2.1). A file is
    written like every checkpoint and then entered in the list of hashes; one that a kill left out of the list is
    entered when the run is resumed. A run that resumes another's checkpoint takes over the steps up to it.

    Args:
        every: Steps between two checkpoints once they no longer double.
        background: Whether hashes are computed while the training goes on.
    """

    def __init__(self, every: int, background: bool) -> None:
        self.every = every
        self.folder = Path()
        self._listing = BackgroundSaves(background)
        self._unlisted: Path | None = None
        self._last = -1

    def is_due(self, step: int) -> bool:
        """Whether the series has a checkpoint of this step."""
        return step % self.every == 0 if step >= self.every else step & (step - 1) == 0

    def begin(self, trainer: L.Trainer, run: Path) -> None:
        """Save step 0 of a new run, or take over the steps up to the one that a run is resumed from."""
        self.folder = series_of(run)
        if trainer.ckpt_path is None:
            self.at_step(trainer)
            return
        self._last = trainer.global_step
        if trainer.is_global_zero:
            self._take_over(series_of(run_of(Path(trainer.ckpt_path))), trainer.global_step)

    def at_step(self, trainer: L.Trainer) -> None:
        """Save the step that the training is at, if it is due; call it before ``last.ckpt`` of that step is saved.

        Raises:
            WorkError: A checkpoint cannot be written.
        """
        if self._unlisted is not None and nothing_is_being_saved(trainer):
            self._list(trainer)
        step = trainer.global_step
        if step == self._last or not self.is_due(step):
            return
        self.end(trainer)
        self._last = step
        self._unlisted = path_of_step(self.folder, step)
        if trainer.is_global_zero and self._unlisted.exists():
            delist(self.folder, self._unlisted)
        trainer.save_checkpoint(self._unlisted, weights_only=True)

    def end(self, trainer: L.Trainer) -> None:
        """Wait until all that was saved is in the list.

        Raises:
            WorkError: It cannot be written.
        """
        if self._unlisted is not None:
            self._list(trainer)
        self._listing.wait()

    def _list(self, trainer: L.Trainer) -> None:
        wait_for_saves(trainer)
        path, self._unlisted = self._unlisted, None
        if trainer.is_global_zero:
            self._listing.write(self._enlist, path)

    def _enlist(self, path: Path) -> None:
        try:
            enlist(self.folder, sums_of(path))
        except OSError as error:
            raise WorkError(f"checkpoint {str(path)!r} cannot be read: {error.strerror}") from None

    def _take_over(self, earlier: Path, until: int) -> None:
        """Enter in the list what is not in it, and give another run's checkpoints a second name in this run."""
        for step in steps_in(earlier):
            if step > until:
                continue
            path = path_of_step(earlier, step)
            try:
                if any(name.split("/")[0] == path.name for name in listed(earlier)):
                    require_listed(path)
                require_step(path, Saved(path).content.get("global_step"))
                kept = path_of_step(self.folder, step)
                if not kept.exists():
                    take_over(path, kept)
                enlist(self.folder, sums_of(kept))
            except CallError as error:
                say(f"{error}; the series continues without it")
            except OSError as error:
                raise WorkError(f"{path} cannot be taken over: {error.strerror}") from None
