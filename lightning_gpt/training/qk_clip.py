"""QK-clip: heads whose scores have grown too large get smaller weights of queries and keys after the step."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, LanguageModel
from lightning_gpt.models.attention.formula import CausalAttention
from lightning_gpt.models.attention.largest_scores import LargestScores

Largest = Callable[[Tensor], Tensor]
"""The entrywise largest of a tensor over all processes; every process must call it."""


class QKClip:
    """After each step, head h's scores are multiplied by ``γ_h = min(1, τ / S_h)``, S_h its largest one in the step.

    Kimi Team 2025, "Kimi K2" (2507.20534), section 2.1 and algorithm 1. ``W_q`` and ``W_k`` of the head are multiplied
    by ``√γ_h``; where several heads share their keys, ``W_q`` alone by ``γ_h``, as the paper does with the key that all
    heads share. S_h is over all micro-batches of the step and all processes.

    Args:
        model: The model, on its device.
        threshold: τ.
        largest: Combines the processes.

    Raises:
        CallError: A layer of the model has no such weights.
    """

    def __init__(self, model: LanguageModel, threshold: float, largest: Largest) -> None:
        require_clippable(model)
        self.threshold, self._largest = threshold, largest
        mixers = dict.fromkeys(view.mixer for view in model.block_views())
        self._attentions = [mixer for mixer in mixers if isinstance(mixer, CausalAttention)]
        for attention in self._attentions:
            attention.largest_scores = LargestScores(attention.n_head, next(attention.parameters()))

    def end_step(self, taken: bool) -> None:
        """Clip by the scores of the step if it was taken, and forget them."""
        found = [each.largest_scores.take() for each in self._attentions if each.largest_scores is not None]
        if not taken:
            return
        every = self._largest(torch.cat(found))
        # a score that is not finite says nothing about the weights of its head
        factors = torch.where((every > self.threshold) & every.isfinite(), self.threshold / every, 1.0)
        parts = torch.split(factors, [len(scores) for scores in found])
        for attention, of_heads in zip(self._attentions, parts, strict=True):
            attention.scale_scores(of_heads)


def require_clippable(model: LanguageModel) -> None:
    """Refuse a model whose scores do not follow the weights of queries and keys.

    Raises:
        CallError: It is one.
    """
    if not isinstance(model, GPT):
        raise CallError(f"optimization.qk_clip is for a GPT; this model is a {model.name}")
    for view in model.block_views():
        if not view.mixer.can_scale_scores:
            raise CallError(
                f"optimization.qk_clip scales the weights of queries and keys, and the scores of "
                f"{type(view.mixer).__name__} in layer {view.layer} do not follow them (linear, latent and delta_net "
                f"attention, or a qk_norm): leave qk_clip out"
            )
