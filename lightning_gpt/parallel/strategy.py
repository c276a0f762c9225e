"""The Lightning strategy of a layout: it makes the mesh, lays the model out, and says which rows a process reads."""

import logging
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from lightning_gpt.models import LanguageModel
from lightning_gpt.models.base import models
from lightning_gpt.models.head import IGNORED
from lightning_gpt.parallel.checkpoints import LayoutCheckpoints
from lightning_gpt.parallel.collectives import Group
from lightning_gpt.parallel.laying_out import LaidOut, lay_out
from lightning_gpt.parallel.layout import AXES, DATA_AXES, Axis, Layout
from lightning_gpt.parallel.mesh import Mesh
from lightning_gpt.parallel.norms import gradients, total_norm
from lightning_gpt.parallel.packed import Pieces
from lightning_gpt.parallel.pipeline import Pipeline
from lightning_gpt.parallel.shard import reshard, send_from_first
from lightning_gpt.parallel.suited import require_device, require_flags, require_rows
from lightning_gpt.parallel.whole import WholeOptimizer, whole_state

T = TypeVar("T")


def strategy_for(layout: Layout, strategy: object, precision: str) -> "MeshStrategy":
    """The strategy of a layout that a config asks for.

    Args:
        layout: Its ``parallel`` section.
        strategy: The Trainer's flag.
        precision: The Trainer's flag.

    Raises:
        CallError: The Trainer's flags do not go with a layout.
    """
    require_flags(layout, strategy, precision)
    return MeshStrategy(layout)


