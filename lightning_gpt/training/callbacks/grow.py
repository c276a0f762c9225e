"""Starting a deeper model from a trained one."""

from lightning_gpt.models import GPT
from lightning_gpt.models.from_trained.growth import grow
from lightning_gpt.options import check_options
from lightning_gpt.training.callbacks.trained_start import TrainedStart


class Grow(TrainedStart):
    """Copies the blocks of a trained shallower model before the first step; the blocks above them add nothing yet.

    The function is preserved, so the run starts at the trained model's loss. The models may differ in ``n_layer``
    and in options that no weight depends on.
    :func:`~lightning_gpt.models.from_trained.growth.grow` gives the sources. A resumed run is not grown again.

    Args:
        checkpoint: The shallower model's checkpoint; None grows nothing.
    """

    done = "grown"

    def __init__(self, checkpoint: str | None = None) -> None:
        check_options(Grow.__init__, locals(), "grow.")
        super().__init__(checkpoint)

    def fill(self, trained: GPT, model: GPT) -> None:
        """Copy the trained blocks; make those above them the identity."""
        grow(trained, model)
