"""Starting a mixture of experts from a trained dense model."""

import lightning as L
from lightning.pytorch.callbacks import Callback

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.console import say
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT
from lightning_gpt.models.upcycling import upcycle
from lightning_gpt.training.module import LanguageModule


class Upcycle(Callback):
    """Gives the model the weights of a dense one before the first step; every expert starts as its network.

    Komatsuzaki et al. 2022 (2212.05055): the function is preserved. The model must be the dense one but for its
    ``ffn``, whose experts are of the dense network's kind and ``hidden`` width. A resumed run is not upcycled again.

    Args:
        checkpoint: The dense model's checkpoint; nothing is upcycled where None.
    """

    def __init__(self, checkpoint: str | None = None) -> None:
        self.checkpoint = checkpoint

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.checkpoint is None or stage != "fit" or trainer.ckpt_path is not None:
            return
        checkpoint, data = Checkpoint.read(self.checkpoint), trainer.datamodule  # type: ignore[attr-defined]
        dense = checkpoint.build()
        model = pl_module.model if isinstance(pl_module, LanguageModule) else pl_module
        if not isinstance(dense, GPT) or not isinstance(model, GPT):
            raise CallError(
                f"upcycling is of a GPT to a GPT, not of a {type(dense).__name__} to {type(model).__name__}"
            )
        if isinstance(data, TextData) and checkpoint.tokenizer().fingerprint != data.tokenizer.fingerprint:
            raise CallError(f"checkpoint {self.checkpoint!r} was trained with another tokenizer than this run has")
        upcycle(dense, model)
        say(f"upcycled from {self.checkpoint}")
