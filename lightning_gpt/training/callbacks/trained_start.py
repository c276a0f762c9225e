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
        if isinstance(pl_module, LanguageModule) and pl_module.lora is not None:
            raise CallError(
                f"model.lora leaves the weights as they are, and a model that is {self.done} needs training: train it "
                f"without model.lora first, then give its checkpoint to --weights"
            )
        checkpoint, data = Checkpoint.read(self.checkpoint), trainer.datamodule  # type: ignore[attr-defined]
        trained = checkpoint.build()
        model = pl_module.model if isinstance(pl_module, LanguageModule) else pl_module
        if not isinstance(trained, GPT) or not isinstance(model, GPT):
            raise CallError(
                f"a GPT can be {self.done} from a GPT, not a {type(model).__name__} from a {type(trained).__name__}"
            )
        require_same_tokenizer(checkpoint, data)
        self.fill(trained, model)
        say(f"{self.done} from {self.checkpoint}")


def require_same_tokenizer(checkpoint: Checkpoint, data: object) -> None:
    """Refuse a trained model whose tokens are not those of the data.

    Args:
        checkpoint: The trained model.
        data: The run's data, set up; anything but a :class:`~lightning_gpt.data.datamodule.TextData` has none.

    Raises:
        CallError: They differ, or the checkpoint does not say which it has.
    """
    if isinstance(data, TextData) and checkpoint.tokenizer().fingerprint != data.tokenizer.fingerprint:
        raise CallError(
            f"checkpoint {str(checkpoint.path)!r} was trained with a different tokenizer than this run uses"
        )
