"""Starting a mixture of experts from a trained dense model."""

from lightning_gpt.models import GPT
from lightning_gpt.models.from_trained.upcycling import upcycle
from lightning_gpt.training.callbacks.trained_start import TrainedStart


class Upcycle(TrainedStart):
    """Gives the model the weights of a dense one before the first step; every expert starts as its network.

    Komatsuzaki et al. 2022 (2212.05055): the function is preserved. The model must be the dense one but for its
    ``ffn``, whose experts are of the dense network's kind and ``hidden`` width. A resumed run is not upcycled again.

    Args:
        checkpoint: The dense model's checkpoint; nothing is upcycled where None.
    """

    done = "upcycled"

    def __init__(self, checkpoint: str | None = None) -> None:
        super().__init__(checkpoint)

    def fill(self, trained: GPT, model: GPT) -> None:
        """The dense network in the place of each expert."""
        upcycle(trained, model)
