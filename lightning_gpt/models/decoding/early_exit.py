"""Generation with early exit: a token the model is confident about runs through only the first layers."""

from typing import Any, cast

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.context import Context
from lightning_gpt.models.gpt import GPT
from lightning_gpt.models.kv_cache import Cache, KeyValues
from lightning_gpt.options import ShareAboveZero, check_option


def confidence_of(logits: Tensor) -> Tensor:
    """Probability of the most likely token minus that of the second: ``(rows, vocab_size)`` to ``(rows,)``.

    This is the softmax response, one of the measures of Schuster et al. 2022 (2207.07061).
    """
    first, second = logits.float().softmax(dim=-1).topk(2, dim=-1).values.unbind(dim=-1)
    return first - second


class EarlyExit:
    """A GPT that skips its remaining layers once it is confident: CALM, Schuster et al. 2022 (2207.07061).

    After each layer the stream goes through the final norm and the unembedding; once the softmax response reaches the
    threshold, these logits are used. Skipped layers compute keys and values from the stream at its exit (the paper's
    state propagation), at the cost of their projections. Prompts run through all layers, as do passes without a cache.
    Rows of a batch exit independently; a layer is skipped only when all rows have exited.

    The threshold is one number for all positions, and the model need not have been trained for early exit; the paper
    trains with a loss at each layer, calibrates the threshold and lowers it along the text. Each check costs a product
    with the unembedding, as much as a whole block if ``vocab_size`` is 12 ``dim``: with GPT-2's vocabulary only wide
    models become faster.

    Args:
        model: The model that generates.
        confidence: The softmax response at which to exit, above 0 and at most 1.

    Raises:
        CallError: If the threshold is out of range, or a layer does not keep keys and values of all tokens.
    """

    can_be_graphed = False

    def __init__(self, model: GPT, confidence: ShareAboveZero) -> None:
        check_option("exit_confidence", confidence, ShareAboveZero)
        if model.trace_limit is not None:
            raise CallError(
                "exit_confidence and memory cannot be combined: all layers are needed to compute a segment's memory"
            )
        for layer, block in enumerate(model.each_block()):
            if not block.unwrapped.attention.keeps_keys:
                raise CallError(
                    f"exit_confidence needs attention that keeps keys and values, and layer {layer} is a "
                    f"{type(block.unwrapped.attention).__name__}"
                )
        if model.config.convolution is not None:
            raise CallError(
                "exit_confidence computes keys and values of single tokens, and this model's convolution mixes each "
                "with those before it: generate without exit_confidence"
            )
        if model.config.token_routing is not None:
            raise CallError(
                "exit_confidence needs every token's keys and values in every layer, but this model's "
                "token_routing skips tokens: generate without exit_confidence, or train with token_routing none"
            )
        self.model = model
        self.config: Any = model.config
        self.confidence = confidence
        self.layers_run: list[int] = []
        """Number of layers run for each token read after the prompts, in reading order."""

    @property
    def layers_per_token(self) -> float:
        """The mean of :attr:`layers_run`; the number of layers if no token was read after the prompts."""
        return sum(self.layers_run) / len(self.layers_run) if self.layers_run else float(self.config.n_layer)

    @property
    def context_limit(self) -> int | None:
        """The longest sequence the model can read, in tokens."""
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
            logits = self.model.head.few(
                self.model.final_norm(self.model.narrowed(x))[:, -1]
            )  # unchanged for rows that have exited
            inside = inside & (confidence_of(logits) < self.confidence)
        cache.advance(ids.shape[1], lengths)
        self.layers_run += depth.tolist()
        return logits

    def _propagate(self, layer: int, x: Tensor, context: Context) -> None:
        """Store the keys and values that ``layer`` computes from a stream that has already exited."""
        block, within = self.model.each_block()[layer].unwrapped, context.at_layer(layer)
        read = block.attention_input(self.model.entering(layer, x, context), within)
        _, k, v = block.attention.heads(read, within)
        cast(KeyValues, within.state).append(k, v, within.positions, within.lengths)
