"""Starting a run from the weights of another trained model."""

from abc import ABC, abstractmethod

import lightning as L
from lightning.pytorch.callbacks import Callback

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.console import say
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT
from lightning_gpt.training.module import LanguageModule


class TrainedStart(Callback, ABC):
    """Fills the model from a checkpoint before the first step; a resumed run is not filled again.

    Args:
        checkpoint: The trained model's checkpoint; None does nothing.
    """

    done: str
    """The participle for messages, such as ``grown``."""

    def __init__(self, checkpoint: str | None = None) -> None:
        self.checkpoint = checkpoint

    @abstractmethod
    def fill(self, trained: GPT, model: GPT) -> None:
        """Fill the weights of ``model`` from ``trained``."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.checkpoint is None or stage != "fit" or trainer.ckpt_path is not None:
            return
        checkpoint, data = Checkpoint.read(self.checkpoint), trainer.datamodule  # type: ignore[attr-defined]
        trained = checkpoint.build()
        model = pl_module.model if isinstance(pl_module, LanguageModule) else pl_module
        if not isinstance(trained, GPT) or not isinstance(model, GPT):
            raise CallError(
                f"a GPT can be {self.done} from a GPT, not a {type(model).__name__} from a {type(trained).__name__}"
            )
        if isinstance(data, TextData) and checkpoint.tokenizer().fingerprint != data.tokenizer.fingerprint:
            raise CallError(f"checkpoint {self.checkpoint!r} was trained with a different tokenizer than this run uses")
        self.fill(trained, model)
        say(f"{self.done} from {self.checkpoint}")
