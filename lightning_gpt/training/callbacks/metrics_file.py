"""``metrics.jsonl`` in the run's folder: all that is logged, for programs to read."""

import os
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_only

from lightning_gpt.data.datamodule import TextData
from lightning_gpt.errors import WorkError
from lightning_gpt.training.metrics_jsonl import FIELDS, FILE_NAME, Line, plain, read_metrics, to_text
from lightning_gpt.whole_file import write_file

_SPLITS = {
    RunningStage.TRAINING: "train",
    RunningStage.SANITY_CHECKING: "val",
    RunningStage.VALIDATING: "val",
    RunningStage.TESTING: "test",
    RunningStage.PREDICTING: "predict",
}
"""By the Trainer's stage, the split that it reads."""


class MetricsFile(Callback):
    """Writes every logged scalar to ``metrics.jsonl``; :mod:`~lightning_gpt.training.metrics_jsonl` has the format.

    It joins the Trainer's loggers, so each of their calls is one line, appended at once. Only the first process
    writes, and under ``fast_dev_run`` nobody does. A resumed run begins with the lines of the run that its checkpoint
    is from, up to the checkpoint's step.

    Args:
        folder: The run's folder. It becomes the Trainer's ``log_dir``, whatever other loggers there are, so that
            checkpoints and all other files of the run go there too. When omitted, the file is written in the
            ``log_dir`` that the other loggers give the Trainer, and without a logger not at all.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._lines: MetricsLines | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.join(trainer)

    def join(self, trainer: L.Trainer) -> None:
        """Join the loggers; call it before ``fit`` if the profiler is to find the run's folder too."""
        others = trainer.loggers = [logger for logger in trainer.loggers if logger is not self._lines]
        self._lines = None
        if getattr(trainer, "fast_dev_run", False) or not (self.folder or others):
            return
        # asking for log_dir is a broadcast: every process must
        folder = self.folder or Path(trainer.log_dir or trainer.default_root_dir)
        self._lines = MetricsLines(trainer, folder / FILE_NAME)
        # the Trainer's log_dir is the folder of its first logger
        trainer.loggers = [*others, self._lines] if self.folder is None else [self._lines, *others]

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._lines is not None:
            self._lines.begin()  # while the step is still the one that the run resumes from


class MetricsLines(Logger):
    """Appends each call's scalars to a file, which it begins at the first call or when training starts.

    Args:
        trainer: Where the scalars come from.
        file: The file.
    """

    def __init__(self, trainer: L.Trainer, file: Path) -> None:
        super().__init__()
        self._trainer = trainer
        self._file = file
        self._began = time.monotonic()
        self._begun = False
        self._steps: int | None = None

    @property
    def name(self) -> str:
        """Empty: Lightning joins it to :attr:`save_dir` to find the folder of the checkpoints."""
        return ""

    @property
    def version(self) -> str:
        """Empty, as :attr:`name`."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of the file."""
        return str(self._file.parent)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Settings are in the run's ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Append a line."""
        self.append(self.head(step), metrics)

    def head(self, step: int | None = None) -> Line:
        """The fields of a line other than its scalars, as of now."""
        self.begin()
        trainer = self._trainer
        assert trainer.state.stage is not None
        rows, tokens = _trained_on(trainer)
        return {
            "step": trainer.global_step if step is None else step,
            "steps": self._steps,
            "split": _SPLITS[trainer.state.stage],
            "rows": rows,
            "tokens": tokens,
            "seconds": round(time.monotonic() - self._began, 3),
        }

    def append(self, head: Line, metrics: dict[str, Any]) -> None:
        """Append a line with the fields of ``head``."""
        line = head | {tag: plain(value) for tag, value in metrics.items() if tag not in FIELDS}
        try:
            # not "a", which would begin an incomplete file where the whole one was deleted
            with self._file.open("r+", encoding="utf-8") as file:
                file.seek(0, os.SEEK_END)
                file.write(to_text([line]))
        except OSError as error:
            raise WorkError(f"{self._file} cannot be written: {error.strerror}") from None

    def begin(self) -> None:
        """Begin the file, with the lines that a resumed run continues, and count its seconds on from them."""
        if self._begun:
            return
        trainer, kept = self._trainer, list[Line]()
        if trainer.state.fn == "fit":
            total = trainer.estimated_stepping_batches
            self._steps = None if total == float("inf") else int(total)
            if trainer.ckpt_path is not None:
                before = read_metrics(Path(trainer.ckpt_path).parent.parent / FILE_NAME)
                kept = [line for line in before if line["step"] <= trainer.global_step]
        if kept:
            self._began -= max(line["seconds"] for line in kept)
        write_file(self._file, to_text(kept))
        self._begun = True


def logged_at(trainer: L.Trainer) -> Callable[[dict[str, float]], None]:
    """What logs scalars, now or later, as those of this moment: of its step and, in ``metrics.jsonl``, of its rows."""
    step, loggers = trainer.global_step, list(trainer.loggers) if trainer.is_global_zero else []
    heads = {logger: logger.head(step) for logger in loggers if isinstance(logger, MetricsLines)}

    def log(metrics: dict[str, float]) -> None:
        for logger in loggers:
            if isinstance(logger, MetricsLines):
                logger.append(heads[logger], metrics)
            else:
                logger.log_metrics(metrics, step=step)

    return log


def _trained_on(trainer: L.Trainer) -> tuple[int | None, int | None]:
    """Rows and tokens trained on so far; None outside ``fit`` and for data that is not a :class:`TextData`."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if trainer.state.fn != "fit" or not isinstance(data, TextData):
        return None, None
    rows = 0 if data.mark is None else data.mark.rows
    return rows, rows * data.block_size
