"""Validation, test and prediction of a language model under Lightning."""

import lightning as L
import torch
from torch import Tensor

from lightning_gpt.data.batches import Batch
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.head import IGNORED
from lightning_gpt.perplexity import perplexity
from lightning_gpt.training.metrics import BitsPerByte, MeanLoss
from lightning_gpt.training.recurrence import lane_states, remembering


class EvaluatedModule(L.LightningModule):
    """Measures a language model over whole splits: loss, perplexity and, for text, bits per byte.

    The results depend neither on the batch size nor on the number of processes. A model with memory starts every
    evaluation with empty memory, separate from what it remembers in training.

    Args:
        model: The bare model.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model
        self.eval_loss = MeanLoss()
        self.eval_bits = BitsPerByte()
        self._eval_lanes = lane_states(model)

    @property
    def text(self) -> TextData | None:
        """The trainer's data if it is :class:`~lightning_gpt.data.datamodule.TextData`, else None."""
        data = None if self._trainer is None else self._trainer.datamodule  # type: ignore[attr-defined]
        return data if isinstance(data, TextData) else None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the validation loss."""
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the test loss."""
        self._evaluate(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """``targets``, ``nll`` in nats and ``predicted``, the likeliest token; each ``(rows, block_size)``."""
        predicted = self._predicted(batch)  # leaves the memory unchanged, so it comes before the loss
        return {"targets": batch["targets"], "nll": self._nll(batch), "predicted": predicted}

    def _predicted(self, batch: Batch) -> Tensor:
        """The likeliest token at each position, one row at a time because the logits of a whole batch can be large."""
        likeliest, documents = [], batch.get("documents")
        for row in range(len(batch["ids"])):
            one = slice(row, row + 1)
            with remembering(self._eval_lanes, batch, row=row):
                logits = self.model(batch["ids"][one], None if documents is None else documents[one])
            likeliest.append(logits.argmax(dim=-1))
        return torch.cat(likeliest)

    def _nll(self, batch: Batch) -> Tensor:
        with remembering(self._eval_lanes, batch):
            return self.model.token_nll(batch["ids"], batch["targets"], batch.get("documents"))

    def _evaluate(self, batch: Batch) -> None:
        nll = self._nll(batch)
        counted = batch["targets"] != IGNORED
        self.eval_loss.update(nll, counted)
        data = self.text
        if data is not None:
            lengths = torch.from_numpy(data.tokenizer.byte_lengths).to(nll.device)
            self.eval_bits.update(nll, lengths[batch["targets"].clamp(min=0)] * counted)

    def _forget(self) -> None:
        if self._eval_lanes is not None:
            self._eval_lanes.clear()

    def on_validation_epoch_start(self) -> None:
        """Start with empty memory."""
        self._forget()

    def on_test_epoch_start(self) -> None:
        """Start with empty memory."""
        self._forget()

    def on_predict_epoch_start(self) -> None:
        """Start with empty memory."""
        self._forget()

    def on_validation_epoch_end(self) -> None:
        """Log ``val/loss``, ``val/perplexity`` and, for text, ``val/bits_per_byte`` at the current optimizer step."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the same for the test split."""
        self._log_evaluation("test")

    def _log_evaluation(self, split: str) -> None:
        loss = self.eval_loss.compute().float()
        self.eval_loss.reset()
        values: dict[str, Tensor | float] = {f"{split}/loss": loss, f"{split}/perplexity": perplexity(float(loss))}
        if self.text is not None:
            values[f"{split}/bits_per_byte"] = self.eval_bits.compute().float()
        self.eval_bits.reset()
        # the metrics have summed over the processes already; Lightning warns unless sync_dist says so
        self.log_dict(values, logger=False, sync_dist=True)
        for logger in () if self.trainer.sanity_checking else self.loggers:
            logger.log_metrics({key: float(value) for key, value in values.items()}, step=self.trainer.global_step)
