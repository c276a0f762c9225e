"""Training a language model under Lightning."""

import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from lightning_gpt.checkpoint import LORA_KEY, MODEL_KEY
from lightning_gpt.console import say
from lightning_gpt.data.batches import Batch
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.mark import Mark
from lightning_gpt.data.share import data_place
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig, LanguageModel, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.adapters import LoRA, adapt
from lightning_gpt.models.graph import GRAPH_DEVICES
from lightning_gpt.models.materialise import outline
from lightning_gpt.models.memory.gpt import gpt_with
from lightning_gpt.models.one_pass import has_triton
from lightning_gpt.models.registry import Given
from lightning_gpt.models.rounding import ceiling
from lightning_gpt.parallel.norms import clip_norm, clip_value, gradients
from lightning_gpt.parallel.strategy import MeshStrategy, gradient_norm
from lightning_gpt.training import resumed
from lightning_gpt.training.after_step import AfterStep, start
from lightning_gpt.training.compiling import CompiledBlocks
from lightning_gpt.training.evaluation import EvaluatedModule
from lightning_gpt.training.expert_balance import ExpertBalance
from lightning_gpt.training.named_states import name_states
from lightning_gpt.training.optim import Optimization, optimizer, require_frozen, schedule
from lightning_gpt.training.recurrence import lane_states, micro_batch_of, remembering
from lightning_gpt.training.schedules import Stage, accumulated_at, batch_stages
from lightning_gpt.training.seeding import seed_generators
from lightning_gpt.training.step_graph import StepGraph

T = TypeVar("T")

_MEMORY_KEY = "lightning_gpt_memory"
"""The entry of a checkpoint that holds what each lane remembers."""