def gradient_norm(strategy: object, parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of the gradients of all parameters, in whichever processes they are; all processes must call it.

    Args:
        strategy: The Trainer's strategy.
        parameters: Those that this process holds.
    """
    if isinstance(strategy, MeshStrategy):
        return strategy.gradient_norm(parameters)
    return total_norm(gradients(parameters))


_TOKEN_AXES: tuple[Axis, ...] = ("data", "shard", "expert", "context")
"""Processes that differ in one of these see different tokens; all others see the same."""


class MeshStrategy(DDPStrategy):
    """Trains a language model in a layout.

    It starts its processes and lets them meet as Lightning's strategy for data parallelism does, and replaces the rest:
    the mesh has an axis for each kind of parallelism, and processes that share a model's matrices read the same rows.
    The loss of a step is normalised by the tokens of all processes, and every process reports that same loss.
    (Lightning's ``ModelParallelStrategy`` has two fixed axes, refuses float64 and gives every process its own rows.)

    Args:
        layout: The sizes of the axes.
        **options: Those of Lightning's strategy, such as ``timeout``.
    """

    def __init__(self, layout: Layout, **options: Any) -> None:
        super().__init__(**options)
        self.layout = layout
        self._checkpoints = LayoutCheckpoints()
        self.saves = self._checkpoints.saves
        """Writes the checkpoints."""
        self._mesh: Mesh | None = None
        self._tokens: Group | None = None
        self._whole_optimizers: list[WholeOptimizer] = []
        self._spread: LaidOut | None = None

    def meet(self, devices: int) -> None:
        """Fill in the layout's sizes for a number of devices.

        Raises:
            CallError: The sizes do not go with it, or the layout asks for what the devices lack.
        """
        self.layout = self.layout.on(devices)
        require_device(self.layout, self.root_device.type)

    @property
    def mesh(self) -> Mesh:
        """The mesh; it exists once the processes have met."""
        assert self._mesh is not None, "the processes have not met yet"
        return self._mesh

    @property
    def language_model(self) -> LanguageModel:
        """The model that is laid out."""
        assert self.lightning_module is not None
        model = self.lightning_module.model
        assert isinstance(model, LanguageModel)
        return model

    @property
    def is_first_of_share(self) -> bool:
        """Whether this process is the first of those that read the same rows, so that it speaks for them."""
        place = self.layout.coordinates(self.global_rank)
        return not any(place[axis] for axis in AXES if axis not in DATA_AXES)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Which share of the rows this process reads, and how many shares there are."""
        return {"num_replicas": self.layout.data_size, "rank": self.layout.data_rank(self.global_rank)}

    def setup_environment(self) -> None:
        """Let the processes meet, and make the mesh."""
        super().setup_environment()
        self._mesh = Mesh(self.layout, self.root_device.type)
        self._tokens = self._mesh.several(_TOKEN_AXES, "tokens").get_group()
        self._checkpoints.meet()

    def setup(self, trainer: L.Trainer) -> None:
        """Lay the model out, with the weights of the first process, and make its optimizer."""
        assert self.accelerator is not None
        assert self.model is not None
        # gathering a matrix that two axes divide takes two exchanges, of which torch warns
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", message=".*FSDP2-wrapped module .* returned a view tensor.*")  # only read
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        trains = trainer.state.fn == TrainerFn.FITTING
        if trains:
            self.setup_optimizers(trainer)
            self._whole_optimizers = [WholeOptimizer(self.model, optimizer) for optimizer in self.optimizers]
        predicts = trainer.state.fn == TrainerFn.PREDICTING
        require_rows(self.layout, getattr(trainer.datamodule, "batch_size", None), predicts)  # type: ignore[attr-defined]
        send_from_first(self.language_model, self.mesh)
        self._spread = lay_out(self.language_model, self.mesh)
        self.model_to_device()
        if self._checkpoints.is_open:
            assert self.lightning_module is not None
            self.load_weights(self.lightning_module)
        if not trains:
            self._checkpoints.close()
        for whole in self._whole_optimizers:
            whole.follow(self.model, self._pieces_of_module)
        self.setup_precision_plugin()
        if trains and not self.layout.offload:
            _optimizers_to_device(self.optimizers, self.root_device)

    def lay_out(self, model: LanguageModel) -> None:
        """Spread a copy of the model, which is whole in every process, as the model is."""
        lay_out(model, self.mesh)

    @property
    def is_laid_out(self) -> bool:
        """Whether the model is spread over the processes already."""
        return self._spread is not None

    @property
    def pieces(self) -> Pieces:
        """The pieces that fused parameters of the model were taken apart into, by their names in the model."""
        return {} if self._spread is None else self._spread.pieces

    @property
    def _pieces_of_module(self) -> Pieces:
        """The pieces by their names in the Lightning module, which holds the model as ``model``."""
        return {f"model.{name}": replace(each, fused=f"model.{each.fused}") for name, each in self.pieces.items()}

    def model_to_device(self) -> None:
        """Move everything but weights that wait in the memory of the CPU."""
        assert self.lightning_module is not None
        if self.layout.offload:
            for name, child in self.lightning_module.named_children():
                if name != "model":
                    child.to(self.root_device)
        else:
            self.lightning_module.to(self.root_device)

    # ---- passes ----

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The module's step; its value is the loss of all tokens of the micro-batch, in every process."""
        counted = (args[0]["targets"] != IGNORED).sum()
        if self._pipeline is not None:
            return self._pipelined_step(self._pipeline, counted, *args, **kwargs)
        loss = super().training_step(*args, **kwargs)
        assert isinstance(loss, Tensor)
        return self.over_all_tokens(loss, counted)

    def _pipelined_step(self, pipeline: Pipeline, counted: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The same, where the gradients are averaged before the loss has been returned."""
        assert self._tokens is not None
        tokens = counted.double()
        dist.all_reduce(tokens, group=self._tokens)
        pipeline.divides_by = tokens.clamp(min=1) / self._tokens.size()
        try:
            share = super().training_step(*args, **kwargs)
        finally:
            pipeline.divides_by = None
        assert isinstance(share, Tensor)
        loss = share.detach().clone()
        dist.all_reduce(loss, group=self._tokens)
        return loss / self._tokens.size() + (share - share.detach())

    def over_all_tokens(self, loss: Tensor, counted: Tensor) -> Tensor:
        """The mean over the tokens of all processes, with the gradient of this process's share of it.

        Sharding averages the gradients over the processes that see different tokens, so the share is multiplied by
        their number.

        Args:
            loss: The mean over this process's tokens.
            counted: How many those are.
        """
        assert self._tokens is not None
        own = counted.to(loss.dtype if loss.dtype == torch.float64 else torch.float32)
        sums = torch.stack([loss.detach().to(own.dtype) * own, own])
        dist.all_reduce(sums, group=self._tokens)
        total, tokens = sums[0], sums[1].clamp(min=1)
        share = loss * (own * self._tokens.size() / tokens).to(loss.dtype)
        return (total / tokens).to(loss.dtype) + (share - share.detach())

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's step, after which the weights are divided again."""
        return self._divided_again(super().validation_step(*args, **kwargs))

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's step, after which the weights are divided again."""
        return self._divided_again(super().test_step(*args, **kwargs))

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's step, after which the weights are divided again."""
        return self._divided_again(super().predict_step(*args, **kwargs))

    def _divided_again(self, output: Any) -> Any:
        assert self._spread is not None
        for root in self._spread.roots:
            reshard(root)
        return output

    # ---- what the processes tell each other ----

    @property
    def _pipeline(self) -> Pipeline | None:
        return None if self._spread is None else self._spread.pipeline

    @property
    def _stages(self) -> Group | None:
        """The processes that hold other layers of the same copy of the model, in the order of the pipeline."""
        return None if self._pipeline is None else self._pipeline.group

    def gradient_norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """The norm of the gradients of all processes' parameters, each counted once; all processes must call it."""
        if self._pipeline is None:
            return total_norm(gradients(parameters))
        elsewhere = self._pipeline.copies.counted_elsewhere()
        own = gradients(parameter for parameter in parameters if parameter not in elsewhere)
        return total_norm(own, [self._pipeline.group], self.root_device)

    def of_all_layers(self, figures: Mapping[int, T]) -> dict[int, T]:
        """Figures by layer, with those of the other stages; all processes must call it."""
        if self._stages is None:
            return dict(figures)
        found: list[Any] = [None] * self._stages.size()
        dist.all_gather_object(found, dict(figures), group=self._stages)
        return dict(sorted((layer, figure) for own in found for layer, figure in own.items()))

    @property
    def _is_first_of_stage(self) -> bool:
        """Whether this process gathers what its stage has, for the first stage; true of the first process."""
        return all(place == 0 for axis, place in self.mesh.place.items() if axis != "pipeline")

    def _of_all_stages(self, own: Mapping[str, T]) -> dict[str, T]:
        """What the stages have, joined in the first; nothing in the others. All processes must call it."""
        stages = self._stages
        if stages is None:
            return dict(own)
        found: list[Any] | None = [None] * stages.size() if stages.rank() == 0 else None
        dist.gather_object(dict(own), found, group=stages, group_dst=0)
        return {name: value for part in reversed(found or []) for name, value in part.items()}

    def _whole_state(self, module: nn.Module, pieces: Pieces) -> dict[str, Tensor]:
        return self._of_all_stages(whole_state(module, pieces, keep=self._is_first_of_stage))

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Reduce over the processes that see different tokens; those that see the same tokens hold equal values."""
        return super().reduce(tensor, self._tokens if group is None else group, reduce_op)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether all processes, or any, of the whole mesh decide so."""
        agreed = torch.tensor(int(decision), device=self.root_device)
        dist.all_reduce(agreed, dist.ReduceOp.MIN if all else dist.ReduceOp.MAX)
        return bool(agreed)

    def whole_model(self) -> LanguageModel | None:
        """A copy of the model as one process has it, to look at: in the first process; None in the others.

        All processes must call it. The copy needs the memory of a whole model.
        """
        state = self._whole_state(self.language_model, self.pieces)
        if not self.is_global_zero:
            return None
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and replaced
            model = models.build(self.language_model.describe())
        model = cast(LanguageModel, self.precision_plugin.convert_module(model))
        model.load_state_dict(state)
        return model.to(self.root_device).eval()

    # ---- checkpoints: a folder, of which each process writes what it holds ----

    def whole_state(self) -> dict[str, Tensor]:
        """The weights as one process has them, in the first process; all must call it."""
        assert self.lightning_module is not None
        return self._whole_state(self.lightning_module, self._pieces_of_module)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state of what this process holds; its groups are those that one process has."""
        bare = getattr(optimizer, "optimizer", optimizer)
        whole = next(each for each in self._whole_optimizers if each.optimizer is bare)
        state = super().optimizer_state(optimizer)
        return {**state, "param_groups": whole.named_as_whole(state["param_groups"])}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a folder; all processes must call it.

        Raises:
            WorkError: It cannot be written, or a weight in it is not finite; what was saved before is kept as it was.
        """
        assert self.lightning_module is not None
        path = Path(self.broadcast(str(filepath)))
        self._checkpoints.save(checkpoint, path, self.lightning_module, self._pieces_of_module)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Everything but the tensors, which the other methods read from the files."""
        return self._checkpoints.open(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the weights once the model is laid out, so that each process reads its own.

        Raises:
            CallError: They are not those of this model.
        """
        assert self.lightning_module is not None
        if self.is_laid_out:
            self.load_weights(self.lightning_module)

    def load_weights(self, module: nn.Module, part: str = "state_dict") -> None:
        """Load weights of the checkpoint that is being loaded; all processes must call it.

        Args:
            module: The Lightning module, or a copy of it in the same layout.
            part: The entry of the checkpoint that they are in.

        Raises:
            CallError: They are not those of this model.
        """
        self._checkpoints.load_weights(module, self._pieces_of_module, part)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the state of an optimizer that any layout has saved, and let go of the checkpoint."""
        assert self.lightning_module is not None
        self._checkpoints.load_optimizers(self.optimizers, self.lightning_module, self._pieces_of_module)
        self._checkpoints.close()

    def teardown(self) -> None:
        """Wait for the last save."""
        self.saves.wait()
        super().teardown()
