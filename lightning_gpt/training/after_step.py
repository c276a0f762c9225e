"""What is done to the weights at the start of training and after each optimizer step."""

from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.training.mup import rescale
from lightning_gpt.training.optim import Optimization
from lightning_gpt.training.qk_clip import Largest, QKClip, require_clippable
from lightning_gpt.training.unit_weights import UnitWeights


def start(model: LanguageModel, optimization: Optimization) -> None:
    """Give fresh weights the scale that the options ask for.

    Raises:
        CallError: The model does not suit them.
    """
    if optimization.mup is not None:
        rescale(model, optimization.mup)
    if optimization.qk_clip is not None:
        require_clippable(model)
    if optimization.unit_weights:
        unit = UnitWeights(model)
        unit.apply()
        unit.require()


def needs_copies(optimization: Optimization) -> list[str]:
    """The options whose rules need the whole model on every device."""
    asked = {"qk_clip": optimization.qk_clip is not None, "unit_weights": optimization.unit_weights}
    return [option for option, is_set in asked.items() if is_set]


def refuse_spread(optimization: Optimization) -> None:
    """Refuse rules that cannot work where a layout gives each process a part of the model.

    Raises:
        CallError: There is such a rule.
    """
    for option in needs_copies(optimization):
        raise CallError(f"optimization.{option} and parallel cannot be combined: leave one of them out")


class AfterStep:
    """The rules that change the weights once an optimizer step was taken.

    Args:
        model: The model, on its device.
        optimization: The options.
        largest: The entrywise largest of a tensor over all processes.
        is_spread: Whether a layout gives each process a part of the model only.

    Raises:
        CallError: A rule cannot work in this layout.
    """

    def __init__(self, model: LanguageModel, optimization: Optimization, largest: Largest, is_spread: bool) -> None:
        tau = optimization.qk_clip
        if is_spread:
            refuse_spread(optimization)
        self._clip = None if tau is None else QKClip(model, tau, largest)
        self._unit = UnitWeights(model) if optimization.unit_weights else None
        if self._unit is not None:
            self._unit.require()  # the run may start from other weights than fresh ones

    def end_step(self, taken: bool) -> None:
        """Apply the rules.

        Args:
            taken: Whether the optimizer step changed the weights; if not, nothing else does.
        """
        if self._clip is not None:
            self._clip.end_step(taken)
        if self._unit is not None and taken:
            self._unit.apply()
