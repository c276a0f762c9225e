"""Saving and loading a model in a layout: each process writes and reads the parts that it holds."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_gpt.checkpoint_folder import Saved, without_tensors
from lightning_gpt.errors import WorkError
from lightning_gpt.parallel import state
from lightning_gpt.parallel.collectives import Group
from lightning_gpt.parallel.norms import local
from lightning_gpt.parallel.packed import Pieces
from lightning_gpt.parallel.whole import whole_name
from lightning_gpt.saving import BackgroundSaves, first_non_finite
from lightning_gpt.whole_file import make_room, previous_of


class LayoutCheckpoints:
    """Writes and reads checkpoints with all processes of a layout, each of which calls every method.

    A module's tensors have their names in the layout; ``pieces`` says which of them one process has as one.
    """

    def __init__(self) -> None:
        self.saves = BackgroundSaves(background=False)
        """Writes the checkpoints."""
        self._meeting: Group | None = None  # where processes agree over the CPU, also while they train
        self._saved: Saved | None = None  # what is being loaded

    def meet(self) -> None:
        """Make the group in which the processes agree."""
        self._meeting = cast(Group, dist.new_group(backend="gloo"))

    def save(self, content: Mapping[str, Any], path: Path, module: nn.Module, pieces: Pieces) -> None:
        """Write a folder.

        Args:
            content: What Lightning has put together in this process.
            path: The folder.
            module: The module whose weights are in ``content``.
            pieces: As the class says.

        Raises:
            WorkError: It cannot be written, or a weight in it is not finite; what was saved before is kept as it was.
        """
        self.saves.wait()  # the processes of that save meet in the same group
        for part in ("state_dict", "current_model_state"):
            weights = {name: local(each) for name, each in content.get(part, {}).items()}
            name = next((each for each in self._of_all(first_non_finite(weights)) if each is not None), None)
            if name is not None:
                raise WorkError(
                    f"the weights of step {content.get('global_step')} are not finite ({name}): they are not saved in "
                    f"{path}"
                )
        boxes = state.boxes_of(content, state.origins_of(module.state_dict(), pieces))
        self.saves.write(partial(self._write, path), (boxes, without_tensors(content)))

    def _of_all(self, own: str | None) -> list[str | None]:
        found: list[str | None] = [None] * dist.get_world_size(self._meeting)
        dist.all_gather_object(found, own, self._meeting)
        return found

    def _write(self, path: Path, given: tuple[Mapping[str, state.Boxes], Mapping[str, Any]]) -> None:
        if dist.get_rank(self._meeting) == 0 and path.is_file():  # of one process; it stays as the one before
            path.replace(make_room(previous_of(path)))
        state.save(*given, path, self._meeting)

    def open(self, path: str | Path) -> dict[str, Any]:
        """A checkpoint without its tensors, which the other methods then read from its files.

        Raises:
            CallError: It is missing, unreadable, truncated, corrupt, or not a checkpoint.
        """
        self._saved = Saved(path)
        return without_tensors(self._saved.content)

    @property
    def is_open(self) -> bool:
        """Whether a checkpoint is being loaded."""
        return self._saved is not None

    def load_weights(self, module: nn.Module, pieces: Pieces, part: str) -> None:
        """Read the parts of a module's weights that this process holds.

        Args:
            module: The module, which is laid out.
            pieces: As the class says.
            part: The entry of the checkpoint that they are in.

        Raises:
            CallError: They are not those of this model.
        """
        assert self._saved is not None
        weights = module.state_dict()
        boxes = state.boxes_of({part: weights}, state.origins_of(weights, pieces))
        state.load(self._saved, boxes, self._meeting)

    def load_optimizers(self, optimizers: Iterable[torch.optim.Optimizer], module: nn.Module, pieces: Pieces) -> None:
        """Read the parts of the optimizers' state that this process holds.

        Args:
            optimizers: Those of the module's parameters, which :func:`~lightning_gpt.training.named_states.name_states`
                has named.
            module: The module, which is laid out.
            pieces: As the class says.

        Raises:
            CallError: The state is not that of these weights.
        """
        assert self._saved is not None
        names: dict[Tensor, str] = {each: whole_name(name, pieces) for name, each in module.named_parameters()}
        origins = state.origins_of(module.state_dict(), pieces)
        for optimizer in optimizers:
            state.materialise(optimizer, names, self._saved)
            states = {"optimizer_states": [optimizer.state_dict()]}
            state.load(self._saved, state.boxes_of(states, origins), self._meeting)

    def close(self) -> None:
        """Let go of the checkpoint that was loaded: its files keep their space on the disk while they are open."""
        self._saved = None
