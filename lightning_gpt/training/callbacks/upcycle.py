"""Starting a mixture of experts from a trained dense model."""

from lightning_gpt.models import GPT
from lightning_gpt.models.from_trained.upcycling import upcycle
from lightning_gpt.options import check_options
from lightning_gpt.training.callbacks.trained_start import TrainedStart


class Upcycle(TrainedStart):
    """Copies the weights of a trained dense model before the first step; every expert starts as its dense network.

    The function is preserved (Komatsuzaki et al. 2022, 2212.05055). The models may differ in ``ffn`` only, whose
    experts must have the dense network's kind and ``hidden`` width. A resumed run is not upcycled again.

    Args:
        checkpoint: The dense model's checkpoint; None upcycles nothing.
    """

    done = "upcycled"

    def __init__(self, checkpoint: str | None = None) -> None:
        check_options(Upcycle.__init__, locals(), "upcycle.")
        super().__init__(checkpoint)

    def fill(self, trained: GPT, model: GPT) -> None:
        """Copy the dense network into each expert."""
        upcycle(trained, model)
