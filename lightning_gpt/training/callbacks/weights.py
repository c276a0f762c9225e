"""Starting a run from the weights of a checkpoint, all of them."""

import lightning as L
from lightning.pytorch.callbacks import Callback

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.console import say
from lightning_gpt.errors import CallError
from lightning_gpt.training.callbacks.trained_start import TrainedStart, require_same_tokenizer
from lightning_gpt.training.module import LanguageModule


class Weights(Callback):
    """Loads the weights of a checkpoint before the first step; a resumed run is not filled again.

    Nothing else comes with them: the optimizer is new, the schedule and the data begin at their start. The weights
    become what the run's precision makes of fp32, whatever they are stored in.

    Args:
        checkpoint: The checkpoint of the same model, of another run or converted.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint: Checkpoint | None = checkpoint

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Load them; refuse another model or tokenizer, and a second start.

        Raises:
            CallError: The run cannot start from them.
        """
        checkpoint, self._checkpoint = self._checkpoint, None  # its memory is not needed in training
        if checkpoint is None or stage != "fit" or trainer.ckpt_path is not None:
            return
        assert isinstance(pl_module, LanguageModule)
        others = (each for each in trainer.callbacks if isinstance(each, TrainedStart))  # type: ignore[attr-defined]
        for other in others:
            if other.checkpoint is not None:
                raise CallError(
                    f"weights and {type(other).__name__.lower()}.checkpoint both say what the run starts from: leave "
                    f"one of them out"
                )
        if checkpoint.has_tokenizer:
            require_same_tokenizer(checkpoint, trainer.datamodule)  # type: ignore[attr-defined]
        checkpoint.require_same_model(pl_module.model)
        pl_module.model.load_state_dict(checkpoint.weights(), strict=False)  # adapters, if any, start at nothing
        say(f"weights of {checkpoint.path}")
