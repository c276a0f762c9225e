"""Starting a deeper model from a trained one."""

from lightning_gpt.models import GPT
from lightning_gpt.models.from_trained.growth import grow
from lightning_gpt.training.callbacks.trained_start import TrainedStart


class Grow(TrainedStart):
    """Gives the model the blocks of a trained shallower one before the first step; those above add nothing yet.

    The function is preserved, so the run starts from the trained model's loss; the sources are in
    :func:`~lightning_gpt.models.from_trained.growth.grow`. The model may differ in ``n_layer`` only. A resumed run is
    not grown again.

    Args:
        checkpoint: The shallower model's checkpoint; nothing is grown where None.
    """

    done = "grown"

    def __init__(self, checkpoint: str | None = None) -> None:
        super().__init__(checkpoint)

    def fill(self, trained: GPT, model: GPT) -> None:
        """Blocks below as trained, those above as the identity."""
        grow(trained, model)
