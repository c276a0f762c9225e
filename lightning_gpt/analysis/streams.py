"""The residual stream of a model over some tokens, layer by layer."""

import torch
from torch import Tensor

from lightning_gpt.analysis.logit_lens import stream_names, streams_of
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.evaluating import evaluating


def residual_streams(model: LanguageModel, ids: Tensor) -> Tensor:
    """The stream ``(n_layer + 1, batch, time, dim)`` over ``ids`` ``(batch, time)``, in the model's own precision.

    Layer 0 is the embedding, layer i the output of block i − 1; of several copies of the stream, their sum.
    """
    with evaluating(model), model.record(stream_names(model)) as trace:
        model.hidden(ids)
    return torch.stack(streams_of(model, trace))
