"""Generation in which a token that the model is sure of runs through its first layers only."""

from typing import Any, cast

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.context import Context
from lightning_gpt.models.gpt import GPT
from lightning_gpt.models.kv_cache import Cache, KeyValues


def confidence_of(logits: Tensor) -> Tensor:
    """The likeliest token's probability less the second's: logits ``(rows, vocab_size)`` to ``(rows,)``.

    This is the softmax response, one of the measures of Schuster et al. 2022 (2207.07061).
    """
    first, second = logits.float().softmax(dim=-1).topk(2, dim=-1).values.unbind(dim=-1)
    return first - second


class EarlyExit:
    """A GPT that leaves its layers as soon as it is sure: CALM, Schuster et al. 2022 (2207.07061).

    After each layer the stream goes through the final norm and the unembedding; where the softmax response reaches the
    threshold, these logits stand. Layers above get keys and values made of the stream as it was when it left (the
    paper's state propagation), at the price of their projections. Prompts run through all layers, and so
    do readings without a cache. Rows of a batch leave each for itself; a layer is saved when all have left.

    The threshold is one number for all positions, and the model need not have been trained for exits; the paper trains
    with a loss at each layer, calibrates the threshold and lowers it along the text. Each look costs a product with the
    unembedding, as much as a whole block where ``vocab_size`` is 12 ``dim``: with GPT-2's vocabulary only wide models
    gain time.

    Args:
        model: What generates.
        confidence: The softmax response to leave at, above 0 and at most 1.

    Raises:
        CallError: Where the threshold is none, or a layer keeps something else than keys and values of all tokens.
    """

    def __init__(self, model: GPT, confidence: float) -> None:
        if not 0 < confidence <= 1:
            raise CallError(f"exit_confidence is {confidence}; it must be above 0 and at most 1")
        if model.trace_limit is not None:
            raise CallError(
                "exit_confidence and memory cannot be combined: what a segment leaves is made by all layers"
            )
        for layer, block in enumerate(model.each_block()):
            if not block.unwrapped.attention.keeps_keys:
                raise CallError(
                    f"exit_confidence needs attention that keeps keys and values, and layer {layer} is a "
                    f"{type(block.unwrapped.attention).__name__}"
                )
        if model.config.token_routing is not None:
            raise CallError(
                "exit_confidence needs every token in every layer, for later ones to look at, and this model's "
                "token_routing lets tokens pass by: generate without it, or train with token_routing none"
            )
        self.model = model
        self.config: Any = model.config
        self.confidence = confidence
        self.layers_run: list[int] = []
        """How many layers each token ran through that was read after the prompts, in the order of reading."""

    @property
    def layers_per_token(self) -> float:
        """The mean of :attr:`layers_run`; all layers where no token was read after the prompts."""
        return sum(self.layers_run) / len(self.layers_run) if self.layers_run else float(self.config.n_layer)

    @property
    def context_limit(self) -> int | None:
        """The longest sequence that the model can read."""
        return self.model.context_limit

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache."""
        return self.model.new_cache(capacity)

    def next_logits(self, ids: Tensor, lengths: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Logits ``(batch, vocab_size)`` of the token after each row."""
        if cache is None or cache.length == 0:
            return self.model.next_logits(ids, lengths, cache)
        context = self.model.context(ids, cache=cache)
        x = self.model.embed(ids, context)  # (B, 1, d)
        inside = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        depth = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        logits = x.new_zeros(0)
        for layer in range(self.config.n_layer):
            if not inside.any():
                self._propagate(layer, x, context)
                continue
            x = torch.where(inside[:, None, None], self.model.layer(layer, x, context), x)
            depth += inside
            logits = self.model.head.few(self.model.final_norm(x)[:, -1])  # of rows that left: as they were
            inside = inside & (confidence_of(logits) < self.confidence)
        cache.advance(ids.shape[1], lengths)
        self.layers_run += depth.tolist()
        return logits

    def _propagate(self, layer: int, x: Tensor, context: Context) -> None:
        """Keep the keys and values that ``layer`` makes of a stream that has left already."""
        block, within = self.model.each_block()[layer].unwrapped, context.at_layer(layer)
        _, k, v = block.attention.heads(block.attention_input(x, within), within)
        cast(KeyValues, within.state).append(k, v, within.positions, within.lengths)