class LanguageModule(EvaluatedModule):
    """Trains a language model: loss, optimizer, schedule, balanced experts, exact resume.

    Everything that determines the trained weights is in this module and the Trainer's flags. A plain
    ``lightning.Trainer`` therefore trains the same model as ``lightning-gpt fit`` with the same flags; the callbacks
    that log and draw change nothing. The data may be any loader of batches with ``ids`` and ``targets``;
    :class:`~lightning_gpt.data.datamodule.TextData` adds the mark that makes a resumed run exact.

    Args:
        model: The bare model.
        optimization: How its weights are trained.
        compile_blocks: Whether training steps run each block through ``torch.compile``; None for where it is known to
            be faster, which is on a CUDA device.
        graph_steps: Whether a micro-batch's forward and backward pass are captured as a CUDA graph and replayed; None
            for small micro-batches on a CUDA device.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimization: Optimization,
        compile_blocks: bool | None = None,
        graph_steps: bool | None = None,
    ) -> None:
        super().__init__(model)
        self.optimization = optimization
        self.lora: LoRA | None = None
        """The adapters that are trained, and nothing else; None if all weights are."""
        self.experts: ExpertBalance | None = None
        """The balance of the model's mixtures of experts; None before fit."""
        self._after_step: AfterStep | None = None
        self._is_taken = True
        self._mark: Mark | None = None
        self._stages: tuple[Stage, ...] = ()
        self._group_options: list[dict[str, Any]] = []
        self._changes: list[str] = []
        self._accumulated = 1
        self._compiled = CompiledBlocks(model) if compile_blocks and isinstance(model, GPT) else None
        self._compile_blocks, self._graph_steps = compile_blocks, graph_steps
        self._graph: StepGraph | None = None
        self._lanes = lane_states(model)
        if self._lanes is not None and compile_blocks:
            raise CallError("compile_blocks and memory cannot be combined: leave one of them out")
        start(model, optimization)

    def setup(self, stage: str) -> None:
        """Remember the Trainer's number of accumulated micro-batches, which is another while the batch warms up."""
        self._accumulated = self.trainer.accumulate_grad_batches

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the batch in nats, plus the z-loss if there is one.

        Dropout, and every other random choice of the model, is a function of the seed (that of ``seed_everything``, or
        0), the share of the rows that the process reads, and the micro-batch's place in the run. The place is the
        number of rows trained on so far if the batch has a ``mark``, else the optimizer step and ``batch_idx``.

        Args:
            batch: ``ids`` and ``targets``, both ``(rows, block_size)``; ``documents``, ``starts`` and ``mark`` are
                optional, as :class:`~lightning_gpt.data.batches.Batch` describes them.
            batch_idx: Number of the micro-batch in its epoch.
        """
        loss = self.model.loss if self._graph is None else self._graph.loss
        with self._compiled_blocks():
            return self._loss_by(loss, batch, batch_idx)

    def rerun(self, batch: Batch, batch_idx: int, model: LanguageModel) -> Tensor:
        """What :meth:`training_step` returned, with the same random choices, by a whole copy of the model.

        Args:
            batch: As given to it.
            batch_idx: As given to it.
            model: The copy, which runs uncompiled and in this process alone.
        """
        return self._loss_by(model.loss, batch, batch_idx)

    def _loss_by(self, loss: Callable[..., Tensor], batch: Batch, batch_idx: int) -> Tensor:
        self._mark = batch.get("mark")
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        place = (self.global_step, batch_idx) if self._mark is None else (self._mark.rows,)
        seed_generators(hash((seed, *place, data_place(self._trainer)[0])), self.device)  # also without a Trainer
        with remembering(self._lanes, batch, self._micro_batch(batch, batch_idx)):
            return loss(batch["ids"], batch["targets"], batch.get("documents"), z_loss=self.optimization.z_loss)

    @property
    def compiles_blocks(self) -> bool:
        """Whether training steps run each block through ``torch.compile``."""
        return self._compiled is not None

    @property
    def is_spread(self) -> bool:
        """Whether each process has a part of the model only, so that looking at it takes all of them."""
        return isinstance(self.trainer.strategy, MeshStrategy)

    def of_all_layers(self, figures: Mapping[int, T]) -> dict[int, T]:
        """Figures by layer, with those of layers that other processes hold; all processes must call it."""
        strategy = self.trainer.strategy
        return strategy.of_all_layers(figures) if isinstance(strategy, MeshStrategy) else dict(figures)

    def whole_model(self) -> LanguageModel | None:
        """The model to look at, in the first process; None in the others. All processes must call it.

        It is the model itself, or a copy if each process has only a part of it.
        """
        strategy = self.trainer.strategy
        if isinstance(strategy, MeshStrategy):
            return strategy.whole_model()
        return self.model if self.trainer.is_global_zero else None

    def model_to_count(self) -> LanguageModel:
        """The model to count with, not to run: without weights if each process has only a part of them."""
        return outline(self.model) if self.is_spread else self.model

    def forget_non_finite(self) -> None:
        """Empty the memory of the lanes that hold a value that is not finite, after a step that was not taken."""
        if self._lanes is not None:
            self._lanes.drop_non_finite()

    def _micro_batch(self, batch: Batch, batch_idx: int) -> int:
        """The micro-batch's number within its optimizer step, which tells lanes apart."""
        if "starts" not in batch:
            return 0
        if self._mark is None:
            return batch_idx % self.trainer.accumulate_grad_batches
        return micro_batch_of(self._mark, len(batch["ids"]) * data_place(self.trainer)[1])

    def _compiled_blocks(self) -> AbstractContextManager[None]:
        return nullcontext() if self._compiled is None else self._compiled.training()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note whether a callback removed the gradients to skip this step."""
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        self._is_taken = any(parameter.grad is not None for parameter in parameters)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step, and what follows it where it was taken; only then do its rows count as trained on."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = None if scaler is None else scaler.get_scale()
        super().optimizer_step(*args, **kwargs)
        if scaler is not None and scaler.get_scale() < scale:  # it found an overflow and left the step out
            self._is_taken = False
        if self.experts is not None:
            self.experts.end_step(self._is_taken)
        if self._after_step is not None:
            self._after_step.end_step(self._is_taken)
        data = self.text
        if data is not None and self._mark is not None:
            data.trained_on(self._mark)

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule over the trainer's number of optimizer steps."""
        o, steps = self.optimization, self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise CallError(
                "the learning-rate schedule needs the number of training steps, which is unknown: "
                "set --trainer.max_steps (the data has no known length, or max_epochs is -1)"
            )
        if o.batch_warmup and self.trainer.max_epochs != -1:
            raise CallError(
                "optimization.batch_warmup changes the number of optimizer steps in an epoch: "
                "set --trainer.max_steps, and --trainer.max_epochs -1"
            )
        warmup_steps = ceiling(o.batch_warmup * steps)
        self._stages = batch_stages(self.trainer.accumulate_grad_batches, warmup_steps) if warmup_steps else ()
        fused = False if self.trainer.precision == "16-mixed" else None
        half = torch.bfloat16 if self.trainer.precision in ("bf16-mixed", "bf16-true") else None
        chosen = optimizer(self.model, o, fused, half)
        name_states(chosen, self.named_parameters)
        scheduled = schedule(chosen, o, int(steps))
        self._group_options = resumed.group_options(chosen)
        return {"optimizer": chosen, "lr_scheduler": {"scheduler": scheduled, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the number of micro-batches in the current optimizer step, while the batch warms up."""
        if self._stages:
            self.trainer.accumulate_grad_batches = accumulated_at(self._stages, self.trainer.global_step)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer's flags say.

        Lightning's own AMP plugin refuses to clip for any fused optimizer, because a GradScaler may need it to. Only
        fp16 has a GradScaler, and with fp16 the optimizer is not fused.
        """
        if gradient_clip_val and gradient_clip_algorithm == "value":
            clip_value(gradients(self.parameters()), gradient_clip_val)
        elif gradient_clip_val:
            norm = gradient_norm(self.trainer.strategy, self.parameters())
            clip_norm(gradients(self.parameters()), gradient_clip_val, norm)

    def on_fit_start(self) -> None:
        """Find the mixtures of experts; refuse data that the memory or the batch warm-up cannot work with."""
        self.experts = ExpertBalance(self.model, partial(self._over_all, by="sum"))
        self._speed_up()
        largest = partial(self._over_all, by="max")
        self._after_step = AfterStep(self.model, self.optimization, largest, self.is_spread)
        data = self.text
        if data is None:
            return
        if data.packing == "lanes" and self.optimization.batch_warmup:
            raise CallError(
                "data.packing lanes and batch_warmup cannot be combined: the number of lanes is the number of rows per "
                "optimizer step, which batch_warmup changes"
            )
        if self._lanes is not None:
            self._lanes.check(data)

    def _speed_up(self) -> None:
        """Compile blocks and capture steps where that is asked for, or known to be faster."""
        if self._compile_blocks is None and self.device.type in GRAPH_DEVICES and has_triton() and not self.is_spread:
            may = isinstance(self.model, GPT) and self._lanes is None
            self._compiled = CompiledBlocks(self.model) if may else None  # type: ignore[arg-type]
        obstacle = self._graph_obstacle()
        if obstacle is None and self._graph_steps is not False:
            self._graph = StepGraph(self.model)
        elif obstacle is not None and self._graph_steps:
            raise CallError(f"model.graph_steps is true, but {obstacle}: leave it out")

    def _graph_obstacle(self) -> str | None:
        """Why steps cannot be captured; None if they can."""
        if self.device.type not in GRAPH_DEVICES:
            return f"the run is on {self.device.type}, and a CUDA graph needs a CUDA device"
        if self.trainer.world_size > 1 or self.is_spread:
            return f"the run has {self.trainer.world_size} processes, and a graph holds no exchange between them"
        if not self.model.can_be_graphed:
            return "the model has parts whose work changes with the data (memory, experts, token_routing or layer_drop)"
        return None

    def _over_all(self, tensor: Tensor, by: str) -> Tensor:
        """The entrywise sum or largest of a tensor over all processes."""
        reduced = self.trainer.strategy.reduce(tensor, reduce_op=by)
        assert isinstance(reduced, Tensor)
        return reduced

    def on_train_start(self) -> None:
        """Apply the config's options to a resumed run, and refuse to validate inside an accumulated optimizer step.

        A checkpoint from inside a step could not be resumed exactly.
        """
        if self.trainer.ckpt_path is not None:
            scheduled = self.trainer.lr_scheduler_configs[0].scheduler
            assert isinstance(scheduled, LambdaLR)
            resumed.apply(self._group_options, self.trainer.optimizers[0], scheduled)
            say(resumed.place(self.trainer, self.device, self.text))
            if self._changes:
                say(f"resuming after step {self.global_step:,} with changed options: {', '.join(self._changes)}")
        every, accumulate = self.trainer.val_check_batch, self.trainer.accumulate_grad_batches
        at_epoch_end = every == self.trainer.num_training_batches  # where Lightning ends the step, full or not
        if self.trainer.enable_validation and isinstance(every, int) and every % accumulate and not at_epoch_end:
            raise CallError(
                f"validation every {every} micro-batches falls inside an optimizer step of {accumulate}: "
                f"set --trainer.val_check_interval to a multiple of accumulate_grad_batches"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare the optimization options and load the memory of each lane; adapt to another micro-batch size.

        Lightning counts micro-batches, so its counts are converted if their size has changed. It loads the weights
        before it converts the model to the run's precision; converted here, double precision loses no bit.
        """
        self.trainer.precision_plugin.convert_module(self)
        if self.trainer.state.fn == "fit" and resumed.OPTIMIZATION_KEY in checkpoint:
            self._changes = resumed.changes(checkpoint[resumed.OPTIMIZATION_KEY], self._recorded_optimization())
        data = self.text
        if data is None:
            return
        if self._lanes is not None and self.trainer.state.fn == "fit":
            states, micro_batches = checkpoint.get(_MEMORY_KEY, {}), self.trainer.accumulate_grad_batches
            if all(len(tensor) == data.micro_batch_rows * micro_batches for tensor in states.values()):
                self._lanes.load(states, micro_batches, *data_place(self.trainer))
        if TextData.__qualname__ not in checkpoint or "loops" not in checkpoint:
            return
        was, now = checkpoint[TextData.__qualname__].get("micro_batch_rows"), data.micro_batch_rows
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]) if was else ():
            for stage in counts:
                counts[stage] = counts[stage] * was // now

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the model's description, from which :func:`lightning_gpt.load` rebuilds it, its memory, and how it was
        trained."""
        checkpoint[MODEL_KEY] = self.model.describe()
        checkpoint[resumed.OPTIMIZATION_KEY] = self._recorded_optimization()
        if self.lora is not None:
            checkpoint[LORA_KEY] = self.lora.described()
        if self._lanes is not None:
            checkpoint[_MEMORY_KEY] = self._lanes.all(self._of_all_shares)

    def _recorded_optimization(self) -> dict[str, Any]:
        data = self.text
        rows = None if data is None else data.micro_batch_rows * self._accumulated
        return resumed.recorded(self.optimization, self.trainer, rows)

    def _of_all_shares(self, tensor: Tensor) -> Tensor:
        """``(shares, ...)``, from the first process that reads each share of the rows."""
        if self.trainer.world_size == 1:  # Lightning adds no dimension
            return tensor[None]
        gathered, ranks = self.all_gather(tensor), self.all_gather(torch.tensor(data_place(self.trainer)[0]))
        assert isinstance(gathered, Tensor)
        assert isinstance(ranks, Tensor)
        return gathered[[ranks.tolist().index(rank) for rank in range(data_place(self.trainer)[1])]]


class GPTModule(LanguageModule):
    """Trains the multi-block :class:`~lightning_gpt.models.gpt.GPT`.

    Args:
        optimization: How its weights are trained.
        compile_blocks: Whether training steps run each block through ``torch.compile``. It costs tens of seconds once,
            before the first step, and makes steps faster where they are limited by memory rather than by matrix
            products. By default it is done on CUDA devices, where that is so.
        graph_steps: Whether forward and backward passes of small micro-batches are captured once and replayed as a
            CUDA graph, so that the device does not wait for each kernel's launch. By default it is done on one CUDA
            device, for models whose work does not change with the data.
        memory: What is carried from one segment of a text to the next, for example ``{kind: segment, length: 128}``.
        lora: Trains low-rank adapters of the linear layers, for example ``{rank: 8}``, and leaves all weights as they
            are; they should be those of a trained model.
        **config: The fields of :class:`~lightning_gpt.models.config.GPTConfig`.
    """

    def __init__(
        self,
        optimization: Optimization = Optimization(),
        compile_blocks: bool | None = None,
        graph_steps: bool | None = None,
        memory: Given = None,
        lora: LoRA | None = None,
        **config: Any,
    ) -> None:
        model = gpt_with(memory, GPTConfig(**config))
        if lora is not None:
            require_frozen(optimization)
            adapt(model, lora)
        super().__init__(model, optimization, compile_blocks, graph_steps)
        self.lora = lora


class SingleHeadModule(LanguageModule):
    """Trains the one-head :class:`~lightning_gpt.models.single_head.SingleHeadModel`.

    Args:
        optimization: How its weights are trained.
        **config: The fields of :class:`~lightning_gpt.models.single_head.SingleHeadConfig`.
    """

    def __init__(self, optimization: Optimization = Optimization(), **config: Any) -> None:
        super().__init__(SingleHeadModel(SingleHeadConfig(**config)), optimization)
