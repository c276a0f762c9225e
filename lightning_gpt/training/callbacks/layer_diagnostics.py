"""Every layer diagnostic by layer, at each validation of a training run."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_gpt.analysis.layer_diagnostics import DIAGNOSTICS, Figures, Value, begin, one_value
from lightning_gpt.analysis.layer_measures import cka_matrix
from lightning_gpt.analysis.layer_plots import Heatmaps, cka_heatmap, value_spectra
from lightning_gpt.analysis.probe import Probe, block_parameters
from lightning_gpt.background import Background
from lightning_gpt.console import say
from lightning_gpt.data.batches import Batch, batch_of
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.errors import CallError
from lightning_gpt.json_text import to_json
from lightning_gpt.models.head import IGNORED
from lightning_gpt.options import Range, check_options
from lightning_gpt.parallel.norms import gradients, total_norm
from lightning_gpt.training.callbacks.board import board_of
from lightning_gpt.training.callbacks.metrics_file import logged_at
from lightning_gpt.training.callbacks.step_metrics import logged_every
from lightning_gpt.training.device_clock import clock
from lightning_gpt.training.module import LanguageModule
from lightning_gpt.whole_file import write_file

_RATIO_EVERY = 5
"""The update is measured at every fifth logged step, because it needs a copy of the weights."""
_ROW_TOKENS = 128
"""Maximum length of a probe row, because the cost of attention spectra grows with its cube."""
SAME_CORES = {"cpu"}
"""Types of devices whose training needs the processor's cores itself. There a thread would halve the pause and save a
seventh of the time that measuring takes in all, but it would delay the training's own threads as another program does
(``waiting.py``)."""


@dataclass
class _Measurement:
    """A measurement that has begun.

    Args:
        step: The optimizer step of the weights.
        finish: Measures what is left, from what was recorded.
        log: Logs scalars as of the moment at which it began.
        of_step: What was last measured at an optimizer step.
        figures: What :attr:`finish` has returned.
    """

    step: int
    finish: Callable[[], Figures]
    log: Callable[[dict[str, float]], None]
    of_step: Figures
    figures: Figures | None = None

    def run(self) -> None:
        self.figures = self.finish()


class LayerDiagnostics(Callback):
    """Measures every layer on fixed probe tokens before the first step and at each validation.

    It logs scalars ``layers/<diagnostic>/layer_<i>`` and, at the end of fit, heatmaps of layer by step. It also writes
    ``layers.json`` in the run's folder, a list of ``{"step": n, diagnostic: [value of each layer], ...}`` in which a
    value by head is itself a list. A resumed run continues the file beside its checkpoint.

    Gradient norms are measured at each logged optimizer step, update-to-weight ratios at the first logged step and
    every fifth one after it; the file holds the latest of each. Only the first process measures and writes; where a
    layout spreads the model over processes, it gathers a whole copy for that.

    While a device trains, decompositions and all else that does not run the model are computed in a thread, from what
    the probe recorded. The figures are logged and written once they are there, at the latest before the next ones, as
    those of their step. A checkpoint of a later step waits for them, and so does the end of the training; a run that
    resumes from a checkpoint of the same step measures again what was not written.

    Args:
        enabled: Whether to measure at all.
        tokens: Maximum number of validation tokens to probe; never more than a micro-batch has.
        layer_values: Whether to measure what each block is worth, too, which takes one more pass per block.
    """

    def __init__(
        self, enabled: bool = True, tokens: Annotated[int, Range(2, 2**24)] = 256, layer_values: bool = False
    ) -> None:
        check_options(LayerDiagnostics.__init__, locals(), "diagnostics.")
        self.enabled = enabled
        self.tokens = tokens
        self.layer_values = layer_values
        self._folder = Path()
        self._history: list[dict[str, Any]] = []
        self._earlier: list[dict[str, Any]] = []  # of the run that is resumed
        self._last_figures: Figures = {}
        self._step_figures: Figures = {}
        self._work = Background("layer diagnostics")
        self._running: _Measurement | None = None
        self._unfinished_step: int | None = None  # the step of one that the checkpoint was saved before
        self._weights_before: list[list[Tensor]] | None = None
        self._probe: Probe | None = None
        self._batch: Batch | None = None
        self._takes_part = False
        self._seconds = self._started = 0.0

    @property
    def history(self) -> list[dict[str, Any]]:
        """The entries of ``layers.json`` so far, the newest last; empty on processes that measure nothing."""
        return list(self._history)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._folder = Path(
            trainer.log_dir or trainer.default_root_dir
        )  # reading it is a broadcast, so every process must

    def state_dict(self) -> dict[str, Any]:
        unfinished = {} if self._running is None else {"unfinished": self._running.step}
        return {"of_step": self._last_figures, **unfinished}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_figures, self._unfinished_step = state_dict["of_step"], state_dict.get("unfinished")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._running is not None and self._running.step != trainer.global_step:
            self._finish(pl_module.device)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = trainer.ckpt_path
        self._earlier = []
        if path is not None and self._may_measure(trainer):
            self._earlier = _read(Path(path).parent.parent / "layers.json")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started, self._seconds = clock(pl_module.device), 0.0
        self._history, self._step_figures, self._probe, self._weights_before = [], {}, None, None
        if trainer.ckpt_path is None:
            self._last_figures, self._unfinished_step = {}, None
        with self._timed(pl_module.device):
            self._batch = self._probe_batch(trainer, pl_module)
            spread = isinstance(pl_module, LanguageModule) and pl_module.is_spread
            self._takes_part = self._batch is not None and (trainer.is_global_zero or spread)
            if not self._takes_part:
                return
            self._history = [entry for entry in self._earlier if entry["step"] <= trainer.global_step]
        step = trainer.global_step
        if step == 0 or (step == self._unfinished_step and step not in [entry["step"] for entry in self._history]):
            self._measure(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._measure(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        every = logged_every(trainer)
        if not self._takes_part or not every or (trainer.global_step + 1) % every:
            return
        assert isinstance(pl_module, LanguageModule)
        with self._timed(pl_module.device), torch.no_grad():
            parameters = block_parameters(pl_module.model)
            self._step_figures = {
                "grad_norm": _of_all_layers(pl_module, [_norm(gradients(part)) for part in parameters])
            }
            if (trainer.global_step + 1) // every % _RATIO_EVERY == 1:
                self._weights_before = [[p.clone() for p in part] for part in parameters]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._running is not None and self._work.is_idle:
            self._finish(pl_module.device)
        if not self._step_figures:
            return
        assert isinstance(pl_module, LanguageModule)
        with self._timed(pl_module.device), torch.no_grad():
            if self._weights_before is not None:
                ratios = _ratios(self._weights_before, block_parameters(pl_module.model))
                self._step_figures["update_ratio"] = _of_all_layers(pl_module, ratios)
            logged_at(trainer)(_scalars(self._step_figures))
            self._last_figures = self._last_figures | self._step_figures
            self._step_figures, self._weights_before = {}, None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._batch is None or not trainer.is_global_zero:
            return
        self._finish(pl_module.device)
        with self._timed(pl_module.device):
            self._draw(trainer)
        share = self._seconds / (clock(pl_module.device) - self._started)
        for logger in trainer.loggers:
            logger.log_metrics({"layers/share_of_time": share}, step=trainer.global_step)
        say(f"layer diagnostics: {self._folder / 'layers.json'}; measuring took {share:.1%} of the training time")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        try:
            self._finish(pl_module.device)
        except Exception as error:  # the training has ended with another one
            say(f"layer diagnostics failed, too: {error}")

    @contextmanager
    def _timed(self, device: torch.device) -> Iterator[None]:
        start = clock(device)
        try:
            yield
        finally:
            self._seconds += clock(device) - start

    def _may_measure(self, trainer: L.Trainer) -> bool:
        is_trial = getattr(trainer, "fast_dev_run", False)  # it must leave no file
        return self.enabled and trainer.enable_validation and not is_trial

    def _probe_batch(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Batch | None:
        """The first validation tokens as rows, the same for any number of processes; None to measure nothing."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not self._may_measure(trainer):
            return None
        if not isinstance(pl_module, LanguageModule) or not isinstance(data, TextData):
            return None
        targets = data.evaluation("val").all_targets
        text = targets[targets != IGNORED]
        longest = pl_module.model.trace_limit or data.block_size
        time_ = min(longest, _ROW_TOKENS, self.tokens, len(text) - 1)
        if time_ < 2:
            return None
        rows = max(1, min(self.tokens // time_, data.micro_batch_rows, (len(text) - 1) // time_))
        ids, following = (text[start : start + rows * time_].view(rows, time_) for start in (0, 1))
        batch = batch_of(ids, following, data.tokenizer.end_of_text if data.separate_documents else None)
        moved: Batch = move_data_to_device(batch, pl_module.device)
        return moved

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to measure every diagnostic, and finish here if a thread gains nothing."""
        if self._batch is None or not self._takes_part:
            return
        assert isinstance(pl_module, LanguageModule)
        self._finish(pl_module.device)
        with self._timed(pl_module.device):
            batch, model = self._batch, pl_module.whole_model()
            if model is None:
                return
            self._probe = Probe.take(model, batch["ids"], batch["targets"], batch.get("documents"))
            rest = begin(self._probe, self.layer_values)
            begun = _Measurement(trainer.global_step, rest, logged_at(trainer), self._last_figures)
            inline = pl_module.device.type in SAME_CORES
            if inline:
                begun.run()
            else:
                self._work.begin(begun.run)
            self._running = begun
        if inline:
            self._finish(pl_module.device)

    def _finish(self, device: torch.device) -> None:
        """Wait for what has begun, log it and write it."""
        begun, self._running = self._running, None
        if begun is None:
            return
        with self._timed(device):
            self._work.wait()
            assert begun.figures is not None
            begun.log(_scalars(begun.figures))
            self._history = [entry for entry in self._history if entry["step"] < begun.step]
            self._history.append({"step": begun.step, **begun.figures, **begun.of_step})
            _write(self._folder / "layers.json", self._history)

    def _draw(self, trainer: L.Trainer) -> None:
        """Draw all pictures over the whole run, including the part before a resume."""
        board = board_of(trainer)
        if board is None:
            return
        step, heatmaps = trainer.global_step, Heatmaps()
        for name, diagnostic in DIAGNOSTICS.items():
            columns = [entry for entry in self._history if name in entry]
            if columns:
                steps, figures = [entry["step"] for entry in columns], [entry[name] for entry in columns]
                board.add_figure(f"layers/{name}", heatmaps.draw(diagnostic, steps, figures), step)
        if self._probe is not None:
            last = self._history[-1]["step"]
            board.add_figure("layers/cka_between_layers", cka_heatmap(cka_matrix(self._probe), last), step)
            for blocks, figure in value_spectra(self._probe.value_spectra, last).items():
                board.add_figure(f"layers/value_spectrum/{blocks}", figure, step)


def _of_all_layers(module: LanguageModule, own: list[Value]) -> list[Value]:
    """Figures of this process's layers, with those of layers that others hold."""
    layers = [view.layer for view in module.model.block_views()]
    return list(module.of_all_layers(dict(zip(layers, own, strict=True))).values())


def _scalars(figures: Figures) -> dict[str, float]:
    """One scalar for each layer, by its tag."""
    return {
        f"layers/{name}/layer_{layer:02}": number
        for name, layers in figures.items()
        for layer, value in enumerate(layers)
        if (number := one_value(value)) is not None
    }


def _norm(tensors: Sequence[Tensor]) -> Value:
    return float(total_norm(tensors))


def _ratios(before: list[list[Tensor]], after: Sequence[Sequence[Tensor]]) -> list[Value]:
    """‖W_new − W‖/‖W‖ of each block; overwrites ``before``."""
    ratios: list[Value] = []
    for old, new in zip(before, after, strict=True):
        size = float(total_norm(old))
        for weight, now in zip(old, new, strict=True):
            weight -= now
        ratios.append(float(total_norm(old)) / size if size else None)
    return ratios


def _read(path: Path) -> list[dict[str, Any]]:
    """The entries of a ``layers.json``; none if the file does not exist.

    Raises:
        CallError: It holds something else.
    """
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_bytes())
    except ValueError:
        entries = None
    if isinstance(entries, list) and all(
        isinstance(each, dict) and isinstance(each.get("step"), int) for each in entries
    ):
        return entries
    raise CallError(f"{str(path)!r} does not hold layer diagnostics: move it away to resume without the earlier ones")


def _write(path: Path, history: list[dict[str, Any]]) -> None:
    write_file(path, "[\n" + ",\n".join(to_json(entry) for entry in history) + "\n]\n")
