"""The layout of TensorBoard: overlaid charts, hyper-parameters beside results, the token embeddings.

Other loggers get the scalars and the hyper-parameters.
"""

import dataclasses
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lightning_gpt.analysis.attention import readable_tokens
from lightning_gpt.console import say
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.registry import readable
from lightning_gpt.training.callbacks.metrics_file import MetricsLines
from lightning_gpt.training.module import LanguageModule

_MOST_TOKENS = 5000
"""The projector reads points as text; more of them take long to write and longer to load."""

_RESULTS = ("val/loss", "val/bits_per_byte")


def board_of(trainer: L.Trainer) -> SummaryWriter | None:
    """TensorBoard's writer; None without TensorBoard, and on every process but the first."""
    if not trainer.is_global_zero:
        return None
    logger = next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
    return None if logger is None else logger.experiment


class Board(Callback):
    """Lays TensorBoard out for a run.

    - *Custom scalars*: training and validation loss in one chart; learning rate, gradient norm and speed below.
    - *HParams*: the run's sizes and settings beside its last validation results. They are written at the start, so
      that a killed run has them too.
    - *Projector*: at the end of fit, the token embeddings with each token, its id and its count in the training text.
      Of a large vocabulary only the first 5,000 ids, which byte-pair encodings give to the most frequent merges.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, LanguageModule):
            return
        board = board_of(trainer)
        others = [each for each in trainer.loggers if not isinstance(each, MetricsLines | TensorBoardLogger)]
        for logger in others if trainer.is_global_zero else []:
            logger.log_hyperparams(hyper_parameters(trainer, pl_module))
        if board is None:
            if others and trainer.is_global_zero:
                names = ", ".join(type(each).__name__ for each in others)
                say(f"{names}: scalars and settings; pictures, sample texts and the token table need TensorBoardLogger")
            return
        board.add_custom_scalars(layout())
        settings = hyper_parameters(trainer, pl_module)
        experiment, start, _ = hparams(settings, dict.fromkeys(_RESULTS, 0.0))  # type: ignore[no-untyped-call]
        _write(board, experiment, start)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        board, data = board_of(trainer), trainer.datamodule  # type: ignore[attr-defined]
        model = pl_module.whole_model() if isinstance(pl_module, LanguageModule) else None
        if board is None or model is None:
            return
        _, _, end = hparams({}, {})  # type: ignore[no-untyped-call]
        _write(board, end)
        if isinstance(data, TextData):
            _add_token_table(board, model, data, trainer.global_step)


def _write(board: SummaryWriter, *summaries: Any) -> None:
    """Add summaries to this run; ``add_hparams`` would open a folder for them, which TensorBoard shows as a run."""
    for summary in summaries:
        board._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]


def layout() -> dict[str, dict[str, list[Any]]]:
    """The custom-scalars page: the loss first, then what else a run is watched by. Tags are regular expressions.

    TensorBoard gives all lines of a run one colour, so layers have heatmaps and no chart of many lines here.
    """
    return {
        "loss": {"training and validation loss (nats)": ["Multiline", ["train/loss$", "val/loss$"]]},
        "training": {
            "learning rate": ["Multiline", ["train/lr$"]],
            "gradient norm, before clipping": ["Multiline", ["train/grad_norm$"]],
            "tokens per second": ["Multiline", ["train/tokens_per_second$"]],
        },
    }


def hyper_parameters(trainer: L.Trainer, module: LanguageModule) -> dict[str, int | float | str]:
    """The settings that distinguish runs (model, optimization, batch, steps, precision) as plain values by name."""
    model, data = module.model, trainer.datamodule  # type: ignore[attr-defined]
    sizes = {
        key: value if isinstance(value, int | float) else readable(value) for key, value in vars(model.config).items()
    }
    settings = {"model": model.class_name, **sizes, **dataclasses.asdict(module.optimization)}
    settings |= {"max_steps": trainer.max_steps, "max_epochs": trainer.max_epochs, "precision": str(trainer.precision)}
    if isinstance(data, TextData):
        settings["batch_rows"] = data.step_rows
    return {key: _plain(value) for key, value in settings.items() if value is not None}


def _plain(value: Any) -> int | float | str:
    if isinstance(value, list | tuple):
        return ", ".join(str(each) for each in value)
    if isinstance(value, bool):
        return str(value).lower()  # TensorBoard shows a boolean as 1.0000
    return value if isinstance(value, int | float) else str(value)


def _add_token_table(board: SummaryWriter, model: LanguageModel, data: TextData, step: int) -> None:
    # the model has more ids than the tokenizer if the text did not yield the vocabulary that was asked for
    shown = min(_MOST_TOKENS, data.tokenizer.vocab_size)
    weights = model.get_parameter("token_embedding.weight").detach()[:shown]
    table = weights.cpu().double().round(decimals=5)  # written as text, where digits cost megabytes
    ids, counts = range(len(table)), data.counts()
    columns = {"token": readable_tokens(data.tokenizer, ids), "id": [str(number) for number in range(len(table))]}
    if counts is not None:
        occurring = np.sum([c.token_counts for c in counts], axis=0)
        columns["in training text"] = [str(number) for number in occurring[: len(table)]]
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    board.add_embedding(table, rows, global_step=step, tag="token_embedding", metadata_header=list(columns))
