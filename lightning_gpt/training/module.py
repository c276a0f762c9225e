"""The LightningModules over the two models."""

import json
import math
import os
from contextlib import AbstractContextManager, nullcontext
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
from lightning_gpt.models.fused_loss import IGNORED
from lightning_gpt.models.memory.base import Memory
from lightning_gpt.training.compiling import CompiledBlocks
from lightning_gpt.training.metrics import BitsPerByte, MeanLoss
from lightning_gpt.training.mup import rescale
from lightning_gpt.training.optim import Optimization, optimizer, schedule
from lightning_gpt.training.recurrence import LaneStates
from lightning_gpt.training.schedules import Stage, accumulated_at, batch_stages

_MEMORY_KEY = "lightning_gpt_memory"
"""The entry of a checkpoint that holds what each lane remembers."""


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
        self.eval_bits = BitsPerByte()
        self._cursor: dict[str, Any] | None = None
        self._stages: tuple[Stage, ...] = ()
        self._compiled = CompiledBlocks(model) if compile_blocks else None
        remembering = model if isinstance(model, GPT) and isinstance(model.memory, Memory) else None
        if remembering and compile_blocks:
            raise CallError("compile_blocks does not go with memory: leave one of them out")
        self._lanes = LaneStates(remembering) if remembering else None
        self._eval_lanes = LaneStates(remembering) if remembering else None
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
        micro_batch = self._micro_batch(len(batch["ids"]))
        with self._going_on(self._lanes, batch, micro_batch), self._compiled_blocks():
            return self.model.loss(batch["ids"], batch["targets"], batch.get("documents"), z_loss=z_loss)

    def _compiled_blocks(self) -> AbstractContextManager[None]:
        return nullcontext() if self._compiled is None else self._compiled.training()

    def _micro_batch(self, rows: int) -> int:
        """Which of the optimizer step's micro-batches was just drawn, where rows are lanes; 0 where they are not."""
        assert self._cursor is not None
        if "lanes" not in self._cursor:
            return 0
        of_all = rows * self.trainer.world_size
        return int((self._cursor["rows"] - of_all) % len(self._cursor["lanes"]) // of_all)

    def _going_on(
        self, lanes: LaneStates | None, batch: Batch, micro_batch: int = 0, row: int | None = None
    ) -> AbstractContextManager[None]:
        """Inside, the model goes on from what the batch's lanes remember; one ``row`` alone leaves that as it was."""
        if lanes is None or "starts" not in batch:
            return nullcontext()
        state = lanes.of(batch, micro_batch)
        return lanes.memory.carried(state if row is None else state.row(row))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step itself; then the rows of this step, and no earlier, count as trained on."""
        super().optimizer_step(*args, **kwargs)
        data = self._text
        if data is not None and self._cursor is not None:
            data.trained_on(self._cursor)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the validation loss."""
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the test loss."""
        self._evaluate(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Negative log-likelihood in nats and most likely token at each position, ``(rows, block_size)`` both."""
        predicted = self._predicted(batch)  # before the lanes go on
        return {"targets": batch["targets"], "nll": self._nll(batch), "predicted": predicted}

    def _predicted(self, batch: Batch) -> Tensor:
        """The likeliest token at each position, a row at a time: logits of a whole batch can be large."""
        likeliest, documents = [], batch.get("documents")
        for row in range(len(batch["ids"])):
            one = slice(row, row + 1)
            with self._going_on(self._eval_lanes, batch, row=row):
                logits = self.model(batch["ids"][one], None if documents is None else documents[one])
            likeliest.append(logits.argmax(dim=-1))
        return torch.cat(likeliest)

    def _nll(self, batch: Batch) -> Tensor:
        with self._going_on(self._eval_lanes, batch):
            return self.model.token_nll(batch["ids"], batch["targets"], batch.get("documents"))

    def _evaluate(self, batch: Batch) -> None:
        nll = self._nll(batch)
        counted = batch["targets"] != IGNORED
        self.eval_loss.update(nll, counted)
        data = self._text
        if data is not None:
            lengths = torch.from_numpy(data.tokenizer.byte_lengths).to(nll.device)
            self.eval_bits.update(nll, lengths[batch["targets"].clamp(min=0)] * counted)

    @property
    def _text(self) -> TextData | None:
        """The data, where a trainer runs this module over text; its tokens are of so many bytes each."""
        data = None if self._trainer is None else self._trainer.datamodule  # type: ignore[attr-defined]
        return data if isinstance(data, TextData) else None

    def _forget(self) -> None:
        if self._eval_lanes is not None:
            self._eval_lanes.clear()

    def on_validation_epoch_start(self) -> None:
        """Evaluation begins with nothing remembered, and leaves what training remembers alone."""
        self._forget()

    def on_test_epoch_start(self) -> None:
        """As validation."""
        self._forget()

    def on_predict_epoch_start(self) -> None:
        """As validation."""
        self._forget()

    def on_validation_epoch_end(self) -> None:
        """Log ``val/loss``, ``val/perplexity`` and, of text, ``val/bits_per_byte`` over the optimizer step."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the same of the test split."""
        self._log_evaluation("test")

    def _log_evaluation(self, split: str) -> None:
        loss = self.eval_loss.compute().float()
        self.eval_loss.reset()
        values = {f"{split}/loss": loss, f"{split}/perplexity": loss.exp()}
        if self._text is not None:
            values[f"{split}/bits_per_byte"] = self.eval_bits.compute().float()
        self.eval_bits.reset()
        # the value is the same on every process already; Lightning wants to be told so
        self.log_dict(values, logger=False, sync_dist=True)
        for logger in [] if self.trainer.sanity_checking else self.loggers:
            logger.log_metrics({key: float(value) for key, value in values.items()}, step=self.trainer.global_step)

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

    def on_fit_start(self) -> None:
        """Refuse data that a memory has nothing of, and lanes whose number changes."""
        data = self._text
        if data is None:
            return
        if data.packing == "lanes" and self.optimization.batch_warmup:
            raise CallError(
                "packing lanes has as many lanes as a step has rows, and batch_warmup changes that: use one"
            )
        if self._lanes is not None and data.separate_documents:
            raise CallError("memory goes on within a document, so set data.packing lanes instead of separate_documents")
        if self._lanes is not None and data.packing != "lanes" and self._lanes.memory.segment == data.block_size:
            raise CallError(
                f"memory goes from row to row only where data.packing is lanes, and it is {data.packing}: set that, or "
                f"a memory segment below block_size, {data.block_size}, to remember within a row"
            )

    def on_train_start(self) -> None:
        """Refuse to validate in the middle of an accumulated step: its checkpoint could not be resumed exactly."""
        every, accumulate = self.trainer.val_check_batch, self.trainer.accumulate_grad_batches
        if isinstance(every, int) and every % accumulate:
            raise CallError(
                f"validation every {every} micro-batches falls inside an optimizer step of {accumulate}: "
                f"set --trainer.val_check_interval to a multiple of accumulate_grad_batches"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember what each lane did; count micro-batches in this run's size, where that has changed."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, TextData) and self._lanes is not None and self.trainer.state.fn == "fit":
            states, micro_batches = checkpoint.get(_MEMORY_KEY, {}), self.trainer.accumulate_grad_batches
            if all(len(tensor) == data.micro_batch_rows * micro_batches for tensor in states.values()):
                self._lanes.load(states, micro_batches, self.global_rank, self.trainer.world_size)
        if not isinstance(data, TextData) or TextData.__qualname__ not in checkpoint or "loops" not in checkpoint:
            return
        was, now = checkpoint[TextData.__qualname__].get("micro_batch_rows"), data.micro_batch_rows
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]) if was else ():
            for stage in counts:
                counts[stage] = counts[stage] * was // now

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which model the weights are of, so that :func:`lightning_gpt.load` can rebuild it; keep its memory."""
        checkpoint[MODEL_KEY] = self.model.describe()
        if self._lanes is not None:
            checkpoint[_MEMORY_KEY] = self._lanes.all(self._of_all_processes)

    def _of_all_processes(self, tensor: Tensor) -> Tensor:
        """``(processes, ...)``; Lightning adds no dimension where there is one process."""
        gathered = self.all_gather(tensor)
        assert isinstance(gathered, Tensor)
        return gathered if self.trainer.world_size > 1 else gathered[None]


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
