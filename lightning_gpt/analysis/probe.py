"""One pass over a few tokens that records what the layer diagnostics need, and the parameters of each block.

Layers are counted in two ways. In the *stream*, layer 0 is the embedding and layer i is the output of block i − 1, so
there are ``n_layer + 1``. In the *blocks* (attention, weights), layer i is block i. The one-head model has one block.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lightning_gpt.analysis.induction import PERIOD, PatternScores, longest_period, repeated_tokens
from lightning_gpt.analysis.logit_lens import stream_names, streams_of
from lightning_gpt.analysis.patterns import by_head
from lightning_gpt.analysis.spectral import small_value_projection, value_projection_eigenvalues
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.evaluating import evaluating


@dataclass(frozen=True)
class Probe:
    """What one pass over the probe tokens recorded, in fp32 on the CPU.

    Args:
        model: The model that ran.
        targets: ``(batch, time)``, the target ids.
        streams: ``(n_layer + 1, batch, time, dim)``, the residual stream from the embedding to the last block; of
            several copies, their sum, which is what the final norm would read.
        patterns: Each block's attention ``(batch, n_head, time, keys)``; None for a block without softmax attention.
        ids: ``(batch, time)``, the token ids that were read; None for a probe put together by hand.
        documents: Each token's document; None where rows are read whole.
    """

    model: LanguageModel
    targets: Tensor
    streams: Tensor
    patterns: list[Tensor | None]
    ids: Tensor | None = None
    documents: Tensor | None = None

    @classmethod
    def take(cls, model: LanguageModel, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> "Probe":
        """Run ``model`` over ``ids`` ``(batch, time)`` on its device, without dropout or mixed precision."""
        names, device = stream_names(model), ids.device.type
        try:
            with evaluating(model), torch.autocast(device, enabled=False), model.record([*names, "*pattern"]) as trace:
                model.hidden(ids, documents)
        except KeyError:
            if any(name not in trace for name in names):
                raise  # otherwise only the patterns are missing: no block has softmax attention
        streams = torch.stack([stream.float().cpu() for stream in streams_of(model, trace)])
        patterns = [trace.get(f"{view.mixer_name}.pattern") for view in model.block_views()]
        by_heads = [p if p is None else by_head(p.float().cpu()) for p in patterns]
        return cls(model, targets, streams, by_heads, ids, documents)

    @cached_property
    def value_projections(self) -> list[Tensor | None]:
        """``W_O W_V`` of each block, ``(n_head, head_dim, head_dim)``; None for a block without these projections.

        With the residual rule's factor of what the block adds; None where that depends on the token.

        Computed on first access, from the weights at that time.
        """
        found: list[Tensor | None] = []
        for view in self.model.block_views():
            weights = view.mixer.value_output()
            output = None if weights is None else view.written(weights[1])
            if weights is None or output is None:
                found.append(None)
            else:
                found.append(small_value_projection(weights[0].detach().cpu(), output.detach().cpu()))
        return found

    @cached_property
    def value_spectra(self) -> list[Tensor | None]:
        """Eigenvalues of ``W_V W_O`` of each block, ``(n_head, head_dim)``; None for a block without these projections.

        Those of :attr:`value_projections`.
        """
        return [None if each is None else value_projection_eigenvalues(each) for each in self.value_projections]

    @cached_property
    def head_scores(self) -> PatternScores | None:
        """Scores of the heads on repeated random tokens; None for a model that reads fewer than four tokens.

        Computed on first access, by a pass of its own over at most 128 tokens, the same at each probe.
        """
        period = min(PERIOD // 2, longest_period(self.model))
        if period < 2:
            return None
        ids = repeated_tokens(self.model.config.vocab_size, 2, period).to(self.targets.device)
        with torch.autocast(ids.device.type, enabled=False):
            return PatternScores.of(self.model, ids, period)


def block_parameters(model: LanguageModel) -> list[list[nn.Parameter]]:
    """The trainable parameters of each block, without the embeddings, final norm and output head."""
    views = model.block_views()
    return [[p for part in view.parts for p in part.parameters() if p.requires_grad] for view in views]
