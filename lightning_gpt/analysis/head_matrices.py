"""The matrices of a head besides mask, scores and softmax: what goes in, queries, keys, values, and what comes out.

In the formulas of a single head: ``X``, ``N = norm(X)``, ``Q = N W_Q``, ``K = N W_K``, ``V = N W_V``, ``A V`` and
``Y = X + A V W_O``, whose rows are the tokens.
"""

import numpy as np
import torch

from lightning_gpt.analysis.logit_lens import stream_names, streams_of
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.models.record import Trace

OF_HEADS = ("Q", "K", "V", "AV")
"""The matrices that each head has of its own; the others are of the whole layer."""


def head_activations(model: LanguageModel, ids: torch.Tensor) -> list[dict[str, np.ndarray]]:
    """:func:`matrices_of` every layer over ``ids`` ``(time,)``."""
    with evaluating(model), model.record(matrix_names(model)) as trace:
        model.hidden(ids[None])
    return [matrices_of(model, trace, layer) for layer in range(len(model.block_views()))]


def matrix_names(model: LanguageModel) -> list[str]:
    """Names and patterns of what has to be recorded for :func:`matrices_of`."""
    names = stream_names(model)
    for view in model.block_views():
        names += [f"{view.mixer_name}.*", *(name for name in (view.half_name, view.input_name) if name is not None)]
    return names


def matrices_of(model: LanguageModel, trace: Trace, layer: int) -> dict[str, np.ndarray]:
    """The matrices of a layer in a recorded pass over one text.

    Returns:
        ``X``, ``N`` and ``Y`` ``(time, dim)``: the stream before the layer, what its heads read, and the stream after
        they have written to it; :data:`OF_HEADS` ``(heads, time, width)``, where several heads may share keys and
        values. What the layer does not have is left out.
    """
    view = model.block_views()[layer]
    names = {"N": view.input_name}
    names |= {"Q": f"{view.mixer_name}.q", "K": f"{view.mixer_name}.k", "V": f"{view.mixer_name}.v"}
    names |= {"AV": f"{view.mixer_name}.head_output"}
    found = {"X": streams_of(model, trace)[layer][0]}
    found |= {symbol: trace[name][0] for symbol, name in names.items() if name is not None and name in trace}
    found["Y"] = model.narrowed(trace[view.half_name or view.stream_name])[0]
    # the one-head model's have no axis of heads
    shaped = {s: m.reshape(-1, *m.shape[-2:]) if s in OF_HEADS else m for s, m in found.items()}
    return {symbol: matrix.float().cpu().numpy() for symbol, matrix in shaped.items()}
