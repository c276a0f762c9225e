"""The LightningModules over the two models."""

import json
import math
import os
from contextlib import nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from lightning_gpt.checkpoint import MODEL_KEY
from lightning_gpt.data.batches import Batch
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig, LanguageModel, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.loss import IGNORED
from lightning_gpt.training.compiling import CompiledBlocks
from lightning_gpt.training.metrics import MeanLoss
from lightning_gpt.training.mup import rescale
from lightning_gpt.training.optim import Optimization, optimizer, schedule
from lightning_gpt.training.schedules import Stage, accumulated_at, batch_stages


class LanguageModule(L.LightningModule):
    """Trains a language model: loss, perplexity, optimizer and schedule.

    Args:
        model: The bare model.
        optimization: How its weights are trained.
        compile_blocks: Whether training steps run each block through ``torch.compile``.
    """

    def __init__(self, model: LanguageModel, optimization: Optimization, compile_blocks: bool = False) -> None:
        super().__init__()
        self.model = model
        self.optimization = optimization
        self.eval_loss = MeanLoss()
        self._cursor: dict[str, Any] | None = None
        self._stages: tuple[Stage, ...] = ()
        self._compiled = CompiledBlocks(model) if compile_blocks else None
        if optimization.mup is not None:
            rescale(model, optimization.mup)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the batch in nats, with the z-loss where there is one."""
        self._cursor = json.loads(batch["cursor"])
        # Dropout in a step is a function of (seed, rows trained on, process), so a resumed run draws the same.
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        # torch.manual_seed also seeds every accelerator there might be, which costs a millisecond even where none is.
        seed_step = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
        seed_step(hash((seed, self._cursor["rows"], self.global_rank)))
        z_loss = self.optimization.z_loss
        with nullcontext() if self._compiled is None else self._compiled.training():
            return self.model.loss(batch["ids"], batch["targets"], batch.get("documents"), z_loss=z_loss)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step itself; then the rows of this step, and no earlier, count as trained on."""
        super().optimizer_step(*args, **kwargs)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, TextData) and self._cursor is not None:
            data.trained_on(self._cursor)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the validation loss."""
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the test loss."""
        self._evaluate(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Negative log-likelihood in nats and most likely token at each position, ``(rows, block_size)`` both."""
        return {
            "targets": batch["targets"],
            "nll": self.model.token_nll(batch["ids"], batch["targets"], batch.get("documents")),
            "predicted": self._predicted(batch["ids"], batch.get("documents")),
        }

    def _predicted(self, ids: Tensor, documents: Tensor | None) -> Tensor:
        """The likeliest token at each position, a row at a time: logits of a whole batch can be large."""
        rows = [slice(row, row + 1) for row in range(len(ids))]
        likeliest = [self.model(ids[row], None if documents is None else documents[row]).argmax(dim=-1) for row in rows]
        return torch.cat(likeliest)

    def _evaluate(self, batch: Batch) -> None:
        nll = self.model.token_nll(batch["ids"], batch["targets"], batch.get("documents"))
        self.eval_loss.update(nll, batch["targets"] != IGNORED)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/loss`` and ``val/perplexity`` over the optimizer step."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log ``test/loss`` and ``test/perplexity``."""
        self._log_evaluation("test")

    def _log_evaluation(self, split: str) -> None:
        loss = self.eval_loss.compute().float()
        self.eval_loss.reset()
        values = {f"{split}/loss": loss, f"{split}/perplexity": loss.exp()}
        # the value is the same on every process already; Lightning wants to be told so
        self.log_dict(values, logger=False, sync_dist=True)
        if self.logger is not None and not self.trainer.sanity_checking:
            self.logger.log_metrics({key: float(value) for key, value in values.items()}, step=self.trainer.global_step)

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule over the trainer's number of optimizer steps."""
        o, steps = self.optimization, self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise CallError(
                "the number of training steps is unknown and the learning-rate schedule needs it: "
                "set --trainer.max_steps (the data has no known length, or max_epochs is -1)"
            )
        if o.batch_warmup and self.trainer.max_epochs != -1:
            raise CallError(
                "optimization.batch_warmup makes the number of optimizer steps in an epoch another: "
                "say how long to train with --trainer.max_steps, and set --trainer.max_epochs -1"
            )
        warmup_steps = math.ceil(o.batch_warmup * steps)
        self._stages = batch_stages(self.trainer.accumulate_grad_batches, warmup_steps) if warmup_steps else ()
        fused = False if self.trainer.precision == "16-mixed" else None
        half = torch.bfloat16 if self.trainer.precision in ("bf16-mixed", "bf16-true") else None
        chosen = optimizer(self.model, o, fused, half)
        return {
            "optimizer": chosen,
            "lr_scheduler": {"scheduler": schedule(chosen, o, int(steps)), "interval": "step"},
        }

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let the step that this micro-batch is of have as many as the batch's warm-up says."""
        if self._stages:
            self.trainer.accumulate_grad_batches = accumulated_at(self._stages, self.trainer.global_step)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer's flags say.

        Lightning's own AMP plugin refuses to clip for any fused optimizer, because some GradScaler set-ups need it
        to; only fp16 has a GradScaler, and there the optimizer is not fused.
        """
        if gradient_clip_val and gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        elif gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def on_train_start(self) -> None:
        """Refuse to validate in the middle of an accumulated step: its checkpoint could not be resumed exactly."""
        every, accumulate = self.trainer.val_check_batch, self.trainer.accumulate_grad_batches
        if isinstance(every, int) and every % accumulate:
            raise CallError(
                f"validation every {every} micro-batches falls inside an optimizer step of {accumulate}: "
                f"set --trainer.val_check_interval to a multiple of accumulate_grad_batches"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count the micro-batches done before in this run's size, where processes or batch size have changed."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, TextData) or TextData.__qualname__ not in checkpoint or "loops" not in checkpoint:
            return
        was, now = checkpoint[TextData.__qualname__].get("micro_batch_rows"), data.micro_batch_rows
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]) if was else ():
            for stage in counts:
                counts[stage] = counts[stage] * was // now

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which model the weights are of, so that :func:`lightning_gpt.load` can rebuild it."""
        checkpoint[MODEL_KEY] = self.model.describe()


class GPTModule(LanguageModule):
    """Trains the multi-block :class:`~lightning_gpt.models.gpt.GPT`.

    Args:
        optimization: How its weights are trained.
        compile_blocks: Whether training steps run each block through ``torch.compile``: tens of seconds once, before
            the first step, and then less time a step where memory and not products is the limit, as on GPUs.
        **config: The fields of :class:`~lightning_gpt.models.gpt.GPTConfig`.
    """

    def __init__(
        self, optimization: Optimization = Optimization(), compile_blocks: bool = False, **config: Any
    ) -> None:
        super().__init__(GPT(GPTConfig(**config)), optimization, compile_blocks)


class SingleHeadModule(LanguageModule):
    """Trains the one-head :class:`~lightning_gpt.models.single_head.SingleHeadModel`.

    Args:
        optimization: How its weights are trained.
        **config: The fields of :class:`~lightning_gpt.models.single_head.SingleHeadConfig`.
    """

    def __init__(self, optimization: Optimization = Optimization(), **config: Any) -> None:
        super().__init__(SingleHeadModel(SingleHeadConfig(**config)), optimization)
