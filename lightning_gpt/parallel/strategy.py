"""The Lightning strategy of a layout: it makes the mesh, lays the model out, and says which rows a process reads."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_gpt.checkpoint_folder import Saved, without_tensors
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.models import GPT, LanguageModel
from lightning_gpt.models.base import models
from lightning_gpt.models.head import IGNORED
from lightning_gpt.parallel import state
from lightning_gpt.parallel.collectives import Group
from lightning_gpt.parallel.layout import Axis, Layout
from lightning_gpt.parallel.mesh import Mesh
from lightning_gpt.parallel.packed import Pieces, keep_scalars_as_vectors
from lightning_gpt.parallel.shard import reshard, send_from_first, shard
from lightning_gpt.parallel.tensor import divide
from lightning_gpt.parallel.whole import WholeOptimizer, local_part, whole_name, whole_state
from lightning_gpt.saving import BackgroundSaves, first_non_finite
from lightning_gpt.whole_file import make_room, previous_of


def strategy_for(layout: Layout, strategy: object, precision: str) -> "MeshStrategy":
    """The strategy of a layout that a config asks for.

    Args:
        layout: Its ``parallel`` section.
        strategy: The Trainer's flag.
        precision: The Trainer's flag.

    Raises:
        CallError: The Trainer's flags do not go with a layout.
    """
    if strategy != "auto":
        raise CallError(
            f"trainer.strategy {strategy} and parallel ({layout.described()}) cannot be combined: leave strategy out"
        )
    if precision == "16-mixed":
        raise CallError(
            f"trainer.precision 16-mixed and parallel ({layout.described()}) cannot be combined: its gradient scaler "
            f"works within one process; use bf16-mixed or 32-true"
        )
    return MeshStrategy(layout)


def lay_out(model: LanguageModel, mesh: Mesh) -> Pieces:
    """Spread a model that is whole in every process over a mesh, in place.

    Args:
        model: The model, which :func:`~lightning_gpt.parallel.suited.require_suited` accepts.
        mesh: The mesh.

    Returns:
        The parameters kept in another form, by name.
    """
    pieces = dict(keep_scalars_as_vectors(model))
    if mesh.size("tensor") > 1:
        assert isinstance(model, GPT)
        pieces |= divide(model, mesh.axis("tensor"), mesh.layout.sequence)
    shard(model, mesh)
    return pieces


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
        self.saves = BackgroundSaves(background=False)
        """Writes the checkpoints."""
        self._mesh: Mesh | None = None
        self._tokens: Group | None = None
        self._meeting: Group | None = None  # where processes agree on a save while they train
        self._is_laid_out = False
        self._saved: Saved | None = None  # what is being loaded
        self.pieces: Pieces = {}
        """The pieces that fused parameters of the model were taken apart into, by their names in the model."""

    def meet(self, devices: int) -> None:
        """Fill in the layout's sizes for a number of devices.

        Raises:
            CallError: The sizes do not go with it, or the layout asks for what the devices lack.
        """
        self.layout = self.layout.on(devices)
        if self.layout.offload and self.root_device.type == "cpu":
            raise CallError("parallel.offload keeps the shards in the CPU's memory, where they are: leave it out")

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
    def data_rank(self) -> int:
        """Which share of the rows this process reads."""
        return self.layout.data_rank(self.global_rank)

    @property
    def data_size(self) -> int:
        """How many shares of the rows there are."""
        return self.layout.data_size

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.data_size, "rank": self.data_rank}

    def setup_environment(self) -> None:
        """Let the processes meet, and make the mesh."""
        super().setup_environment()
        self._mesh = Mesh(self.layout, self.root_device.type)
        self._tokens = self._mesh.several(_TOKEN_AXES, "tokens").get_group()
        self._meeting = cast(Group, dist.new_group(backend="gloo"))

    def setup(self, trainer: L.Trainer) -> None:
        """Lay the model out, with the weights of the first process, and make its optimizer."""
        assert self.accelerator is not None
        assert self.model is not None
        # gathering a matrix that two axes divide takes two exchanges, of which torch warns
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        trains = trainer.state.fn == TrainerFn.FITTING
        if trains:
            self.setup_optimizers(trainer)
        whole_optimizers = [WholeOptimizer(self.model, optimizer) for optimizer in self.optimizers if trains]
        send_from_first(self.language_model, self.mesh)
        self.pieces = self.lay_out(self.language_model)
        self.model_to_device()
        self._is_laid_out = True
        if self._saved is not None:
            self._load_weights(self._saved)
        for whole in whole_optimizers:
            whole.follow(self.model, self._pieces_of_module)
        self.setup_precision_plugin()
        if trains and not self.layout.offload:
            _optimizers_to_device(self.optimizers, self.root_device)

    def lay_out(self, model: LanguageModel) -> Pieces:
        """Spread a model that is whole in every process over the mesh, in place.

        Returns:
            The pieces that its fused parameters were taken apart into.
        """
        return lay_out(model, self.mesh)

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
        loss = super().training_step(*args, **kwargs)
        assert isinstance(loss, Tensor)
        return self.over_all_tokens(loss, (args[0]["targets"] != IGNORED).sum())

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
        reshard(self.language_model)
        return output

    # ---- what the processes tell each other ----

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
        state = whole_state(self.language_model, self.pieces, keep=self.is_global_zero)
        if not self.is_global_zero:
            return None
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and replaced
            model = models.build(self.language_model.describe())
        model = cast(LanguageModel, self.precision_plugin.convert_module(model))
        model.load_state_dict(state)
        return model.to(self.root_device).eval()

    # ---- checkpoints: a folder, of which each process writes what it holds ----

    def whole_state(self) -> dict[str, Any]:
        """The weights as one process has them, in the first process; all must call it."""
        assert self.lightning_module is not None
        return whole_state(self.lightning_module, self._pieces_of_module, keep=self.is_global_zero)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a folder; all processes must call it.

        Raises:
            WorkError: It cannot be written, or a weight in it is not finite; what was saved before is kept as it was.
        """
        path = Path(self.broadcast(str(filepath)))
        name = first_non_finite({name: local_part(each) for name, each in checkpoint["state_dict"].items()})
        names: list[str | None] = [None] * self.world_size
        dist.all_gather_object(names, name, self._meeting)
        name = next((each for each in names if each is not None), None)
        if name is not None:
            raise WorkError(
                f"the weights of step {checkpoint.get('global_step')} are not finite ({name}): they are not saved in "
                f"{path}"
            )
        boxes = state.boxes_of(checkpoint, self._origins())
        self.saves.write(partial(self._write, path), (boxes, without_tensors(checkpoint)))

    def _write(self, path: Path, given: tuple[Mapping[str, state.Boxes], Mapping[str, Any]]) -> None:
        if self.is_global_zero and path.is_file():  # of a run in one process; it stays as the one before
            path.replace(make_room(previous_of(path)))
        state.save(*given, path, self._meeting)

    def _origins(self) -> dict[str, state.Origin]:
        assert self.lightning_module is not None
        return state.origins_of(self.lightning_module.state_dict(), self._pieces_of_module)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Everything but the tensors, which :meth:`load_model_state_dict` and the optimizer's reads from the files."""
        self._saved = Saved(checkpoint_path)
        return without_tensors(self._saved.content)

    def _source(self, checkpoint: Mapping[str, Any]) -> Saved:
        """Where the tensors of a checkpoint are: in the one that is being loaded, unless it holds them itself."""
        if checkpoint["state_dict"] or self._saved is None:
            return Saved.holding(checkpoint)
        return self._saved

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load weights that any layout has saved: once the model is laid out, so that each process reads its own.

        Raises:
            CallError: They are not those of this model.
        """
        if self._is_laid_out:
            self._load_weights(self._source(checkpoint))

    def _load_weights(self, saved: Saved) -> None:
        assert self.lightning_module is not None
        weights = {"state_dict": self.lightning_module.state_dict()}
        state.load(saved, state.boxes_of(weights, self._origins()), self._meeting)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the state of an optimizer that any layout has saved."""
        assert self.lightning_module is not None
        saved, pieces = self._source(checkpoint), self._pieces_of_module
        parameters = self.lightning_module.named_parameters()
        names: dict[Tensor, str] = {each: whole_name(name, pieces) for name, each in parameters}
        for optimizer in self.optimizers:
            state.materialise(optimizer, names, saved)
            states = {"optimizer_states": [self.optimizer_state(optimizer)]}
            state.load(saved, state.boxes_of(states, self._origins()), self._meeting)
        self._saved = None  # its files keep their space on the disk while they are open

    def teardown(self) -> None:
        """Wait for the last save."""
        self.saves.wait()
        super().teardown()
